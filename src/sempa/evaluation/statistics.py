"""Correlations of two series, their bootstrap intervals, and paired tests between two encoders or language models.

Correlations are × 100, as in the papers' tables. The bootstrap draws whole pairs (cosine and gold score together) with
replacement and ranks each draw anew (Efron & Tibshirani, *An Introduction to the Bootstrap*, 1993, chapters 13 and 16).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest, pearsonr, rankdata

from sempa.errors import SempaError


class Interval(NamedTuple):
    """The two ends of a 95 % interval, in the unit of its figure."""

    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Figure A against figure B: their `difference` A − B, its 95 % interval, and `p` of the claim "A beats B"."""

    difference: float
    interval: Interval
    p: float


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's ρ × 100 of two series `[n]`: Pearson's r of their ranks; ties share their average rank.

    Raises `SempaError` when the lengths differ, or a series has fewer than two values, is constant or holds a NaN.
    """
    return _rank_correlation(*_series(x, y))


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's r × 100 of two series `[n]`; raises `SempaError` as `spearman` does."""
    return 100 * float(pearsonr(*_series(x, y)).statistic)


def bootstrap(x: ArrayLike, y: ArrayLike, resamples: int = 1000, seed: int | Sequence[int] = 0) -> np.ndarray:
    """Spearman's ρ × 100 of `resamples` draws of n pairs from n, with replacement: float64 `[resamples]`.

    The draws depend on n and `seed` alone: the cosines of two encoders against the same gold scores meet the same pairs
    in every draw, which makes `compare` a paired test. A draw in which a series is constant is NaN.

    Raises `SempaError` as `spearman` does.
    """
    x, y = _series(x, y)
    rng = np.random.default_rng(seed)
    draws = (rng.integers(0, len(x), len(x)) for _ in range(resamples))
    return np.array([_rank_correlation(x[draw], y[draw]) for draw in draws])


def interval(values: np.ndarray) -> Interval:
    """The 95 % percentile interval of bootstrapped figures `[resamples]` (Efron & Tibshirani, § 13.3)."""
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return Interval(float(low), float(high))


def compare(a: float, b: float, a_values: np.ndarray, b_values: np.ndarray) -> Comparison:
    """Figure `a` against figure `b`, with their values on the same draws `[resamples]`.

    `p` = (1 + #{a* ≤ b*}) / (1 + resamples), the one-sided paired bootstrap test (Koehn 2004, *Statistical Significance
    Tests for Machine Translation Evaluation*, § 4): how often A does not beat B when the pairs are drawn anew. The two
    ones keep p at or above the least value that so many draws can show.
    """
    differences = a_values - b_values
    differences = differences[~np.isnan(differences)]
    p = (1 + np.count_nonzero(differences <= 0)) / (1 + len(differences))
    return Comparison(a - b, interval(differences), float(p))


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """The mean of values `[n]` and its standard error s / √n, s² with n − 1 (NaN for a single value)."""
    values = np.asarray(values, dtype=np.float64)
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else math.nan


def compare_accuracies(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Which of the same n questions are answered rightly, boolean `[n]`, by `base` and by `aligned`.

    Each has its accuracy and standard error. `change_stderr` is that of the mean of the n differences −1, 0 or 1, and
    `p` McNemar's exact two-sided test (1947): of the questions that one side alone answers, does either have more?
    """
    base, base_stderr = mean_and_error(before)
    aligned, aligned_stderr = mean_and_error(after)
    change, change_stderr = mean_and_error(after.astype(int) - before)
    gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
    return {
        "base": base,
        "base_stderr": base_stderr,
        "aligned": aligned,
        "aligned_stderr": aligned_stderr,
        "change": change,
        "change_stderr": change_stderr,
        "p": float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0,
    }


def _series(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, y = (np.asarray(values, dtype=np.float64) for values in (x, y))
    if x.ndim != 1 or x.shape != y.shape or len(x) < 2:
        raise SempaError(
            f"correlation of shapes {x.shape} and {y.shape}, expected two series of one length, at least 2"
        )
    for values in (x, y):
        if np.isnan(values).any():
            raise SempaError("correlation of a series with NaN, expected numbers")
        if (values == values[0]).all():
            raise SempaError(f"correlation of a constant series (all {len(x):,} values are {values[0]:g})")
    return x, y


def _rank_correlation(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's ρ × 100, NaN where a series is constant."""
    with np.errstate(invalid="ignore"):
        return 100 * float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])
