"""The seven STS sets in miniature."""

import random
from pathlib import Path

WORDS = ("a", "man", "woman", "dog", "cat", "sings", "sleeps", "runs", "red", "house", "small", "river", "the", "old")


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(3, 8))) + "."


def write_seven_sets(folder: Path) -> None:
    """Two sub-tasks a year, in each an unscored pair; several sets share sentences."""
    rng = random.Random(0)
    shared = [sentence(rng) for _ in range(6)]

    def rows(count):
        pairs = [(sentence(rng), rng.choice([sentence(rng), *shared])) for _ in range(count)]
        return [(first, second, f"{1 + (7 * i) % 9 / 2:g}") for i, (first, second) in enumerate(pairs)]

    for year in range(12, 17):
        (folder / f"STS{year}").mkdir()
        for part in ("news", "forum"):
            pairs = rows(9)
            gold = [*(score for *_, score in pairs), ""]
            inputs = [f"{first}\t{second}" for first, second, _ in [*pairs, (shared[0], shared[1], "")]]
            (folder / f"STS{year}" / f"STS.input.{part}.txt").write_text("\n".join(inputs) + "\n")
            (folder / f"STS{year}" / f"STS.gs.{part}.txt").write_text("\n".join(gold) + "\n")
    stsb = [f"g\tf\ty\t{i}\t{score}\t{first}\t{second}" for i, (first, second, score) in enumerate(rows(12))]
    (folder / "sts-dev.csv").write_text("\n".join(stsb) + "\n")
    sick = [f"{i}\t{first}\t{second}\t{score}\tNEUTRAL" for i, (first, second, score) in enumerate(rows(12))]
    header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
    (folder / "SICK_trial.txt").write_text("\n".join([header, *sick]) + "\n")
