"""The STS benchmarks are read as they were published, and an encoder's score on them is Spearman's ρ × 100."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sempa import SempaError
from sempa.data import ScoredPair
from sempa.sts import StsTask, evaluate_sts, pair_cosines, read_sts, spearman

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "sts"
needs_sts = pytest.mark.skipif(not DATA.is_dir(), reason="the STS benchmarks are not beside the repository")

STSB = "main-captions\tMSRvid\t2012test\t{i:04}\t{score}\tA {i} sings.\tThe {i} sang."
SICK_HEADER = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
SICK = "{i}\tA {i} sings\tThe {i} sang\t{score}\tNEUTRAL"


def write(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="")
    return path


def write_year(folder, **subtasks):
    for name, rows in subtasks.items():
        write(folder / f"STS.input.{name}.txt", *(f"{first}\t{second}" for first, second, _ in rows))
        write(folder / f"STS.gs.{name}.txt", *(score for *_, score in rows))
    return folder


def rows(line, count=3):
    return [line.format(i=i, score=i / 2) for i in range(count)]


def benchmark(folder):
    for year in (16, 12):
        write_year(folder / f"STS{year}", b=[("a", "b", "1.5"), ("c", "d", "")], a=[("e", "f", 4), (" g", "h ", "0")])
    for split in ("train", "dev", "test"):
        write(folder / "STSBenchmark" / f"sts-{split}.csv", *rows(STSB))
        name = {"dev": "SICK_trial.txt", "test": "SICK_test_annotated.txt"}.get(split, "SICK_train.txt")
        write(folder / "SICK" / name, SICK_HEADER, *rows(SICK))
    return folder


def names(tasks):
    return [task.name for task in tasks]


def error_of(path, *splits):
    with pytest.raises(SempaError) as caught:
        read_sts(path, splits) if splits else read_sts(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


# What is read


def test_tasks_come_in_the_order_of_the_table_without_the_train_splits(tmp_path):
    assert names(read_sts(benchmark(tmp_path))) == [
        *("STS12", "STS16", "STS-B dev", "STS-B test", "SICK trial", "SICK test")
    ]
    assert names(read_sts(tmp_path, ["train"])) == ["STS12", "STS16", "STS-B train", "SICK train"]
    assert names(read_sts(str(tmp_path), ("test", "dev"))) == ["STS12", "STS16", "STS-B dev", "STS-B test", "SICK test"]


def test_a_year_is_its_subtasks_one_after_another_without_unscored_pairs(tmp_path):
    (task,) = read_sts(benchmark(tmp_path) / "STS16")
    assert task == StsTask(
        "STS16", [ScoredPair("e", "f", 4.0), ScoredPair("g", "h", 0.0), ScoredPair("a", "b", 1.5)], unscored=1
    )


def test_each_benchmarks_folder_and_file_can_be_given_itself(tmp_path):
    benchmark(tmp_path)
    (stsb,) = read_sts(tmp_path / "STSBenchmark", ["dev"])
    (sick,) = read_sts(tmp_path / "SICK", ["trial"])
    pairs = [(f"A {i} sings", f"The {i} sang", i / 2) for i in range(3)]
    assert sick == StsTask("SICK trial", [ScoredPair(*pair) for pair in pairs])
    assert stsb == StsTask("STS-B dev", [ScoredPair(f"{a}.", f"{b}.", score) for a, b, score in pairs])
    assert read_sts(tmp_path / "STSBenchmark" / "sts-dev.csv") == [stsb]
    assert read_sts(tmp_path / "SICK" / "SICK_trial.txt") == [sick]


def test_subtasks_are_taken_in_the_order_of_their_names_not_of_the_disk(tmp_path):
    for name in "dbhfaceg":
        write_year(tmp_path / "STS15", **{name: [(name, "x", 1)]})
    assert "".join(pair.first for pair in read_sts(tmp_path)[0].pairs) == "abcdefgh"


def test_the_folder_layout_of_senteval_is_found_two_levels_down(tmp_path):
    for year in (16, 13, 12):
        write_year(tmp_path / "STS" / f"STS{year}-en-test", x=[("a", "b", 1), ("c", "d", 2)])
    assert names(read_sts(tmp_path)) == ["STS12", "STS13", "STS16"]


def test_the_current_folder_has_its_own_name(tmp_path, monkeypatch):
    monkeypatch.chdir(write_year(tmp_path / "STS14", x=[("a", "b", 1), ("c", "d", 2)]))
    assert names(read_sts(".")) == ["STS14"]


def test_annotated_sick_test_pairs_take_the_place_of_those_without_scores(tmp_path):
    write(tmp_path / "SICK_test.txt", "pair_ID\tsentence_A\tsentence_B", "1\ta\tb")
    write(tmp_path / "SICK_test_annotated.txt", SICK_HEADER, *rows(SICK))
    (task,) = read_sts(tmp_path)
    assert (task.name, len(task.pairs)) == ("SICK test", 3)


def test_quotes_are_plain_characters_and_the_sources_of_a_row_are_passed_over(tmp_path):
    lines = [
        'g\tf\ty\t1\t5\t"Yes, she said.\tHe said "yes\tsource 1\tsource 2',
        'g\tf\ty\t2\t0\tU+2028 is\u2028no end\t"No"\r',
    ]
    (sick,) = read_sts(
        write(tmp_path / "SICK_trial.txt", SICK_HEADER, '1\t"a\tb"\t1\tNEUTRAL', '2\t"c"\td\t2\tNEUTRAL')
    )
    assert sick.pairs == [ScoredPair('"a', 'b"', 1.0), ScoredPair('"c"', "d", 2.0)]
    (task,) = read_sts(write(tmp_path / "sts-dev.csv", *lines))
    assert task.pairs == [
        ScoredPair('"Yes, she said.', 'He said "yes', 5.0),
        ScoredPair("U+2028 is\u2028no end", '"No"', 0.0),
    ]


def test_a_single_file_of_pairs_and_scores_is_a_task_of_its_name(tmp_path):
    pairs = [('"He", the man', "A man", 4.25), ("x", "y", 0)]
    keys = ("sentence1", "sentence2", "score")
    jsonl = [json.dumps(dict(zip(keys, pair))) for pair in pairs] + [
        '{"sentence1": "u", "sentence2": "v", "score": null}'
    ]
    write(tmp_path / "mine.jsonl", *jsonl)
    write(tmp_path / "mine.csv", "score,sentence1,sentence2", '4.25,"""He"", the man",A man', "0,x,y", ",u,v")
    write(tmp_path / "mine.tsv", "\t".join(keys), *("\t".join(map(str, pair)) for pair in pairs), "u\tv\t")
    (tmp_path / "mine.csv.gz").write_bytes(gzip.compress((tmp_path / "mine.csv").read_bytes()))
    for suffix in ("jsonl", "csv", "tsv", "csv.gz"):
        assert read_sts(tmp_path / f"mine.{suffix}") == [StsTask("mine", [ScoredPair(*pair) for pair in pairs], 1)]


@needs_sts
def test_the_published_benchmarks_have_their_published_sizes():
    sizes = {task.name: (len(task.pairs), task.unscored) for task in read_sts(DATA)}
    assert list(sizes.items()) == [
        ("STS12", (3108, 0)),
        ("STS13", (1500, 0)),
        ("STS14", (3750, 0)),
        ("STS15", (3000, 5500)),
        ("STS16", (1186, 7997)),
        ("STS-B dev", (1500, 0)),
        ("SICK trial", (500, 0)),
    ]
    assert [len(task.pairs) for task in read_sts(DATA, ["train"])[5:]] == [5749, 4500]


# What is refused


def test_a_folder_without_tasks_is_told_what_was_expected(tmp_path):
    benchmark(tmp_path / "all")
    message = error_of(tmp_path / "all" / "SICK", "dev")
    assert f"{tmp_path / 'all' / 'SICK'}: no STS task found" in message
    for expected in ("STS12 to STS16", "STS.input.*.txt", "sts-dev.csv", "SICK_trial.txt", "splits asked for: dev"):
        assert expected in message
    assert "no such file" in error_of(tmp_path / "absent")
    assert "unknown split 'valid', expected some of train, dev, trial, test" in error_of(tmp_path, "dev", "valid")


def test_the_same_task_twice_is_refused(tmp_path):
    for folder in ("STS12", "STS12-old"):
        write_year(tmp_path / folder, x=[("a", "b", 1), ("c", "d", 2)])
    message = error_of(tmp_path)
    assert f"STS12 is there twice, in {tmp_path / 'STS12'} and in {tmp_path / 'STS12-old'}" in message


def test_inputs_and_gold_scores_of_different_length_are_refused(tmp_path):
    folder = write_year(tmp_path / "STS12", x=[("a", "b", 1), ("c", "d", 2)])
    write(folder / "STS.gs.x.txt", 1, 2, "")
    assert f"{folder / 'STS.input.x.txt'}: 2 pairs, but STS.gs.x.txt has 3 scores" in error_of(tmp_path)
    (folder / "STS.gs.x.txt").unlink()
    assert f"{folder / 'STS.gs.x.txt'}: no such file" in error_of(tmp_path)


@pytest.mark.parametrize("score", ["high", "nan", "inf", "1,5"])
def test_a_score_that_is_no_number_is_located(tmp_path, score):
    told = f":2: score '{score}', expected a number"
    year = write_year(tmp_path / "STS12", x=[("a", "b", 1), ("c", "d", score)])
    assert f"STS.input.x.txt{told}" in error_of(year)
    assert f"sts-dev.csv{told}" in error_of(
        write(tmp_path / "sts-dev.csv", *rows(STSB, 1), STSB.format(i=1, score=score))
    )
    sick = write(tmp_path / "SICK_trial.txt", SICK_HEADER, SICK.format(i=1, score=score))
    assert f"SICK_trial.txt{told}" in error_of(sick)


def test_a_row_of_the_wrong_width_is_located(tmp_path):
    year = write_year(tmp_path / "STS12", x=[("a", "b", 1), ("c", "d\te", 2)])
    assert "STS.input.x.txt:2: 3 tab-separated columns, expected 2" in error_of(year)
    stsb = write(tmp_path / "sts-dev.csv", "a,b,c,d,e,f,g")
    assert "sts-dev.csv:1: 1 tab-separated columns, expected 7" in error_of(stsb)
    sick = write(tmp_path / "SICK_trial.txt", SICK_HEADER, *rows(SICK), "4\ta\tb")
    assert "SICK_trial.txt:5: 3 columns, expected 5" in error_of(sick)
    mine = write(tmp_path / "mine.csv", "sentence1,sentence2,score", "a,b,1", "a,b")
    assert "mine.csv:3: 2 columns, expected 3" in error_of(mine)


def test_a_wrong_header_an_empty_sentence_and_a_lone_pair_are_refused(tmp_path):
    wrong = write(tmp_path / "wrong.csv", "sentence_1,sentence2,score", "a,b,1")
    assert "expected sentence1, sentence2, score; nearest: 'sentence_1' for sentence1" in error_of(wrong)
    empty = write(tmp_path / "empty.csv", "sentence1,sentence2,score", "a, ,1", "a,b,2")
    assert "empty.csv:2: an empty sentence, expected two sentences" in error_of(empty)
    lone = write(tmp_path / "lone.csv", "sentence1,sentence2,score", "a,b,1", "a,c,")
    assert "lone.csv: 1 scored pairs, expected at least 2" in error_of(lone)


# The score


def ranks_by_hand(values):
    """Average ranks by counting: one more than the smaller values, plus half of the other equal ones."""
    return [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]


def spearman_by_hand(x, y):
    a, b = ranks_by_hand(x), ranks_by_hand(y)
    mean = (len(x) + 1) / 2
    covariance = math.fsum((p - mean) * (q - mean) for p, q in zip(a, b))
    variances = (math.fsum((p - mean) ** 2 for p in side) for side in (a, b))
    return 100 * covariance / math.sqrt(math.prod(variances))


FEW_VALUES = st.integers(-3, 3).map(float)
SERIES = st.lists(st.tuples(FEW_VALUES, st.one_of(FEW_VALUES, st.floats(-1e6, 1e6))), min_size=2, max_size=30)


def two_series(points):
    x, y = map(list, zip(*points))
    assume(len(set(x)) > 1 and len(set(y)) > 1)
    return x, y


@settings(deadline=None)
@given(points=SERIES)
def test_spearman_is_the_correlation_of_average_ranks(points):
    x, y = two_series(points)
    assert spearman(x, y) == pytest.approx(spearman_by_hand(x, y), abs=1e-9)
    assert spearman(y, x) == pytest.approx(spearman(x, y), abs=1e-9)


@settings(deadline=None)
@given(points=SERIES)
def test_spearman_sees_the_order_alone(points):
    x, y = two_series(points)
    assert spearman([math.atan(v) ** 3 for v in x], y) == spearman(x, y)
    assert spearman([-v for v in x], y) == pytest.approx(-spearman(x, y), abs=1e-9)
    assert -100 <= spearman(x, y) <= 100
    assert spearman(x, x) == pytest.approx(100)


def test_spearman_of_a_known_case_with_ties():
    # Ranks 1, 2.5, 2.5, 4 against 1, 2, 3, 4: covariance 4.5, variances 4.5 and 5.
    assert spearman([0, 1, 1, 5], [1, 2, 3, 4]) == pytest.approx(100 * 4.5 / math.sqrt(4.5 * 5))


@pytest.mark.parametrize(
    "x, y, told",
    [
        ([1, 1, 1], [1, 2, 3], "constant series (all 3 values are 1)"),
        ([1, 2, 3], [2, 2, 2], "constant series (all 3 values are 2)"),
        ([1, math.nan, 3], [1, 2, 3], "a series with NaN"),
        ([1, 2], [1, 2, 3], "shapes (2,) and (3,), expected two series of one length"),
        ([1], [1], "at least 2"),
    ],
)
def test_a_rank_correlation_that_does_not_exist_is_refused(x, y, told):
    with pytest.raises(SempaError) as caught:
        spearman(x, y)
    assert told in str(caught.value)


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
PAIRS = st.lists(st.builds(ScoredPair, WORDS, WORDS, FEW_VALUES), min_size=1, max_size=20)


@settings(deadline=None)
@given(pairs=PAIRS, scale=st.sampled_from([1e-30, 1.0, 1e30]))
def test_cosines_are_float64_of_vectors_of_any_length_and_each_sentence_is_encoded_once(pairs, scale):
    encoder = Encoder(scale)
    cosines = pair_cosines(encoder, pairs)
    (asked,) = encoder.calls
    assert len(asked) == len(set(asked))
    assert set(asked) == {s for p in pairs for s in (p.first, p.second)}
    vectors = dict(zip(asked, Encoder(scale)(asked).astype(np.float64)))
    assert cosines.dtype == np.float64
    for cosine, pair in zip(cosines, pairs):
        a, b = vectors[pair.first], vectors[pair.second]
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
        assert result.cosines.tolist() == pair_cosines(Encoder(), task.pairs).tolist()
        assert result.score == spearman(result.cosines, [pair.score for pair in task.pairs])
    assert results[0].score != results[1].score
    assert evaluate_sts(encoder, []) == []


def test_an_encoder_whose_cosines_are_the_gold_scores_has_a_perfect_score():
    angles = {f"angle {i}": math.pi * i / 10 for i in range(1, 10)}
    task = StsTask("angles", [ScoredPair("angle 0", name, math.cos(angle)) for name, angle in angles.items()])

    def encode(sentences):
        return np.array([[math.cos(a), math.sin(a)] for a in (angles.get(s, 0.0) for s in sentences)], np.float32)

    (result,) = evaluate_sts(encode, [task])
    assert result.score == 100
    np.testing.assert_allclose(result.cosines, [pair.score for pair in task.pairs], atol=1e-6)


@pytest.mark.parametrize(
    "vectors, told",
    [
        (np.zeros((3, 4)), "a zero or non-finite vector for 'a' or 'b'"),
        (np.full((3, 4), np.nan), "a zero or non-finite vector for 'a' or 'b'"),
        (np.full((3, 4), np.inf), "a zero or non-finite vector for 'a' or 'b'"),
        (np.ones((2, 4)), "the encoder returned shape (2, 4), expected [3, D]"),
        (np.ones(3), "the encoder returned shape (3,), expected [3, D]"),
        (np.eye(3, 4) + 1, "task 0: rank correlation of a constant series"),
    ],
)
def test_an_encoder_that_fails_is_told_how(vectors, told):
    with pytest.raises(SempaError) as caught:
        evaluate_sts(lambda _: vectors.astype(np.float32), tasks_of([("a", "b", 1), ("a", "c", 2)]))
    assert told in str(caught.value)
