"""Scenes said in English: noun phrases, verb phrases, and the patterns that captions come in."""

from dataclasses import dataclass
from random import Random

from caption_grammar.actions import Verb
from caption_grammar.grammar import article, ing, number, participle, past, plural, sentence, third
from caption_grammar.lexicon import Noun, Phrase
from caption_grammar.scene import ONE, Count, Scene, Statement

_AFTER = ("in ", "with ", "wearing ")
# A verb phrase that ends in one of these takes its object behind it; other phrases take it behind their first word.
_ENDINGS = frozenset("of to with on from after at over under behind up down off out against through by for".split())
_PARTICLES = frozenset({"up", "off", "on", "out", "down", "apart", "through"})
_PATTERNS = {
    "progressive": 46,
    "caption": 13,
    "present": 11,
    "passive": 10,
    "there": 7,
    "past": 7,
    "past progressive": 6,
}
_NEGATABLE = ("progressive", "present", "past", "past progressive")


@dataclass(frozen=True)
class _Parts:
    """A scene's phrases: subject, verb in its base form, object (may be empty), and adverbials in their order."""

    subject: str
    many: bool
    verb: str
    object: str
    object_many: bool
    adverbials: list[str]
    has_manner: bool
    front: str

    def predicate(self, verb: str) -> str:
        """The inflected verb with object and adverbials."""
        return " ".join([_with_object(verb, self.object), *self.adverbials])


def render(random: Random, statement: Statement) -> str:
    """Say a statement in a random pattern with random synonyms."""
    scene = statement.scene
    patterns = [p for p in _PATTERNS if _fits(p, statement)]
    pattern = random.choices(patterns, [_PATTERNS[p] for p in patterns])[0]
    parts = _parts(random, scene, pattern, statement.negated)
    text = _say(pattern, parts, statement.negated, random)
    if parts.front:
        text = f"{parts.front}, {text}"
    # Captions often stand without a full stop.
    return sentence(text, stop=pattern != "caption" or random.random() < 0.6)


def _fits(pattern: str, statement: Statement) -> bool:
    verb = statement.scene.get("action")
    if statement.negated and pattern not in _NEGATABLE:
        return False
    if pattern == "passive":
        thing = statement.scene.get("object") or statement.scene.get("patient")
        return thing is not None and "active" not in verb.traits and bool(_passive_words(verb))
    return True


def _passive_words(verb: Verb) -> list[str]:
    return [word for word in verb.words if " " not in word or word.rpartition(" ")[2] in _PARTICLES | {"dry"}]


def _say(pattern: str, parts: _Parts, negated: bool, random: Random) -> str:
    be = "are" if parts.many else "is"
    was = "were" if parts.many else "was"
    no = random.choice((" not", " not", "n't")) if negated else ""
    if pattern == "progressive":
        return f"{parts.subject} {be}{no} {parts.predicate(ing(parts.verb))}"
    if pattern == "past progressive":
        return f"{parts.subject} {was}{no} {parts.predicate(ing(parts.verb))}"
    if pattern == "caption":
        return f"{parts.subject} {parts.predicate(ing(parts.verb))}"
    if pattern == "there":
        return f"there {be} {parts.subject} {parts.predicate(ing(parts.verb))}"
    if pattern == "passive":
        own = "are" if parts.object_many else "is"
        # The manner belongs to the deed, not to the doer that the passive puts last.
        early = parts.adverbials[:1] if parts.has_manner else []
        done = " ".join([participle(parts.verb), *early, "by", parts.subject, *parts.adverbials[len(early) :]])
        return f"{parts.object} {own} being {done}"
    if pattern == "past":
        return f"{parts.subject} {f'did{no} ' if negated else ''}{parts.predicate(parts.verb if negated else past(parts.verb))}"
    if negated:
        return f"{parts.subject} {'do' if parts.many else 'does'}{no} {parts.predicate(parts.verb)}"
    return f"{parts.subject} {parts.predicate(parts.verb if parts.many else third(parts.verb))}"


def _parts(random: Random, scene: Scene, pattern: str, negated: bool) -> _Parts:
    agent, verb = scene.get("agent"), scene.get("action")
    count = scene.get("agent_count") or ONE
    the = (negated or random.random() < 0.25) and pattern != "there"
    modifiers = [m for m in (scene.get("agent_modifier"),) if m]
    subject = noun_phrase(random, agent, count, modifiers, the)
    things = ""
    thing = scene.get("object") or scene.get("patient")
    thing_count = scene.get("object_count") or ONE
    if thing is not None:
        looks = [m for m in (scene.get("object_look"),) if m]
        things = noun_phrase(random, thing, thing_count, looks, random.random() < 0.3)
        if things == subject:
            things = "another " + things.partition(" ")[2]
    word = _synonym(random, _passive_words(verb) if pattern == "passive" else verb.words)
    adverbials, front = _adverbials(random, scene)
    many_things = thing_count.low > 1 and not (thing and thing.mass)
    return _Parts(subject, count.low > 1, word, things, many_things, adverbials, scene.get("manner") is not None, front)


def _adverbials(random: Random, scene: Scene) -> tuple[list[str], str]:
    """Manner, company, place, time in this order, one of place and time perhaps in front."""
    found = {
        name: _synonym(random, scene.get(name).words)
        for name in ("manner", "company", "place", "time")
        if scene.get(name)
    }
    if found.get("company", "").startswith(("while", "as ")):
        # A clause closes the sentence.
        found["last"] = found.pop("company")
    movable = [name for name in ("place", "time") if name in found]
    front = found.pop(random.choice(movable)) if movable and random.random() < 0.12 else ""
    return [found[name] for name in ("manner", "company", "place", "time", "last") if name in found], front


def noun_phrase(random: Random, noun: Noun, count: Count, modifiers: list[Phrase], definite: bool) -> str:
    """A determiner or number, modifiers and the noun: "two young women in red shirts"."""
    many = count.low > 1 and not noun.mass
    before, after = [], []
    for modifier in modifiers:
        word = _worn(random, modifier, many) if modifier.name.startswith("wear ") else _synonym(random, modifier.words)
        (after if word.startswith(_AFTER) else before).append(word)
    head = " ".join([*before, _synonym(random, noun.forms(many))])
    if "the" in noun.groups or (definite and not (many and count.low == count.high)):
        head = f"the {head}"
    elif noun.mass:
        head = random.choice((f"some {head}", head))
    elif not many:
        head = article(head)
    elif count.low == count.high:
        head = f"{'the ' if definite else ''}{number(count.low)} {head}"
    else:
        head = random.choice((f"some {head}", f"some {head}", head))
    return " ".join([head, *after])


def _worn(random: Random, modifier: Phrase, many: bool) -> str:
    text = modifier.name.removeprefix("wear ")
    text = plural(text) if many else article(text)
    return random.choice((f"in {text}", f"in {text}", f"wearing {text}"))


def _with_object(verb: str, thing: str) -> str:
    """Put the object where the phrase wants it: "cut … into slices", "look at …", "take a picture of …"."""
    if not thing:
        return verb
    head, _, rest = verb.partition(" ")
    if not rest or rest.rpartition(" ")[2] in _ENDINGS:
        return f"{verb} {thing}"
    return f"{head} {thing} {rest}"


def _synonym(random: Random, words: tuple[str, ...] | list[str]) -> str:
    """The first, most usual word half of the time."""
    return words[0] if random.random() < 0.5 else random.choice(words)
