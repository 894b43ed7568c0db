"""Seeded triplets for training and graded pairs for a built-in similarity test, split by vocabulary and combination."""

import zlib
from random import Random

from caption_grammar.derive import change, derive, generalise
from caption_grammar.facts import FACTS
from caption_grammar.frames import derive_frame, sample_fill
from caption_grammar.news import NEWS
from caption_grammar.render import render
from caption_grammar.sample import OPTIONAL, sample_scene
from caption_grammar.scene import Count, Scene, Slot, Statement, value_clashes, value_entails
from caption_grammar.talk import TALK
from sempa.data.sts import ScoredPair
from sempa.data.triplets import Triplet

SPLITS = ("train", "heldout")
# The fraction of captions; the other registers divide the rest.
_CAPTIONS = 0.7
_SAME_VOICE = 0.7
_TRIES = 3
_FRAMES = (*NEWS, *TALK, *FACTS)
# How much a slot counts for the similarity of two scenes.
_WEIGHTS = {"action": 3.0, "agent": 2.0, "object": 2.0, "patient": 2.0, "place": 1.0}
_OTHER_WEIGHT = 0.4
_NEGATION = 0.5
_MISSING = 0.5
# How often a related statement is negated: low grades draw such pairs again and again, so that a tenth of all are.
_NEGATED = 0.05


def make_triplets(count: int, seed: int = 0, split: str = "train") -> list[Triplet]:
    """Make `count` distinct triplets; a larger `count` begins with the same ones.

    `heldout` triplets use words and combinations of words that no `train` triplet has. Raises `ValueError` for an unknown
    split or a count below 1.
    """
    random = _random(count, seed, split, "triplets")
    made: dict[tuple[str, str, str], None] = {}
    while len(made) < count:
        texts = triplet_with_kinds(random, split)[0]
        if len(set(texts)) == 3:
            made[texts] = None
    return [Triplet(*texts, line=number) for number, texts in enumerate(made, 1)]


def triplet_with_kinds(random: Random, split: str) -> tuple[tuple[str, str, str], str, str]:
    """One triplet's texts, and how its entailment and its contradiction were made."""
    if random.random() < _CAPTIONS:
        scene = sample_scene(random, split)
        entailed, contradicted, *kinds = derive(random, scene, split)
        # The same voice says the same things in the same words: most contradictions are small edits of the premise,
        # while entailments look for other words. A model that compares words alone gets it wrong.
        voice = random.random()
        premise = render(Random(voice), Statement(scene))
        contradiction = render(Random(voice) if random.random() < _SAME_VOICE else random, contradicted)
        tries = [render(random, entailed) for _ in range(_TRIES)]
        return (premise, min(tries, key=lambda text: shared_words(premise, text)), contradiction), *kinds
    frame = random.choice(_FRAMES)
    fill = sample_fill(random, frame, split)
    tries = [derive_frame(random, frame, fill) for _ in range(_TRIES)]
    premise, entailed, _ = min(tries, key=lambda texts: shared_words(texts[0], texts[1]))
    return (
        (premise, entailed, max((t[2] for t in tries), key=lambda text: shared_words(premise, text))),
        "frame",
        "frame",
    )


def shared_words(premise: str, hypothesis: str) -> float:
    """The fraction of the hypothesis' distinct words that the premise has too, from 0 to 1."""
    words, own = (set(text.lower().rstrip(".?").replace(",", "").split()) for text in (premise, hypothesis))
    return len(words & own) / len(own)


def make_pairs(count: int, seed: int = 0, split: str = "heldout") -> list[ScoredPair]:
    """Make `count` distinct pairs of captions, scored 0–5 by the overlap of the two scenes, all grades alike often.

    As in the triplets, counting shared words is a bad guide to the score.

    Raises `ValueError` for an unknown split or a count below 1.
    """
    random = _random(count, seed, split, "pairs")
    made: dict[tuple[str, str], float] = {}
    while len(made) < count:
        # Each fifth of the scale in turn, so that no grade is rare.
        low = len(made) % 5
        first = sample_scene(random, split)
        second = _related(random, first, split, edits=4 - low)
        score = scene_similarity(Statement(first), second)
        if low <= score < low + 1 or (low == 4 and score == 5):
            texts = _misleading_pair(random, Statement(first), second, alike=low == 4)
            if texts[0] != texts[1]:
                made.setdefault(texts, score)
    return [ScoredPair(*texts, round(score, 2)) for texts, score in made.items()]


def _misleading_pair(random: Random, first: Statement, second: Statement, alike: bool) -> tuple[str, str]:
    """Two statements said so that shared words mislead: equal ones in other words, different ones in the same voice."""
    voice = random.random()
    text = render(Random(voice), first)
    if alike:
        return text, min((render(random, second) for _ in range(_TRIES)), key=lambda other: shared_words(text, other))
    return text, render(Random(voice) if random.random() < _SAME_VOICE else random, second)


def scene_similarity(first: Statement, second: Statement) -> float:
    """How much of their meaning two scenes have in common, from 0 to 5.

    Σ w·s / Σ w over the slots that either fills, w the slot's weight and s from 1 (the same) over 0.8 (one entails the other)
    and less (the same general kind) to 0; a detail that only one mentions counts half. A negation halves the whole.
    """
    # Sorted, since a sum of floats depends on its order and a set's order on the process.
    slots = sorted({*first.scene.slots, *second.scene.slots})
    total = agreed = 0.0
    for slot in slots:
        weight = _WEIGHTS.get(slot, _OTHER_WEIGHT)
        total += weight
        agreed += weight * _agreement(slot, first.scene.get(slot), second.scene.get(slot))
    factor = 1.0 if first.negated == second.negated else _NEGATION
    return 5 * factor * agreed / total


def _agreement(slot: str, one: Slot | None, other: Slot | None) -> float:
    if one is None or other is None:
        return _MISSING if slot in OPTIONAL or slot.endswith("count") else 0.0
    if one == other:
        return 1.0
    if value_entails(one, other) or value_entails(other, one):
        return 0.8
    if isinstance(one, Count) or isinstance(other, Count):
        return 0.3
    shared = max((_depth(one.features.get(name, ()), path) for name, path in other.features.items()), default=0)
    return min(0.5, 0.25 * shared) * (0.6 if value_clashes(one, other) else 1.0)


def _depth(path: tuple[str, ...], other: tuple[str, ...]) -> int:
    return next((i for i, (a, b) in enumerate(zip(path, other)) if a != b), min(len(path), len(other)))


def _related(random: Random, scene: Scene, split: str, edits: int) -> Statement:
    """A statement that differs from a scene by about so many edits; four of them give another scene altogether."""
    if edits == 4:
        return Statement(sample_scene(random, split))
    slots = ["agent", "action", "object", "patient", "place", "object_look", "agent_modifier", "agent_count", "swap"]
    for _ in range(edits):
        scene = change(random, scene, split, random.choice(slots)) or scene
    details = [slot for slot in OPTIONAL if scene.get(slot) is not None]
    if details and random.random() < 0.5:
        scene = scene.having(**{random.choice(details): None})
    if random.random() < 0.25:
        scene = generalise(random, scene)
    return Statement(scene, negated=bool(edits) and random.random() < _NEGATED)


def _random(count: int, seed: int, split: str, what: str) -> Random:
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
    if count < 1:
        raise ValueError(f"count is {count}, expected at least 1")
    return Random(zlib.crc32(f"{what} {split} {seed}".encode()))
