"""The captions' grammar: sound by an independent logic, natural, balanced so that meaning tells, cleanly split."""

import re
from collections import Counter
from pathlib import Path
from random import Random

import numpy as np
import pytest
from conftest import load_script
from scipy.optimize import minimize

# The grammar stands outside the package: once imported from its folder, its modules are found by name.
# ruff: noqa: E402
load_script(Path(__file__).resolve().parents[1] / "experiments" / "captions" / "caption_grammar")

from caption_grammar.actions import ACTIONS, GENERAL_ACTIONS
from caption_grammar.derive import derive
from caption_grammar.facts import FACTS
from caption_grammar.frames import sample_fill
from caption_grammar.grammar import article, ing, number, participle, past, plural, third
from caption_grammar.lexicon import AGENTS, PLACES
from caption_grammar.make import make_pairs, make_triplets, scene_similarity, triplet_with_kinds
from caption_grammar.news import NEWS
from caption_grammar.render import render
from caption_grammar.sample import SCENE, is_heldout, sample_scene
from caption_grammar.scene import ONE, Count, Scene, Statement, contradicts, entails
from caption_grammar.talk import TALK
from caption_grammar.things import OBJECTS

SIZE = 4000


@pytest.fixture(scope="module")
def triplets():
    return make_triplets(SIZE)


def scene(agent="man", action="peel fruit vegetable", thing="apple", **slots):
    filled = {"agent": AGENTS[agent], "agent_count": ONE, "action": ACTIONS[action], **slots}
    return Scene(SCENE, filled | ({"object": OBJECTS[thing]} if thing else {}))


# Verdicts a person gave, not the code: premise, hypothesis, does it follow, is it excluded.
VERDICTS = [
    (Statement(scene()), Statement(scene()), True, False),
    (Statement(scene()), Statement(scene(agent="person")), True, False),
    (Statement(scene(agent="person")), Statement(scene()), False, False),
    (Statement(scene()), Statement(scene(thing="fruit")), True, False),
    (Statement(scene()), Statement(scene(agent="woman")), False, True),
    (Statement(scene()), Statement(scene(thing="onion")), False, True),
    (Statement(scene()), Statement(scene(), negated=True), False, True),
    (Statement(scene()), Statement(scene(agent="person"), negated=True), False, True),
    (Statement(scene(), negated=True), Statement(scene()), False, True),
    (Statement(scene(), negated=True), Statement(scene(place=PLACES["in the kitchen"]), negated=True), True, False),
    (Statement(scene(place=PLACES["in the kitchen"])), Statement(scene()), True, False),
    (Statement(scene()), Statement(scene(place=PLACES["in the kitchen"])), False, False),
    (Statement(scene(place=PLACES["in the park"])), Statement(scene(place=PLACES["outdoors"])), True, False),
    (Statement(scene(place=PLACES["in the park"])), Statement(scene(place=PLACES["indoors"])), False, True),
    (Statement(scene(agent_count=Count(3, 3))), Statement(scene(agent_count=Count(2, 99))), True, False),
    (Statement(scene(agent_count=Count(3, 3))), Statement(scene(agent_count=Count(2, 2))), False, True),
    (
        Statement(scene(agent="poodle", action="sleep", thing="")),
        Statement(scene(agent="dog", action="sleep", thing="")),
        True,
        False,
    ),
    (Statement(scene(action="sing", thing="")), Statement(scene(action="walk", thing="")), False, False),
    (Statement(scene(action="sleep", thing="")), Statement(scene(action="walk", thing="")), False, True),
]


@pytest.mark.parametrize(("premise", "hypothesis", "follows", "excluded"), VERDICTS)
def test_the_logic_of_scenes_judges_as_a_person_would(premise, hypothesis, follows, excluded):
    assert entails(premise, hypothesis) == follows
    assert contradicts(premise, hypothesis) == excluded


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_derived_statement_is_sound_by_the_logic_of_scenes(split):
    random = Random(1)
    for _ in range(600):
        premise = sample_scene(random, split)
        entailed, contradicted, *_ = derive(random, premise, split)
        assert entails(Statement(premise), entailed)
        assert not contradicts(Statement(premise), entailed)
        assert contradicts(Statement(premise), contradicted)
        assert not entails(Statement(premise), contradicted)


def test_all_kinds_of_entailment_and_contradiction_occur():
    random = Random(2)
    kinds = [triplet_with_kinds(random, "train")[1:] for _ in range(3000)]
    entailments, contradictions = (Counter(k[i] for k in kinds) for i in (0, 1))
    assert {"paraphrase", "fewer details", "more general", "negated action", "frame"} <= entailments.keys()
    assert {
        "action",
        "agent",
        "object",
        "swap",
        "place",
        "agent_count",
        "object_look",
        "agent_modifier",
        "negated",
    } <= contradictions.keys()
    assert 0.25 < entailments["frame"] / 3000 < 0.35
    # Most entailments of captions keep the meaning or nearly so; training is not taught to delete.
    assert entailments["paraphrase"] > entailments["more general"] / 2


def test_the_same_seed_gives_the_same_triplets_and_a_larger_count_begins_with_them():
    assert make_triplets(50, 3) == make_triplets(80, 3)[:50]
    assert make_triplets(50, 3) != make_triplets(50, 4)
    assert make_pairs(20, 3) == make_pairs(40, 3)[:20]


def test_triplets_are_distinct_and_premises_hardly_repeat():
    count = 20_000
    made = make_triplets(count, 7)
    assert len({(t.sentence, t.chosen, t.rejected) for t in made}) == count
    assert len({t.sentence for t in made}) > 0.9 * count
    assert all(len({t.sentence, t.chosen, t.rejected}) == 3 for t in made[:SIZE])


def starred():
    return {w for table in (AGENTS, OBJECTS) for value in table.values() if value.heldout for w in value.words}


def test_no_held_out_word_or_combination_is_in_the_training_split(triplets):
    words = starred()
    assert len(words) > 25
    # To groom a dog and to sketch a map are doings, too.
    pattern = re.compile(r"\b(" + "|".join(sorted(words - {"groom", "sketch"})) + r")\b")
    assert not {match for sentence in sentences(make_triplets(SIZE, 5)) for match in pattern.findall(sentence)}
    random = Random(0)
    assert not any(is_heldout(sample_scene(random, "train")) for _ in range(300))
    assert all(is_heldout(sample_scene(random, "heldout")) for _ in range(300))
    heldout = make_triplets(1000, 5, "heldout")
    assert not {t.sentence for t in heldout} & {t.sentence for t in triplets}


def sentences(made):
    return [s for t in made for s in (t.sentence, t.chosen, t.rejected)]


def test_every_sentence_is_well_formed_on_the_surface(triplets):
    for sentence in sentences(triplets):
        assert sentence[0].isupper() or sentence[0].isdigit()
        assert sentence == " ".join(sentence.split())
        assert not re.search(r"\b(\w+) \1\b", sentence), sentence
        assert not re.search(r"\b[Aa] (?!one\b)[aeio]\w", sentence), sentence
        assert not re.search(r"\b[Aa]n [^aeiouh]", sentence), sentence
        assert not re.search(r"[{}|*_]|\.\.| ,| \.", sentence), sentence
        assert re.search(r"[.?\w]$", sentence), sentence


def test_both_hypotheses_are_equally_long(triplets):
    chosen, rejected = (np.mean([len(getattr(t, part).split()) for t in triplets]) for part in ("chosen", "rejected"))
    assert abs(chosen - rejected) < 0.035 * chosen


def test_negations_are_about_as_frequent_in_entailments_as_in_contradictions(triplets):
    negation = re.compile(r"n't\b|\b(not|no|never|nobody|nothing|without|cannot|refuses?d?)\b", re.IGNORECASE)
    shares = [np.mean([bool(negation.search(getattr(t, part))) for t in triplets]) for part in ("chosen", "rejected")]
    assert min(shares) > 0.08
    assert abs(shares[0] - shares[1]) < 0.06


def test_words_alone_do_not_tell_a_contradiction_from_an_entailment():
    """A bag-of-words classifier that never sees the premise is hardly better than a coin on captions."""
    random = Random(11)
    texts = []
    while len(texts) < 3000:
        made, kind, _ = triplet_with_kinds(random, "train")
        if kind != "frame":
            texts += [(made[1], 1), (made[2], 0)]
    vocabulary = {w: i for i, w in enumerate(sorted({w for s, _ in texts for w in s.lower().rstrip(".").split()}))}
    features = np.zeros((len(texts), len(vocabulary) + 1))
    for row, (sentence, _) in enumerate(texts):
        for word in sentence.lower().rstrip(".").split():
            features[row, vocabulary[word]] = 1
        features[row, -1] = len(sentence.split()) / 10
    labels = np.array([label for _, label in texts], dtype=float)
    train, test = slice(0, 2400), slice(2400, None)

    def loss(weights):
        margin = features[train] @ weights
        p = 1 / (1 + np.exp(-margin))
        value = np.mean(np.logaddexp(0, margin) - labels[train] * margin) + 1e-2 * weights @ weights
        return value, features[train].T @ (p - labels[train]) / len(p) + 2e-2 * weights

    weights = minimize(loss, np.zeros(features.shape[1]), jac=True, method="L-BFGS-B").x
    accuracy = np.mean((features[test] @ weights > 0) == (labels[test] > 0.5))
    assert accuracy < 0.64


def test_pairs_cover_the_scale_evenly_and_equal_scenes_score_five():
    pairs = make_pairs(500)
    counts = Counter(min(4, int(p.score)) for p in pairs)
    assert all(80 <= counts[grade] <= 120 for grade in range(5))
    assert len({(p.first, p.second) for p in pairs}) == 500
    assert sum(p.score == 5 for p in pairs) > 20
    assert all(0 <= p.score <= 5 for p in pairs)


def test_similarity_falls_with_every_slot_that_differs():
    full = scene(place=PLACES["in the kitchen"])
    ladder = [
        full,
        scene(place=PLACES["in a restaurant"]),
        scene(agent="woman", place=PLACES["in a restaurant"]),
        scene(agent="woman", thing="onion", place=PLACES["in a restaurant"]),
        scene(agent="dog", action="sleep", thing="", place=PLACES["on the beach"]),
    ]
    scores = [scene_similarity(Statement(full), Statement(other)) for other in ladder]
    assert scores[0] == 5
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 5
    assert scores[-1] < 1
    assert scene_similarity(Statement(full), Statement(full, negated=True)) == 2.5
    for other in ladder:
        swapped = scene_similarity(Statement(other), Statement(full))
        assert swapped == pytest.approx(scene_similarity(Statement(full), Statement(other)))


@pytest.mark.parametrize("frame", (*NEWS, *TALK, *FACTS), ids=lambda f: f.same[0][:30])
def test_frames_name_only_their_slots_and_have_room_for_many_sentences(frame):
    for template in (*frame.same, *frame.weaker, *frame.contrary):
        assert set(re.findall(r"{(\w+)}", template)) <= frame.slots.keys()
    assert len(frame.same) >= 4
    assert len(frame.contrary) >= 4
    assert set(frame.exclusive) <= frame.slots.keys()
    assert np.prod([len(options) for options in frame.slots.values()]) >= 24
    assert not {*frame.same, *frame.weaker} & {*frame.contrary}
    keys = [{tuple(sample_fill(Random(i), frame, split).values()) for i in range(60)} for split in ("train", "heldout")]
    assert not keys[0] & keys[1]


@pytest.mark.parametrize(
    ("function", "word", "expected"),
    [
        (plural, "woman", "women"),
        (plural, "glass of milk", "glasses of milk"),
        (plural, "police officer", "police officers"),
        (plural, "baby", "babies"),
        (plural, "box", "boxes"),
        (plural, "scarf", "scarves"),
        (third, "carry", "carries"),
        (third, "go fishing", "goes fishing"),
        (third, "play with", "plays with"),
        (third, "catch", "catches"),
        (ing, "run", "running"),
        (ing, "lie on the ground", "lying on the ground"),
        (ing, "bake", "baking"),
        (ing, "knit", "knitting"),
        (past, "take off", "took off"),
        (past, "stir", "stirred"),
        (past, "dry", "dried"),
        (participle, "write", "written"),
        (participle, "tear up", "torn up"),
        (article, "apple", "an apple"),
        (article, "uniform", "a uniform"),
        (number, 3, "three"),
        (number, 1200, "1,200"),
    ],
)
def test_words_are_inflected_as_in_a_dictionary(function, word, expected):
    assert function(word) == expected


def test_every_action_can_be_said_by_somebody_somewhere():
    random = Random(0)
    said = {sample_scene(random, "heldout").get("action").name for _ in range(6000)}
    assert len(said) > 0.95 * len(ACTIONS)
    for verb in (*ACTIONS.values(), *GENERAL_ACTIONS.values()):
        assert verb.features, verb


def test_negated_and_plain_statements_read_as_english():
    random = Random(0)
    texts = {render(random, Statement(scene(agent="woman"), negated=True)) for _ in range(60)}
    assert "The woman is not peeling an apple." in texts
    assert all(re.search(r"n't|not", text) for text in texts)
    assert "A woman is peeling an apple." in {render(random, Statement(scene(agent="woman"))) for _ in range(200)}


def test_unknown_splits_and_empty_counts_are_refused():
    with pytest.raises(ValueError, match="split is 'test', expected one of train, heldout"):
        make_triplets(3, split="test")
    with pytest.raises(ValueError, match="count is 0, expected at least 1"):
        make_pairs(0)
