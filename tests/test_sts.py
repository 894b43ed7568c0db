"""An encoder's score on an STS task is Spearman's ρ × 100 between its cosines and the gold scores."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sts_files import DATA, needs_sts, write_year

from sempa import SempaError
from sempa.data.sts import ScoredPair, StsTask, distinct_sentences, read_sts
from sempa.evaluation.statistics import spearman
from sempa.evaluation.sts import evaluate_sts, pair_cosines, score_sts


class Encoder:
    """Embeds by seeded noise per sentence, and remembers what it was asked."""

    def __init__(self, scale=1.0):
        self.calls = []
        self.scale = scale

    def __call__(self, sentences):
        self.calls.append(sentences)
        noise = [np.random.default_rng(list(map(ord, s))).standard_normal(8) for s in sentences]
        return (self.scale * np.array(noise)).astype(np.float32)


WORDS = st.sampled_from(["a", "b", "c", "dog", "d"])


def encode_distinct(encode, pairs):
    return dict(zip(sentences := distinct_sentences(pairs), encode(sentences)))


PAIRS = st.lists(st.builds(ScoredPair, WORDS, WORDS, st.integers(-3, 3).map(float)), min_size=1, max_size=20)


@settings(deadline=None)
@given(pairs=PAIRS, scale=st.sampled_from([1e-30, 1.0, 1e30]))
def test_cosines_are_float64_of_vectors_of_any_length_and_each_sentence_is_encoded_once(pairs, scale):
    encoder = Encoder(scale)
    vectors = encode_distinct(encoder, pairs)
    (asked,) = encoder.calls
    assert len(asked) == len(set(asked))
    assert set(asked) == set(vectors) == {s for p in pairs for s in (p.first, p.second)}
    cosines = pair_cosines(vectors, pairs)
    expected = dict(zip(asked, Encoder(scale)(asked).astype(np.float64)))
    assert cosines.dtype == np.float64
    for cosine, pair in zip(cosines, pairs):
        a, b = expected[pair.first], expected[pair.second]
        # In float32 the rounding alone would be 1e-7.
        assert cosine == pytest.approx(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), abs=1e-12)


def tasks_of(*pairs):
    return [StsTask(f"task {i}", [ScoredPair(*pair) for pair in part]) for i, part in enumerate(pairs)]


def test_sentences_shared_by_tasks_are_encoded_once_and_each_task_has_its_own_score():
    first = [("a", "b", 1), ("a", "c", 2), ("b", "d", 4), ("c", "d", 0)]
    second = [("d", "a", 3), ("c", "b", 1), ("e", "a", 2)]
    tasks, encoder = tasks_of(first, second), Encoder()
    results = evaluate_sts(encoder, tasks)
    assert [sorted(call) for call in encoder.calls] == [["a", "b", "c", "d", "e"]]
    for result, task in zip(results, tasks):
        assert result.task is task
        assert result.cosines.tolist() == pair_cosines(encode_distinct(Encoder(), task.pairs), task.pairs).tolist()
        assert result.score == spearman(result.cosines, [pair.score for pair in task.pairs])
        expected = scipy.stats.pearsonr(result.cosines, [pair.score for pair in task.pairs])
        assert result.pearson == pytest.approx(100 * expected.statistic)
        assert result.subtasks == {}
    assert results[0].score != results[1].score


def test_an_encoder_whose_cosines_are_the_gold_scores_has_a_perfect_score():
    angles = {f"angle {i}": math.pi * i / 10 for i in range(1, 10)}
    task = StsTask("angles", [ScoredPair("angle 0", name, math.cos(angle)) for name, angle in angles.items()])

    def encode(sentences):
        return np.array([[math.cos(a), math.sin(a)] for a in (angles.get(s, 0.0) for s in sentences)], np.float32)

    (result,) = evaluate_sts(encode, [task])
    assert result.score == 100
    np.testing.assert_allclose(result.cosines, [pair.score for pair in task.pairs], atol=1e-6)


@pytest.mark.parametrize(
    "vectors, message",
    [
        (np.zeros((3, 4)), "a zero or non-finite vector for 'a' or 'b'"),
        (np.full((3, 4), np.nan), "a zero or non-finite vector for 'a' or 'b'"),
        (np.full((3, 4), np.inf), "a zero or non-finite vector for 'a' or 'b'"),
        (np.eye(3, 4) + 1, "task 0: all 2 cosines are 0.857143, so the pairs have no order"),
    ],
)
def test_an_encoder_that_fails_is_named_with_what_it_returned(vectors, message):
    with pytest.raises(SempaError) as caught:
        evaluate_sts(lambda _: vectors.astype(np.float32), tasks_of([("a", "b", 1), ("a", "c", 2)]))
    assert message in str(caught.value)


def test_copies_of_one_vector_are_refused_whatever_their_lengths():
    """Their cosines differ from 1 by rounding, which would be ranked like any other difference."""
    vector = np.random.default_rng(0).standard_normal(64)

    def encode(sentences):
        return np.array([vector * (1 + len(sentence) / 7) for sentence in sentences], np.float32)

    pairs = [("a" * i, "b" * (9 - i), i % 3) for i in range(1, 9)]
    with pytest.raises(SempaError, match="all 8 cosines are 1, so the pairs have no order"):
        evaluate_sts(encode, tasks_of(pairs))


def test_gold_scores_that_are_all_the_same_are_refused():
    with pytest.raises(SempaError, match="task 0: all 2 gold scores are 3, so the pairs have no order"):
        evaluate_sts(Encoder(), tasks_of([("a", "b", 3), ("a", "c", 3)]))


def test_a_year_is_scored_over_all_pairs_and_by_sub_task(tmp_path):
    word = iter(map("word {}".format, range(1000)))
    parts = {name: [(next(word), next(word), (7 * i) % 5) for i in range(9)] for name in ("a", "b")}
    parts["c"], parts["d"] = [("x", "y", 1)], [("x", "z", 2), ("y", "z", 2)]
    (task,) = read_sts(write_year(tmp_path / "STS14", **parts))
    (result,) = evaluate_sts(Encoder(), [task])
    assert result.score == spearman(result.cosines, task.gold)
    part = slice(9, 18)
    assert list(result.subtasks) == ["a", "b", "c", "d"]
    assert result.subtasks["b"] == spearman(result.cosines[part], task.gold[part])
    # One pair has no correlation, and neither have pairs of one gold score.
    assert math.isnan(result.subtasks["c"])
    assert math.isnan(result.subtasks["d"])


def test_cosines_that_differ_by_rounding_alone_are_refused():
    task = StsTask("task", [ScoredPair("a", "b", i) for i in range(8)])
    with pytest.raises(SempaError, match="all 8 cosines are 1, so the pairs have no order"):
        score_sts(task, 1 - 1e-15 * np.arange(8))


# Another evaluator


@needs_sts
def test_mteb_finds_the_same_scores_for_the_same_embeddings():
    mteb = pytest.importorskip("mteb", reason="mteb is not installed")
    from datasets import Dataset
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder

    task = next(task for task in read_sts(DATA) if task.name == "STS-B dev")
    rng = np.random.default_rng(0)
    words = {word: rng.standard_normal(48) for pair in task.pairs for word in f"{pair.first} {pair.second}".split()}

    def encode(sentences):
        return np.array([3 + sum(words[word] for word in s.split()) for s in sentences]).astype(np.float32)

    class Model(AbsEncoder):
        mteb_model_meta = ModelMeta.create_empty({"name": "words/sum", "revision": "0"})
        model_prompts = None

        def __init__(self):
            pass

        def encode(self, inputs, **_):
            return encode([text for batch in inputs for text in batch["text"]])

    theirs = mteb.get_task("STSBenchmark")
    columns = {"sentence1": [p.first for p in task.pairs], "sentence2": [p.second for p in task.pairs]}
    theirs.dataset = {"default": {"test": Dataset.from_dict({**columns, "score": task.gold.tolist()})}}
    theirs.data_loaded = True
    (found,) = theirs.evaluate(Model(), split="test", encode_kwargs={"batch_size": 64}).values()
    (result,) = evaluate_sts(encode, [task])
    assert 20 < result.score < 99
    assert result.score == pytest.approx(100 * found["cosine_spearman"], abs=0.01)
    assert result.pearson == pytest.approx(100 * found["cosine_pearson"], abs=0.01)
