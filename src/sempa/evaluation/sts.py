"""Semantic textual similarity: the score of an encoder on gold-scored sentence pairs.

The score is Spearman's rank correlation × 100 between the cosines of the pairs' embeddings and their gold scores. For
STS12–16 it is taken over all scored pairs of a year together ("all" in SentEval). Pearson's correlation and the scores
of the sub-tasks stand beside it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sempa.data.sts import ScoredPair, StsTask, distinct_sentences
from sempa.errors import SempaError
from sempa.evaluation.statistics import bootstrap, pearson, spearman

Encode = Callable[[list[str]], np.ndarray]
"""Sentences → embeddings, float32 `[n, D]`."""

# Cosines that differ by less than this differ by rounding alone.
_SAME_COSINE = 1e-10


@dataclass(frozen=True, eq=False)
class StsResult:
    """An encoder's `score` (Spearman's ρ × 100) and `pearson` (r × 100) on a task, and the cosines of its pairs `[n]`.

    `subtasks` holds ρ × 100 of each sub-task; None where it does not exist: one pair, or one gold score for all.
    """

    task: StsTask
    score: float
    pearson: float
    subtasks: dict[str, float | None]
    cosines: np.ndarray


def evaluate_sts(encode: Encode, tasks: Sequence[StsTask]) -> list[StsResult]:
    """The scores of an encoder on each task; a sentence that several tasks share is encoded once.

    Raises `SempaError` as `encode_distinct`, `pair_cosines` and `score_sts` do.
    """
    vectors = encode_distinct(encode, [pair for task in tasks for pair in task.pairs])
    return [score_sts(task, pair_cosines(vectors, task.pairs)) for task in tasks]


def encode_distinct(encode: Encode, pairs: Sequence[ScoredPair]) -> dict[str, np.ndarray]:
    """The embedding `[D]` of every distinct sentence of the pairs, by one call of `encode`.

    Raises `SempaError` when `encode` returns another shape than `[sentences, D]`.
    """
    sentences = distinct_sentences(pairs)
    vectors = np.asarray(encode(sentences))
    if vectors.ndim != 2 or len(vectors) != len(sentences):
        raise SempaError(f"the encoder returned shape {vectors.shape}, expected [{len(sentences)}, D]")
    return dict(zip(sentences, vectors))


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
    # Copies of one vector, in float32 and of any length, have cosines that differ from 1 by rounding alone.
    if np.ptp(cosines) < _SAME_COSINE:
        raise SempaError(
            f"{task.name}: all {len(cosines):,} cosines are {cosines[0]:.6g}, so the pairs have no order; "
            "does the encoder give every sentence the same embedding?"
        )
    gold = task.gold
    try:
        score, linear = spearman(cosines, gold), pearson(cosines, gold)
    except SempaError as error:
        raise SempaError(f"{task.name}: {error}") from error
    subtasks: dict[str, float | None] = {}
    for name in dict.fromkeys(task.subtasks):
        own = np.array([subtask == name for subtask in task.subtasks])
        defined = np.ptp(cosines[own]) >= _SAME_COSINE and np.ptp(gold[own]) > 0
        subtasks[name] = spearman(cosines[own], gold[own]) if defined else None
    return StsResult(task, score, linear, subtasks, cosines)


def bootstrap_scores(result: StsResult, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """The score of `resamples` draws of the task's pairs: `statistics.bootstrap`, float64 `[resamples]`.

    The draws depend on the task's name and `seed` alone, so those of two encoders meet the same pairs.
    """
    return bootstrap(result.cosines, result.task.gold, resamples, (seed, *result.task.name.encode()))
