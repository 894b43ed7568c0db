"""The shapes that data has on its way: a preference triplet and a pair of sentences with a gold score."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Triplet:
    """One preference: as a paraphrase of `sentence`, `chosen` (an entailment) beats `rejected` (a contradiction).

    `line` is the 1-based line of the file it came from (0 when it was made, not read). `neutral` is a sentence that
    neither follows from `sentence` nor contradicts it, "" where none is known: a ranking puts it between the two.
    """

    sentence: str
    chosen: str
    rejected: str
    line: int = 0
    neutral: str = ""


@dataclass(frozen=True)
class ScoredPair:
    """Two sentences and their gold similarity (on the scale of their task, mostly 0–5)."""

    first: str
    second: str
    score: float


def distinct_sentences(pairs: Iterable[ScoredPair]) -> list[str]:
    """Every sentence of the pairs once, in the order of first appearance."""
    return list(dict.fromkeys(sentence for pair in pairs for sentence in (pair.first, pair.second)))
