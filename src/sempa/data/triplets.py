"""Preference triplets from a file, streamed; every row that is left out is counted and the first located.

A file holds triplets (`sent0,sent1,hard_neg`) or labelled NLI pairs (`sentence1, sentence2, gold_label` or `premise,
hypothesis, label`), in any form that `sempa.io.rows` reads; its columns say which.
"""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal

from sempa.errors import SempaError
from sempa.io.rows import Names, Record, many, read_records

# Why a row, or all rows of a premise, make no triplet.
EMPTY, REPEATED, EQUAL = "with an empty field", "repeated", "with chosen = rejected"
UNLABELLED, INCOMPLETE = "without a gold label", "premises without an entailment or without a contradiction"
LABELS = ("entailment", "neutral", "contradiction")
_CODES = dict(zip("012", LABELS))
_NO_LABEL = ("-", "-1", "")

TRIPLETS = ("sent0", "sent1", "hard_neg")
LABELLED = (("sentence1", "sentence2", "gold_label"), ("premise", "hypothesis", "label"))


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


def read_triplets(path: str | Path, *, combinations: bool = False) -> tuple[list[Triplet], str]:
    """The triplets of a file in their order, and a line that says how many there are and what was left out.

    Labelled NLI gives one triplet per premise (its first entailment and first contradiction), or with `combinations`
    every entailment × contradiction. The premise's neutral hypotheses are added in turn, and `Triplet.line` is the
    entailment's line. Sentences are stripped, and line feeds in them become blanks. Of repeated triplets the
    first is kept.

    Raises `SempaError` when the file cannot be read in one of the layouts, or when no triplet is left.
    """
    path = Path(path)
    layout, records = read_records(path, (TRIPLETS, *LABELLED))
    # Why rows make no triplet: how many for each reason, and the line of the first.
    left_out: dict[str, tuple[int, int]] = {}
    rows = _usable(path, records, layout, left_out)
    if layout == TRIPLETS:
        found = (Triplet(*values, line) for line, values in rows)
    else:
        found = _paired(rows, left_out, combinations)
    triplets: dict[tuple[str, ...], Triplet] = {}
    for triplet in found:
        words = (triplet.sentence, triplet.chosen, triplet.rejected)
        if words in triplets:
            _leave_out(left_out, REPEATED, triplet.line)
        elif triplet.chosen == triplet.rejected:
            _leave_out(left_out, EQUAL, triplet.line)
        else:
            triplets[words] = triplet
    counts = [f"{reason}: {count:,}, first in line {first}" for reason, (count, first) in left_out.items()]
    note = "; ".join([many(len(triplets), "triplet"), *counts])
    if not triplets:
        raise SempaError(f"{path}: no usable triplet: {note}")
    return list(triplets.values()), note


def caption_triplets(split: Literal["train", "heldout"], count: int | None = None, seed: int = 0) -> list[Triplet]:
    """The first `count` triplets of the built-in captions, or all (960 `train`, 200 `heldout`).

    A grammar made them (`experiments/captions/`); held-out scenes have words or combinations of words that no training
    scene has. Seed 0 keeps the order of the file; every other seed shuffles it first, so that a smaller `count` is
    another sample of it.
    """
    triplets, _ = read_triplets(Path(__file__).parent / f"captions-{split}.csv")
    if seed:
        Random(seed).shuffle(triplets)
    return triplets[:count]


def _leave_out(left_out: dict[str, tuple[int, int]], reason: str, line: int) -> None:
    count, first = left_out.get(reason, (0, line))
    left_out[reason] = count + 1, first


def _usable(path: Path, records: Iterator[Record], layout: Names, left_out: dict) -> Iterator[Record]:
    """The records with clean values, without the unlabelled and those with an empty sentence."""
    for line, values in records:
        values = tuple(" ".join(filter(None, map(str.strip, re.split(r"[\r\n]+", value)))) for value in values)
        if layout != TRIPLETS:
            premise, hypothesis, label = values
            label = label.removesuffix(".0")  # pandas makes floats of numbers beside missing ones
            if label in _NO_LABEL:
                _leave_out(left_out, UNLABELLED, line)
                continue
            label = _CODES.get(label, label.lower())
            if label not in LABELS:
                expected = ", ".join((*LABELS, *_CODES))
                raise SempaError(f"{path}:{line}: {layout[2]} is '{label:.40}', expected one of {expected}")
            values = (premise, hypothesis, label)
        if "" in values:
            _leave_out(left_out, EMPTY, line)
        else:
            yield line, values


def _paired(rows: Iterator[Record], left_out: dict, combinations: bool) -> Iterator[Triplet]:
    """Triplets of each premise with a neutral hypothesis, if any; a premise's rows need not stand together."""
    premises: dict[str, dict[str, list[tuple[int, str]]]] = {}
    for line, (premise, hypothesis, label) in rows:
        of_label = premises.setdefault(premise, {name: [] for name in LABELS})[label]
        # Without `combinations` only the first of each label is used, so no other is kept in memory.
        if combinations or not of_label:
            of_label.append((line, hypothesis))
    for premise, hypotheses in premises.items():
        entailments, contradictions = hypotheses["entailment"], hypotheses["contradiction"]
        if not (entailments and contradictions):
            _leave_out(left_out, INCOMPLETE, min(line for of_label in hypotheses.values() for line, _ in of_label))
        neutrals = itertools.cycle([text for _, text in hypotheses["neutral"]] or [""])
        for (line, entailment), (_, contradiction) in itertools.product(entailments, contradictions):
            yield Triplet(premise, entailment, contradiction, line, next(neutrals))
