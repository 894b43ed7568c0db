"""AUROC and its bootstrap against scipy and a count over all pairs; the stored figures against the stored scores."""

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
from auroc import HERE, SCORES, auroc, bootstrap_auroc, is_right, main, measure, without_sums
from hypothesis import assume, given
from hypothesis import strategies as st

from sempa import SempaError
from sempa.evaluation.statistics import interval
from sempa.io.streams import exit_code

CASES = st.lists(
    st.tuples(st.one_of(st.integers(-3, 3), st.floats(allow_nan=False)), st.booleans()), min_size=2, max_size=40
)


@given(cases=CASES)
def test_auroc_is_scipys_u_and_the_count_over_all_pairs(cases):
    scores, positive = zip(*cases)
    assume(0 < sum(positive) < len(positive))
    above = [s for s, is_positive in cases if is_positive]
    below = [s for s, is_positive in cases if not is_positive]
    u = scipy.stats.mannwhitneyu(above, below).statistic
    assert auroc(scores, positive) == pytest.approx(u / (len(above) * len(below)), abs=1e-12)
    won = sum(Fraction(a > b) + Fraction(a == b, 2) for a in above for b in below)
    assert auroc(scores, positive) == float(won / (len(above) * len(below)))


def test_auroc_of_perfect_of_reversed_and_of_constant_scores():
    positive = [False, True, False, True, True]
    assert auroc([0, 1, 0, 1, 1], positive) == 1
    assert auroc([0, -1, 0, -1, -1], positive) == 0
    assert auroc([7.0] * 5, positive) == 0.5
    # Of six pairs two are won and one is tied.
    assert auroc([3, 1, 2, 4, 2], positive) == pytest.approx(2.5 / 6)


def test_the_aurocs_interval_has_the_width_of_its_standard_error_and_narrows_with_more_cases():
    rng = np.random.default_rng(1)
    widths = []
    for size in (60, 960):
        positive = rng.random(size) < 0.5
        scores = rng.standard_normal(size) + positive
        value, (low, high) = auroc(scores, positive), interval(bootstrap_auroc(scores, positive))
        assert low < value < high
        # Hanley & McNeil 1982, equation 2, for scores of exponential tails: near enough for the normal ones.
        m, n = positive.sum(), size - positive.sum()
        q1, q2 = value / (2 - value), 2 * value**2 / (1 + value)
        error = math.sqrt((value * (1 - value) + (m - 1) * (q1 - value**2) + (n - 1) * (q2 - value**2)) / (m * n))
        assert high - low == pytest.approx(2 * 1.96 * error, rel=0.25)
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.35)


def test_draws_of_one_kind_have_no_auroc_and_the_same_seed_draws_the_same():
    values = bootstrap_auroc([0.1, 0.7, 0.4], [False, True, False], seed=3)
    assert np.isnan(values).any() and not np.isnan(values).all()
    assert np.nanmin(values) == np.nanmax(values) == 1
    assert not math.isnan(interval(values)[0])
    np.testing.assert_array_equal(values, bootstrap_auroc([0.1, 0.7, 0.4], [False, True, False], seed=3))
    assert not np.array_equal(values, bootstrap_auroc([0.1, 0.7, 0.4], [False, True, False], seed=4), equal_nan=True)


@pytest.mark.parametrize(
    ("scores", "positive", "message"),
    [
        ([1, 2], [True], r"AUROC of shapes \(2,\) and \(1,\), expected two series of one length"),
        ([[1, 2]], [[True, False]], "two series of one length"),
        ([1, math.nan], [True, False], "AUROC of a series with NaN"),
        ([1, 2], [True, True], "AUROC of 2 positives among 2, expected some and not all"),
        ([1, 2], [False, False], "AUROC of 0 positives among 2"),
        ([], [], "AUROC of 0 positives among 0"),
    ],
)
def test_what_has_no_auroc_is_refused(scores, positive, message):
    for function in (auroc, bootstrap_auroc):
        with pytest.raises(SempaError, match=message):
            function(scores, positive)


@pytest.mark.parametrize(
    ("answer", "right"),
    [("It is Rome.", True), ("ROME", True), ("Romeo", False), ("chrome", False), ("Milan", False), ("", False)],
)
def test_an_answer_is_right_when_a_known_one_stands_in_it_as_a_word(answer, right):
    assert is_right(answer, ["Rome", "Roma"]) == right


@pytest.mark.parametrize("name", ["uncertainty", "uncertainty-aligned"])
def test_the_stored_figures_follow_from_the_stored_scores(name):
    stored = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    assert stored["wrong"] == sum(row["wrong"] for row in stored["rows"])
    for score in SCORES:
        above, below = ([row[score] for row in stored["rows"] if row["wrong"] == kind] for kind in (True, False))
        expected = scipy.stats.mannwhitneyu(above, below).statistic / (len(above) * len(below))
        assert stored["auroc"][score]["auroc"] == pytest.approx(expected, abs=1e-12)
        low, high = stored["auroc"][score]["interval"]
        assert low < expected < high


def test_the_figures_say_how_far_the_semantic_score_is_ahead_and_leave_sums_out():
    questions = ["What is 2 and 2?", "What is half of ten?", "Which is the square root of nine?", *["Who?"] * 6]
    rows = [
        {"question": question, "wrong": place % 2 == 1}
        | dict.fromkeys(SCORES, -(place % 2))
        | {"semantic": place % 2, "entropy": 0}
        for place, question in enumerate(questions)
    ]
    table = measure(rows)
    assert [table[name]["auroc"] for name in SCORES] == [1, 0, 0, 0.5]
    assert [table[name]["semantic_ahead_by"] for name in SCORES[1:]] == [1, 1, 0.5]
    assert table["amortised"]["semantic_ahead_interval"] == (1, 1)
    found = without_sums(rows)
    assert (found["questions"], found["wrong"]) == (6, 3)


def test_too_few_questions_are_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["auroc.py", "--questions", "3"])
    assert exit_code("program", main) == 2
    assert "--questions: found 3, expected a whole number from 4" in capsys.readouterr().err
