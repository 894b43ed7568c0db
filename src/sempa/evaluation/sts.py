"""Semantic textual similarity: the score of an encoder on gold-scored sentence pairs.

The score is Spearman's rank correlation × 100 between the cosines of the pairs' embeddings and their gold scores. For
STS12–16 it is taken over all scored pairs of a year together ("all" in SentEval).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import pearsonr

from sempa.data.sts import ScoredPair, StsTask, distinct_sentences
from sempa.errors import SempaError
from sempa.evaluation.statistics import bootstrap, spearman

# Cosines that differ by less than this differ by rounding alone, as those of copies of one float32 vector do.
_SAME_COSINE = 1e-10


@dataclass(frozen=True, eq=False)
class StsResult:
    """An encoder's `score` (Spearman's ρ × 100) and `pearson` (r × 100) on a task, and the cosines of its pairs `[n]`.

    `subtasks` holds ρ × 100 of each sub-task; NaN where it does not exist: one pair, or one gold score for all.
    """

    task: StsTask
    score: float
    pearson: float
    subtasks: dict[str, float]
    cosines: np.ndarray


def evaluate_sts(encode: Callable[[list[str]], np.ndarray], tasks: Sequence[StsTask]) -> list[StsResult]:
    """The scores of an encoder (sentences, each once, to `[n, D]`); raises what `pair_cosines` and `score_sts` do."""
    sentences = distinct_sentences(pair for task in tasks for pair in task.pairs)
    vectors = dict(zip(sentences, encode(sentences), strict=True))
    return [score_sts(task, pair_cosines(vectors, task.pairs)) for task in tasks]


def pair_cosines(vectors: Mapping[str, np.ndarray], pairs: Sequence[ScoredPair]) -> np.ndarray:
    """The cosine of each pair's embeddings, float64 `[n]`; raises `SempaError` for a zero or non-finite vector."""
    cosines = np.empty(len(pairs))
    for place, pair in enumerate(pairs):
        # Pair by pair, so that no second copy of all vectors is held in float64.
        first, second = (vectors[sentence].astype(np.float64) for sentence in (pair.first, pair.second))
        lengths = np.sqrt(first @ first) * np.sqrt(second @ second)
        if not 0 < lengths < np.inf:
            raise SempaError(f"the encoder returned a zero or non-finite vector for '{pair.first}' or '{pair.second}'")
        cosines[place] = first @ second / lengths
    return cosines


def score_sts(task: StsTask, cosines: np.ndarray) -> StsResult:
    """Spearman's ρ and Pearson's r × 100 of a task's cosines `[n]` against its gold scores, and ρ of its sub-tasks.

    Raises `SempaError` naming the task when all cosines are the same, or all gold scores are.
    """
    gold = task.gold
    if np.ptp(gold) == 0:
        raise SempaError(f"{task.name}: all {len(gold):,} gold scores are {gold[0]:g}, so the pairs have no order")
    if np.ptp(cosines) < _SAME_COSINE:
        found = f"all {len(cosines):,} cosines are {cosines[0]:.6g}, so the pairs have no order"
        raise SempaError(f"{task.name}: {found}; does the encoder give every sentence the same embedding?")
    parts = np.array([pair.subtask for pair in task.pairs])
    names = dict.fromkeys(pair.subtask for pair in task.pairs if pair.subtask)
    subtasks = {name: spearman(cosines[parts == name], gold[parts == name]) for name in names}
    return StsResult(task, spearman(cosines, gold), 100 * float(pearsonr(cosines, gold).statistic), subtasks, cosines)


def bootstrap_scores(result: StsResult, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """`statistics.bootstrap` of the task's pairs; the draws depend on its name and `seed`, not on the encoder."""
    return bootstrap(result.cosines, result.task.gold, resamples, (seed, *result.task.name.encode()))
