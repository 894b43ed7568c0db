"""From a scene to an entailed and a contradicted statement that keep the same details, so that meaning alone differs."""

from random import Random

from caption_grammar.actions import Verb
from caption_grammar.sample import OPTIONAL, SOME, agents_of, candidates, general_values
from caption_grammar.scene import Count, Scene, Slot, Statement, Value, contradicts, entails, value_clashes

# How often each way of contradicting is tried first, by the slot that it changes.
_CHANGES = {
    "action": 8,
    "agent": 4,
    "object": 5,
    "patient": 2,
    "swap": 5,
    "place": 3,
    "agent_count": 3,
    "object_count": 2,
    "object_look": 3,
    "agent_modifier": 2,
    "manner": 1,
    "time": 1,
}
# What a doer can do, be or be at only one of at a time.
_ONE_AT_A_TIME = ("action", "place", "manner", "time", "swap")
_NEGATED_ENTAILMENT, _NEGATED_CONTRADICTION = 0.11, 0.11
_GENERALISED = 0.3
# How often a contradiction differs in something else as well. A training set of single edits teaches that the smallest
# difference is the largest, and pairs that differ in little then come out below those that differ in much.
_FURTHER = 0.6
_COUNTS = tuple(Count(n, n) for n in range(2, 6))


def derive(random: Random, scene: Scene, split: str) -> tuple[Statement, Statement, str, str]:
    """An entailed and a contradicted statement of a scene, and the kinds of the two.

    Both keep the same optional details, are made more general and negated equally often, and are checked by the logic of
    scenes before they leave.
    """
    premise = Statement(scene)
    while True:
        kept = _keep(random, scene)
        entailed, entailed_kind = _entailed(random, scene, kept, split)
        contradicted, contradicted_kind = _contradicted(random, scene, kept, split)
        if entails(premise, entailed) and contradicts(premise, contradicted):
            return entailed, contradicted, entailed_kind, contradicted_kind


def change(random: Random, scene: Scene, split: str, slot: str) -> Scene | None:
    """The scene with one slot changed to a value that clashes, all else still fitting; None when there is no such value."""
    if slot == "swap":
        agent, patient, verb = scene.get("agent"), scene.get("patient"), scene.get("action")
        if patient is None or scene.get("agent_count") != Count(1, 1) or patient not in agents_of(verb, split):
            return None
        return scene.having(agent=patient, patient=agent, agent_modifier=None)
    old = scene.get(slot)
    if old is None:
        return None
    values = [v for v in _alternatives(scene, slot, split) if value_clashes(old, v)]
    if not values:
        return None
    new = random.choice(values)
    changed = scene.having(**{slot: new})
    # What was said of the old value need not fit the new one.
    for detail in OPTIONAL:
        said = scene.get(detail)
        if (
            said is not None
            and detail != slot
            and said not in candidates(detail, changed.having(**{detail: None}), split)
        ):
            changed = changed.having(**{detail: None})
    return changed


def generalise(random: Random, scene: Scene, spared: frozenset[str] = frozenset()) -> Scene:
    """Say one slot in more general words: a poodle is a dog, slicing is cutting, three are some."""
    slots = [s for s in scene.slots if s not in spared and general_values(s, scene.slots[s])]
    if not slots:
        return scene
    slot = random.choice(slots)
    value: Slot = random.choice(general_values(slot, scene.slots[slot]))
    scene = scene.having(**{slot: value})
    if isinstance(value, Verb) and "drop" in value.traits:
        scene = scene.having(object=None, object_count=None, object_look=None, patient=None, manner=None)
    return scene


def _keep(random: Random, scene: Scene) -> frozenset[str]:
    """Which optional details the two hypotheses go on to mention: all of them in about half of the cases."""
    share = 1.0 if random.random() < 0.55 else 0.5
    return frozenset(slot for slot in OPTIONAL if scene.get(slot) is not None and random.random() < share)


def _only(scene: Scene, kept: frozenset[str]) -> Scene:
    return scene.having(**{slot: None for slot in OPTIONAL if slot not in kept})


def _entailed(random: Random, scene: Scene, kept: frozenset[str], split: str) -> tuple[Statement, str]:
    if random.random() < _NEGATED_ENTAILMENT:
        # "No other woman sleeps" does not follow from a sleeping man; that he does not run does.
        other = _changed(random, scene, split, _ONE_AT_A_TIME)
        if other is not None:
            return Statement(_only(other[0], kept | {other[1]}), negated=True), "negated " + other[1]
    hypothesis = _only(scene, kept)
    kind = "paraphrase" if hypothesis == scene and len(hypothesis.slots) == len(scene.slots) else "fewer details"
    if random.random() < _GENERALISED:
        general = generalise(random, hypothesis)
        kind = "more general" if general.slots != hypothesis.slots else kind
        hypothesis = general
    verb = hypothesis.get("action")
    if isinstance(verb, Verb) and "alone" in verb.traits and hypothesis.get("object") and random.random() < 0.1:
        hypothesis = hypothesis.having(object=None, object_count=None, object_look=None)
        kind = "fewer details"
    return Statement(hypothesis), kind


def _contradicted(random: Random, scene: Scene, kept: frozenset[str], split: str) -> tuple[Statement, str]:
    if random.random() < _NEGATED_CONTRADICTION:
        return Statement(generalise_sometimes(random, _only(scene, kept)), negated=True), "negated"
    changed = _changed(random, scene, split)
    if changed is None:
        return Statement(_only(scene, kept), negated=True), "negated"
    other, slot = changed
    if random.random() < _FURTHER:
        others = tuple(way for way in _CHANGES if way not in (slot, "swap"))
        other, _ = _changed(random, other, split, others) or changed
    spared = frozenset({"agent", "patient"} if slot == "swap" else {slot})
    return Statement(generalise_sometimes(random, _only(other, kept | {slot}), spared)), slot


def generalise_sometimes(random: Random, scene: Scene, spared: frozenset[str] = frozenset()) -> Scene:
    """`generalise` as often as in entailments, so that a general word tells nothing about the truth."""
    return generalise(random, scene, spared) if random.random() < _GENERALISED else scene


def _changed(
    random: Random, scene: Scene, split: str, ways: tuple[str, ...] = tuple(_CHANGES)
) -> tuple[Scene, str] | None:
    for slot in sorted(ways, key=lambda way: random.random() ** (1 / _CHANGES[way]), reverse=True):
        other = change(random, scene, split, slot)
        if other is not None:
            return other, slot
    return None


def _alternatives(scene: Scene, slot: str, split: str) -> list[Slot]:
    if slot in ("agent_count", "object_count"):
        return [] if scene.get(slot) == SOME else list(_COUNTS)
    values: list[Value] = candidates(slot, scene, split)
    return list(values)
