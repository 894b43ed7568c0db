"""Correlations of two series, their bootstrap intervals, and paired tests between two encoders or language models.

Correlations are × 100, as in the papers' tables. The bootstrap draws whole pairs (cosine and gold score together) with
replacement and ranks each draw anew (Efron & Tibshirani, *An Introduction to the Bootstrap*, 1993, chapters 13 and 16).
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest, rankdata, sem


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's ρ × 100 of two series `[n]`; ties share their average rank, and a constant series gives NaN."""
    x, y = (ranks - ranks.mean() for ranks in (rankdata(x), rankdata(y)))
    with np.errstate(invalid="ignore"):
        return 100 * float(x @ y / np.sqrt((x @ x) * (y @ y)))


def bootstrap(x: np.ndarray, y: np.ndarray, resamples: int = 1000, seed: int | Sequence[int] = 0) -> np.ndarray:
    """Spearman's ρ × 100 of `resamples` draws of n pairs from n, with replacement: float64 `[resamples]`.

    The draws depend on n and `seed` alone: the cosines of two encoders against the same gold scores meet the same pairs
    in every draw, which makes `compare` a paired test. A draw in which a series is constant is NaN.
    """
    rng = np.random.default_rng(seed)
    draws = (rng.integers(0, len(x), len(x)) for _ in range(resamples))
    return np.array([spearman(x[draw], y[draw]) for draw in draws])


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of bootstrapped figures `[resamples]` (Efron & Tibshirani, § 13.3)."""
    return tuple(np.nanpercentile(values, (2.5, 97.5)).tolist())


def compare(a: float, b: float, a_values: np.ndarray, b_values: np.ndarray) -> dict:
    """Figure `a` against figure `b`, with their values on the same draws `[resamples]`.

    Returns the `difference` a − b, its 95 % `interval`, and `p` = (1 + #{a* ≤ b*}) / (1 + resamples), the one-sided
    paired bootstrap test (Koehn 2004, *Statistical Significance Tests for Machine Translation Evaluation*, § 4): how
    often A does not beat B when the pairs are drawn anew. Draws with a NaN do not count; the added 1s keep p at or
    above the least value that so many draws can show.
    """
    differences = a_values - b_values
    p = (1 + np.count_nonzero(differences <= 0)) / (1 + np.count_nonzero(~np.isnan(differences)))
    return {"difference": a - b, "interval": interval(differences), "p": float(p)}


def standard_error(values: np.ndarray) -> float:
    """The standard error of the mean of values `[n]`, NaN for one value."""
    return float(sem(values)) if len(values) > 1 else math.nan


def compare_accuracies(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Compare the accuracies of `base` and `aligned` on the same n questions; booleans `[n]`, true where correct.

    Returns each side's accuracy and their `change`, each with its standard error (paired for the change), and `p` of
    McNemar's exact two-sided test (1947) on the questions that only one side answers correctly.
    """
    before, after = before.astype(float), after.astype(float)
    figures = {}
    for name, values in {"base": before, "aligned": after, "change": after - before}.items():
        figures[name], figures[f"{name}_stderr"] = float(values.mean()), standard_error(values)
    gained, lost = int((after > before).sum()), int((after < before).sum())
    return {**figures, "p": float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0}
