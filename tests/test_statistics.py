"""Correlations, bootstrap intervals and the paired test, against scipy and against counting by hand."""

import math
from fractions import Fraction

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given
from hypothesis import strategies as st

from sempa.evaluation.statistics import bootstrap, compare, interval, spearman

FEW_VALUES = st.integers(-3, 3).map(float)
SERIES = st.lists(st.tuples(FEW_VALUES, st.one_of(FEW_VALUES, st.floats(-1e6, 1e6))), min_size=2, max_size=30)
COARSE = st.lists(st.tuples(FEW_VALUES, st.integers(-999, 999)), min_size=2, max_size=30)


def two_series(points):
    x, y = map(list, zip(*points))
    assume(len(set(x)) > 1 and len(set(y)) > 1)
    return x, y


def noisy(size, noise, seed=0):
    """Gold scores in steps of 0.2, as the benchmarks have them, and cosines that follow them with some noise."""
    rng = np.random.default_rng(seed)
    gold = rng.integers(0, 26, size) / 5
    return np.tanh(gold + noise * rng.standard_normal(size)), gold


# The correlations


def ranks_by_hand(values):
    """Average ranks by counting: one more than the smaller values, plus half of the other equal ones."""
    return [sum(w < v for w in values) + (sum(w == v for w in values) + 1) / 2 for v in values]


def pearson_by_hand(x, y):
    """Σ (x − x̄)(y − ȳ) / √(Σ (x − x̄)² Σ (y − ȳ)²) in exact fractions up to the square root."""
    x, y = ([Fraction(v) - sum(map(Fraction, side)) / len(side) for v in side] for side in (x, y))
    covariance = sum(p * q for p, q in zip(x, y))
    square = covariance**2 / (sum(p * p for p in x) * sum(q * q for q in y))
    return math.copysign(100 * math.sqrt(square), covariance)


@given(points=SERIES)
def test_spearman_is_the_correlation_of_average_ranks(points):
    x, y = two_series(points)
    assert spearman(x, y) == pytest.approx(pearson_by_hand(ranks_by_hand(x), ranks_by_hand(y)), abs=1e-9)
    assert spearman(x, y) == pytest.approx(100 * scipy.stats.spearmanr(x, y).statistic, abs=1e-9)
    assert spearman(y, x) == pytest.approx(spearman(x, y), abs=1e-9)


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


@pytest.mark.parametrize("x, y", [([0.1, 0.1, 0.1], [1, 2, 3]), ([1, 2, 3], [2, 2, 2]), ([1], [1])])
def test_a_correlation_that_does_not_exist_is_nan(x, y):
    assert math.isnan(spearman(x, y))


# The bootstrap


def draws(size, resamples, seed):
    """The pairs of every draw, as NumPy's own generator picks them."""
    return np.random.default_rng(seed).integers(0, size, (resamples, size))


@pytest.mark.parametrize("size", [7, 40, 700])
def test_every_draw_has_the_correlation_that_scipy_finds_for_its_pairs(size):
    x, y = noisy(size, 1.5)
    x[1] = x[0]
    values = bootstrap(x, y, 25, seed=3)
    expected = [100 * scipy.stats.spearmanr(x[chosen], y[chosen]).statistic for chosen in draws(size, 25, 3)]
    np.testing.assert_allclose(values, expected, atol=1e-9)
    assert np.ptp(values) > 1


@given(points=COARSE)
def test_draws_of_a_few_tied_pairs_are_exact_and_those_without_a_correlation_are_nan(points):
    x, y = map(np.array, two_series(points))
    values = bootstrap(x, y, 10, 0)
    for value, chosen in zip(values, draws(len(x), 10, 0)):
        if np.ptp(x[chosen]) == 0 or np.ptp(y[chosen]) == 0:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(100 * scipy.stats.spearmanr(x[chosen], y[chosen]).statistic, abs=1e-6)


def test_the_interval_is_that_of_scipys_bootstrap():
    x, y = noisy(300, 2.0)
    found = interval(bootstrap(x, y, 2000, 1))
    expected = scipy.stats.bootstrap(
        (x, y),
        lambda a, b: 100 * scipy.stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval
    # Two sets of 2,000 draws place a percentile within an eighth of the interval's width.
    width = expected.high - expected.low
    assert 4 < width < 20
    assert found == pytest.approx((expected.low, expected.high), abs=width / 8)


def test_the_interval_holds_the_true_correlation_about_nineteen_times_in_twenty():
    rho, size, hits = 0.6, 200, 0
    # Of a bivariate normal distribution with correlation ρ, Spearman's is 6/π · asin(ρ/2).
    truth = 100 * 6 / math.pi * math.asin(rho / 2)
    rng = np.random.default_rng(5)
    for trial in range(200):
        x = rng.standard_normal(size)
        y = rho * x + math.sqrt(1 - rho**2) * rng.standard_normal(size)
        low, high = interval(bootstrap(x, y, 400, trial))
        hits += low <= truth <= high
    assert 180 <= hits <= 198


def test_the_seed_decides_the_draws_and_a_name_may_be_a_seed():
    x, y = noisy(50, 1.0)
    np.testing.assert_array_equal(bootstrap(x, y, 20, seed=(1, *b"STS12")), bootstrap(x, y, 20, seed=(1, *b"STS12")))
    assert (bootstrap(x, y, 20, seed=(1, *b"STS12")) != bootstrap(x, y, 20, seed=(1, *b"STS13"))).any()


def test_draws_without_a_correlation_do_not_move_the_interval():
    assert interval(np.array([math.nan, *range(101), math.nan])) == (2.5, 97.5)


# The paired test


def test_p_counts_the_draws_in_which_a_does_not_beat_b():
    a, b = np.array([5.0, 6.0, 7.0, 8.0, 9.0, math.nan]), np.array([4.0, 6.0, 9.0, 1.0, 1.0, 0.0])
    found = compare(7.0, 4.0, a, b)
    # Two of the five draws that count: one tie, one loss.
    assert found["p"] == pytest.approx((1 + 2) / (1 + 5))
    assert found["difference"] == 3.0
    assert found["interval"] == tuple(np.percentile([1, 0, -2, 7, 8], [2.5, 97.5]))


@pytest.mark.filterwarnings("ignore:All-NaN slice")
def test_without_a_draw_that_counts_there_is_a_difference_and_no_interval():
    found = compare(7.0, 4.0, np.array([math.nan]), np.array([1.0]))
    assert (found["difference"], found["p"]) == (3.0, 1.0)
    assert all(map(math.isnan, found["interval"]))


def test_an_encoder_does_not_beat_itself_nor_its_own_monotone_transform():
    x, y = noisy(400, 2.0)
    values = bootstrap(x, y, 200)
    same = compare(spearman(x, y), spearman(np.exp(x), y), values, bootstrap(np.exp(x), y, 200))
    assert same == {"difference": 0, "interval": (0, 0), "p": 1}


def test_the_test_is_paired_so_a_small_steady_gain_is_seen():
    """Both encoders err alike; their intervals overlap widely, yet the better one is better in nearly every draw."""
    rng = np.random.default_rng(7)
    gold = rng.integers(0, 26, 800) / 5
    shared = gold + 2.0 * rng.standard_normal(800)
    better, worse = shared + 0.1 * rng.standard_normal(800), shared + 0.7 * rng.standard_normal(800)
    a, b = bootstrap(better, gold, 500), bootstrap(worse, gold, 500)
    found = compare(spearman(better, gold), spearman(worse, gold), a, b)
    assert interval(a)[0] < interval(b)[1]
    assert found["p"] < 0.01
    assert found["interval"][0] > 0
    assert compare(spearman(worse, gold), spearman(better, gold), b, a)["p"] > 0.99
    unpaired = compare(spearman(better, gold), spearman(worse, gold), a, bootstrap(worse, gold, 500, seed=1))
    width = [np.ptp(part["interval"]) for part in (found, unpaired)]
    assert width[0] < 0.6 * width[1]


def test_p_is_uniform_when_neither_encoder_is_better():
    rng = np.random.default_rng(11)
    ps = []
    for trial in range(200):
        gold = rng.standard_normal(60)
        one, two = (gold + rng.standard_normal(60) for _ in range(2))
        figures = [spearman(side, gold) for side in (one, two)]
        ps.append(compare(*figures, *(bootstrap(side, gold, 99, trial) for side in (one, two)))["p"])
    # Within four standard errors of a share of 10 % and of 50 % of 200.
    assert 20 - 17 <= sum(p <= 0.1 for p in ps) <= 20 + 17
    assert 100 - 28 <= sum(p <= 0.5 for p in ps) <= 100 + 28
