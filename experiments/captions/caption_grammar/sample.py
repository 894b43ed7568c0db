"""Plausible random scenes: who can do it, to what, where; and the values that could stand in a slot instead."""

import zlib
from functools import cache
from random import Random

from caption_grammar.actions import ACTIONS, GENERAL_ACTIONS, OPPOSITES, Verb
from caption_grammar.lexicon import AGENT_MODIFIERS, AGENTS, COMPANY, MANNERS, PLACES, TIMES, Noun, Phrase
from caption_grammar.scene import MANY, ONE, Count, Scene, Slot, Value, value_clashes, value_entails
from caption_grammar.things import LOOKS, OBJECTS

SCENE = "scene"
SOME = Count(2, MANY)
# Slots that a sentence can do without, from the most to the least often filled.
OPTIONAL = ("place", "agent_modifier", "object_look", "manner", "time", "company")
_ODDS = {"place": 0.75, "agent_modifier": 0.4, "object_look": 0.45, "manner": 0.2, "time": 0.12, "company": 0.12}
# How much more often than a trade the everyday agents are drawn.
_COMMON = {"man": 10, "woman": 10, "boy": 5, "girl": 5, "child": 4, "dog": 6, "cat": 4, "horse": 3}
# Everyday words that a special one may be replaced by: a waiter is a man, a poodle a dog.
_BROAD = frozenset({"man", "woman", "child", "dog", "cat", "horse"})


def sample_scene(random: Random, split: str) -> Scene:
    """Draw a scene; `heldout` ones use a word or a combination that no `train` scene has."""
    while True:
        scene = _draw(random, split)
        if scene is not None and (split == "heldout") == is_heldout(scene):
            return scene


def is_heldout(scene: Scene) -> bool:
    """Whether a scene holds a held-out word, or is one of the tenth of all core combinations that are held out."""
    if any(isinstance(value, Value) and value.heldout for value in scene.slots.values()):
        return True
    core = (scene.get(name) for name in ("agent", "action", "object", "patient"))
    return zlib.crc32("|".join(value.name if value else "" for value in core).encode()) % 10 == 0


def _draw(random: Random, split: str) -> Scene | None:
    verb = random.choice(_verbs(split))
    agents = agents_of(verb, split)
    agent = random.choices(agents, [_COMMON.get(a.name, 1) for a in agents])[0]
    slots: dict[str, Slot | None] = {"agent": agent, "agent_count": _count(random), "action": verb}
    things = things_of(verb, split)
    if things:
        thing = random.choice(things)
        if "thing" in verb.traits:
            if thing == agent or not value_clashes(agent, thing):
                return None
            slots |= {"patient": thing}
        else:
            slots |= {"object": thing}
            if not (thing.mass or "the" in thing.groups):
                slots["object_count"] = _count(random) if thing.groups & {"fruit", "vegetable", "dish"} else ONE
    for slot in OPTIONAL:
        if random.random() < _ODDS[slot]:
            values = list(candidates(slot, Scene(SCENE, slots), split))
            slots[slot] = random.choice(values) if values else None
    return Scene(SCENE, {}).having(**slots)


def _count(random: Random) -> Count:
    chance = random.random()
    if chance < 0.72:
        return ONE
    number = random.choice((2, 2, 3, 4, 5))
    return SOME if chance > 0.93 else Count(number, number)


@cache
def _verbs(split: str) -> tuple[Verb, ...]:
    return tuple(v for v in ACTIONS.values() if (split == "heldout" or not v.heldout) and agents_of(v, split))


@cache
def agents_of(verb: Verb, split: str) -> tuple[Noun, ...]:
    """Who may do it."""
    return tuple(a for a in AGENTS.values() if a.groups & verb.who and _usable(a, split))


@cache
def things_of(verb: Verb, split: str) -> tuple[Noun, ...]:
    """What it may be done to: objects, or for some verbs other agents."""
    table = AGENTS if "thing" in verb.traits else OBJECTS
    return tuple(t for t in table.values() if t.groups & verb.what and _usable(t, split))


def candidates(slot: str, scene: Scene, split: str) -> list[Value]:
    """The values that fit a slot beside the rest of the scene."""
    return [value for value in _pool(slot, scene, split) if _usable(value, split)]


def _pool(slot: str, scene: Scene, split: str) -> list[Value]:
    verb, agent = scene.get("action"), scene.get("agent")
    if slot == "action":
        return _other_actions(scene, split)
    if slot == "agent":
        return [a for a in agents_of(verb, split) if a != scene.get("patient")]
    if slot == "patient":
        return [t for t in things_of(verb, split) if t != agent]
    if slot == "object":
        return list(things_of(verb, split))
    if slot == "place":
        return [p for p in PLACES.values() if p.groups & verb.where and not _sits_in(p, scene)]
    if slot == "agent_modifier":
        return list(_modifiers_of(agent))
    if slot == "object_look":
        thing = scene.get("object")
        looks = [look for kind in LOOKS.values() for look in kind.values()]
        return [look for look in looks if thing and look.groups & thing.groups]
    if slot == "manner":
        return [m for m in MANNERS.values() if m.groups & verb.traits]
    outdoors = _outdoors(scene)
    if slot == "time":
        return [t for t in TIMES.values() if "any" in t.groups or ("out" in t.groups and outdoors)]
    return [c for c in COMPANY.values() if _fits_company(c, scene, outdoors)]


@cache
def _modifiers_of(agent: Noun) -> tuple[Phrase, ...]:
    """What may be said of an agent."""
    kinds = [m for kind in AGENT_MODIFIERS.values() for m in kind.values()]
    fitting = [m for m in kinds if m.groups & agent.groups and not _says_twice(m, agent)]
    worn = [m for m in fitting if m.name.startswith("wear")]
    plain = [m for m in fitting if not m.name.startswith("wear")]
    # Of the hundred garments as many as of the plain modifiers, so that both are drawn alike.
    step = max(1, len(worn) // max(4, len(plain)))
    return (*plain, *worn[zlib.crc32(agent.name.encode()) % step :: step])


def _other_actions(scene: Scene, split: str) -> list[Value]:
    """Actions of the same agent on the same thing that cannot be the same doing; opposites if there are any."""
    verb, place = scene.get("action"), scene.get("place")
    acts = _actions_of(scene.get("agent"), scene.get("object") or scene.get("patient"), "thing" in verb.traits, split)
    able = [other for other in acts if place is None or place.groups & other.where]
    pairs = {*OPPOSITES, *((b, a) for a, b in OPPOSITES)}
    opposite = [other for other in able if (verb.words[0], other.words[0]) in pairs]
    return opposite or [other for other in able if value_clashes(verb, other)]


@cache
def _actions_of(agent: Noun, thing: Noun | None, on_agents: bool, split: str) -> tuple[Verb, ...]:
    """What the agent may do, to the thing if there is one; `on_agents`: verbs that take agents for their things."""
    return tuple(
        verb
        for verb in _verbs(split)
        if agent in agents_of(verb, split)
        and (thing in things_of(verb, split) if thing else not things_of(verb, split))
        and ("thing" in verb.traits) == on_agents
    )


@cache
def general_values(slot: str, value: Slot) -> tuple[Slot, ...]:
    """Strictly more general values that a sentence may say instead: a poodle is a dog, three are some."""
    if isinstance(value, Count):
        return (SOME,) if value.low == value.high >= 2 else ()
    tables = {"agent": AGENTS, "patient": AGENTS, "object": OBJECTS, "place": PLACES}
    if slot == "action":
        return tuple(g for g in GENERAL_ACTIONS.values() if value_entails(value, g))
    table = tables.get(slot, {})
    return tuple(
        g
        for g in table.values()
        if g != value
        and value_entails(value, g)
        and not value_entails(g, value)
        and ("general" in g.groups or g.name in _BROAD)
    )


def _usable(value: Value, split: str) -> bool:
    general = isinstance(value, Noun | Phrase) and "general" in value.groups
    return not general and (split == "heldout" or not value.heldout)


def _outdoors(scene: Scene) -> bool:
    place = scene.get("place")
    return place is not None and place.features["where"][0] == "out"


def _sits_in(place: Phrase, scene: Scene) -> bool:
    """A thing is not said to be at itself (sitting on a river bank by a river)."""
    thing = scene.get("object")
    return thing is not None and any(thing.words[0] in words for words in place.words)


def _says_twice(modifier: Phrase, agent: Noun) -> bool:
    """A modifier must add to the noun and not contradict it: no young puppy, no old boy."""
    if agent.name in ("bride", "groom", "clown", "firefighter", "police officer", "soldier", "boxer"):
        return modifier.name.startswith("wear")
    grown = agent.features.get("family") is not None
    return any(name in agent.features for name in modifier.features) or (grown and "years" in modifier.features)


def _fits_company(company: Phrase, scene: Scene, outdoors: bool) -> bool:
    place, count = scene.get("place"), scene.get("agent_count")
    if "one" in company.groups:
        return count == ONE and scene.get("patient") is None
    if company.name.startswith("with"):
        # "with a friend" would be ambiguous beside something acted on.
        person = scene.get("agent").features.get("kind") == ("person",)
        return person and scene.get("object") is None and scene.get("patient") is None
    if company.name.startswith("while"):
        return "out" not in company.groups or outdoors
    return place is not None and bool(company.groups & place.groups) and outdoors
