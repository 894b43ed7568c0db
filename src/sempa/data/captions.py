"""The built-in captions: triplets to train on and graded pairs to score with, in the CSV files beside this module.

A grammar made them (`experiments/captions/`). The scenes behind held-out triplets and pairs have words or combinations
of words that no training scene has.
"""

import csv
from pathlib import Path
from random import Random
from typing import Literal

from sempa.data.examples import ScoredPair, Triplet
from sempa.data.triplets import read_triplets
from sempa.errors import SempaError

_FOLDER = Path(__file__).parent


def caption_triplets(split: Literal["train", "heldout"], count: int | None = None, seed: int = 0) -> list[Triplet]:
    """The first `count` triplets of a split, or all (960 `train`, 200 `heldout`).

    Seed 0 keeps the order of the file; every other seed shuffles the file first, so that a smaller `count` is another
    sample of it. Raises `SempaError` when the file holds fewer.
    """
    path = _FOLDER / f"captions-{split}.csv"
    triplets, _ = read_triplets(path)
    if seed:
        Random(seed).shuffle(triplets)
    _check(count, len(triplets), path)
    return triplets[:count]


def caption_pairs(split: Literal["dev", "test"], count: int | None = None) -> list[ScoredPair]:
    """The first `count` pairs of a split, or all (300 `dev`, 600 `test`), scored 0–5, all grades equally often.

    They depend on no seed, so that the scores of different runs are comparable. Raises `SempaError` when the file holds
    fewer.
    """
    path = _FOLDER / f"captions-{split}.csv"
    with path.open(encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(stream)
        pairs = [ScoredPair(row["sentence1"], row["sentence2"], float(row["score"])) for row in rows]
    _check(count, len(pairs), path)
    return pairs[:count]


def _check(count: int | None, found: int, path: Path) -> None:
    if count is not None and not 0 <= count <= found:
        raise SempaError(f"{path.name}: {count:,} built-in captions asked for, expected 0 to {found:,}")
