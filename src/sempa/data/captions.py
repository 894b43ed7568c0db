"""The built-in captions: triplets to train on and graded pairs to score with, in the CSV files beside this module.

A grammar made them (`experiments/captions/`). The scenes behind held-out triplets and pairs have words or combinations
of words that no training scene has.
"""

from pathlib import Path
from random import Random
from typing import Literal

from sempa.data.sts import ScoredPair, read_sts
from sempa.data.triplets import Triplet, read_triplets

_FOLDER = Path(__file__).parent


def caption_triplets(split: Literal["train", "heldout"], count: int | None = None, seed: int = 0) -> list[Triplet]:
    """The first `count` triplets of a split, or all (960 `train`, 200 `heldout`).

    Seed 0 keeps the order of the file; every other seed shuffles the file first, so that a smaller `count` is another
    sample of it.
    """
    triplets, _ = read_triplets(_FOLDER / f"captions-{split}.csv")
    if seed:
        Random(seed).shuffle(triplets)
    return triplets[:count]


def caption_pairs(split: Literal["dev", "test"], count: int | None = None) -> list[ScoredPair]:
    """The first `count` pairs of a split, or all (300 `dev`, 600 `test`), scored 0–5, all grades equally often.

    They depend on no seed, so that the scores of different runs are comparable.
    """
    return read_sts(_FOLDER / f"captions-{split}.csv")[0].pairs[:count]
