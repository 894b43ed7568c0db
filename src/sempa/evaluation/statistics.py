"""How alike two series of numbers are ordered, and how far that would move with other pairs.

Correlations are × 100, as in the papers' tables. The bootstrap draws whole pairs (cosine and gold score together) with
replacement and computes the correlation of each draw anew, ranks included (Efron & Tibshirani, *An Introduction to the
Bootstrap*, 1993, chapters 13 and 16).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from sempa.errors import SempaError

# Draws are made and ranked so many numbers at a time: enough for NumPy to be quick, few enough for the cache.
_BLOCK = 500_000


class Interval(NamedTuple):
    """The two ends of a 95 % interval, in the unit of the figure it belongs to."""

    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A against B on the same draws: the `difference` A − B, its 95 % interval, and `p` of the claim "A beats B"."""

    difference: float
    interval: Interval
    p: float


def spearman(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Spearman's ρ × 100 of two series `[n]`: Pearson's r of their ranks; ties share their average rank.

    Raises `SempaError` when the lengths differ, or a series has fewer than two values, is constant or holds a NaN.
    """
    x, y = _series(x, y)
    return _correlation(rankdata(x), rankdata(y))


def pearson(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> float:
    """Pearson's r × 100 of two series `[n]`: Σ (x − x̄)(y − ȳ) / √(Σ (x − x̄)² Σ (y − ȳ)²).

    Raises `SempaError` as `spearman` does, and for an infinite value.
    """
    x, y = _series(x, y)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise SempaError("correlation of a series with an infinite value, expected finite numbers")
    return _correlation(_scaled(x), _scaled(y))


def bootstrap(
    x: Sequence[float] | np.ndarray,
    y: Sequence[float] | np.ndarray,
    resamples: int = 1000,
    seed: int | Sequence[int] = 0,
    ranks: bool = True,
) -> np.ndarray:
    """The correlation × 100 of `resamples` draws of n pairs from n, with replacement: float64 `[resamples]`.

    It is Spearman's with `ranks`, where every draw is ranked anew, else Pearson's. The draws depend on n and `seed`
    alone: two encoders' cosines against the same gold scores meet the same pairs in every draw, which is what makes
    `compare` a paired test. A draw in which a series is constant (or spreads over less than 10⁻¹² of its whole spread)
    has no correlation; it is NaN and passed over later.

    Raises `SempaError` as `spearman` or `pearson` does, and for fewer than one draw.
    """
    # The whole series' figure is not needed, but what has none has no draws of it either.
    (spearman if ranks else pearson)(x, y)
    if resamples < 1:
        raise SempaError(f"resamples: found {resamples}, expected at least 1")
    x, y = _series(x, y)
    size = len(x)
    rng = np.random.default_rng(seed)
    ranked = [_Ranks(x), _Ranks(y)] if ranks else []
    values = np.empty(resamples)
    rows = max(1, _BLOCK // size)
    for begin in range(0, resamples, rows):
        draws = min(rows, resamples - begin)
        chosen = rng.integers(0, size, (draws, size)) + size * np.arange(draws)[:, None]
        # How often each pair was drawn stands for the draw: a sum over it is a sum over all pairs with these weights.
        counts = np.bincount(chosen.ravel(), minlength=draws * size).reshape(draws, size).astype(np.float64)
        a, b = (side(counts) for side in ranked) if ranks else (_scaled(x), _scaled(y))
        values[begin : begin + draws] = _weighted_correlations(counts, a, b)
    return values


def interval(values: np.ndarray) -> Interval:
    """The 95 % percentile interval of bootstrapped figures `[resamples]` (Efron & Tibshirani, § 13.3)."""
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return Interval(float(low), float(high))


def compare(a: float, b: float, a_values: np.ndarray, b_values: np.ndarray) -> Comparison:
    """Figure `a` against figure `b`, with their values on the same draws `[resamples]`.

    `p` = (1 + #{a* ≤ b*}) / (1 + resamples), the one-sided paired bootstrap test (Koehn 2004, *Statistical Significance
    Tests for Machine Translation Evaluation*, § 4): how often A does not beat B when the pairs are drawn anew. The two
    ones keep it above zero, since so many draws cannot show less.
    """
    differences = a_values - b_values
    differences = differences[~np.isnan(differences)]
    p = (1 + np.count_nonzero(differences <= 0)) / (1 + len(differences))
    return Comparison(a - b, interval(differences), float(p))


class _Ranks:
    """The average ranks of a fixed series within any draw of it, from the counts of the draw and without sorting.

    A value's rank is the number of smaller ones drawn, plus half of the equal ones, plus a half.
    """

    def __init__(self, values: np.ndarray) -> None:
        _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
        self.group = group
        self.order = np.argsort(group, kind="stable")
        self.starts = np.cumsum(sizes) - sizes

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        """Counts `[draws, n]` → ranks `[draws, n]`, also of what was not drawn."""
        drawn = np.add.reduceat(counts[:, self.order], self.starts, axis=1)
        return (np.cumsum(drawn, axis=1) - (drawn - 1) / 2)[:, self.group]


def _series(x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
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


def _scaled(values: np.ndarray) -> np.ndarray:
    """The series around zero and within ±1, so that squares neither overflow nor vanish."""
    values = values / np.abs(values).max()
    centred = values - values.mean()
    return centred / np.abs(centred).max()


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    return float(_weighted_correlations(np.ones((1, len(x))), x, y)[0])


def _weighted_correlations(counts: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Pearson's r × 100 of x and y, `[n]` or `[draws, n]`, under weights `[draws, n]`; NaN where one is flat."""
    size = counts.sum(1, keepdims=True)
    a, b = (values - (counts * values).sum(1, keepdims=True) / size for values in (x, y))
    weighted = counts * a
    covariance, x_variance = (weighted * b).sum(1), (weighted * a).sum(1)
    y_variance = (counts * b * b).sum(1)
    # A constant series leaves nothing but rounding.
    flat = np.minimum(x_variance, y_variance) <= 1e-24 * size[:, 0]
    with np.errstate(invalid="ignore", divide="ignore"):
        values = 100 * covariance / np.sqrt(x_variance * y_variance)
    return np.where(flat, np.nan, np.clip(values, -100, 100))
