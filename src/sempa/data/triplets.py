"""Preference triplets from a file, streamed; every row that is left out is counted and located.

A file holds triplets (`sent0,sent1,hard_neg`) or labelled NLI pairs (`sentence1, sentence2, gold_label` or `premise,
hypothesis, label`), in any form that `sempa.io.rows` reads; its columns say which.
"""

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sempa.errors import SempaError
from sempa.io.rows import Names, Record, many, read_records

MAX_BAD_FRACTION = 0.01
BAD = EMPTY, REPEATED, EQUAL = "with an empty field", "repeated", "with chosen = rejected"
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


@dataclass
class TripletCounts:
    """How many rows a file held, how many triplets were kept, and how much of each kind was left out.

    `first_lines` locate the first of each kind. Kinds in `BAD` are faults of the file; rows `UNLABELLED` and premises
    `INCOMPLETE` are not.
    """

    rows: int = 0
    kept: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    first_lines: dict[str, int] = field(default_factory=dict)

    @property
    def bad(self) -> int:
        """How many rows were left out because something is wrong with them."""
        return sum(self.left_out[kind] for kind in BAD)

    def leave_out(self, kind: str, line: int) -> None:
        """Count a row or premise of a kind."""
        self.left_out[kind] += 1
        self.first_lines.setdefault(kind, line)

    def describe(self) -> str:
        """One line: how many triplets were kept, and what was left out, why and where first."""
        parts = [f"{kind}: {self.left_out[kind]:,}, first in line {line}" for kind, line in self.first_lines.items()]
        return "; ".join([f"{many(self.kept, 'triplet')} from {many(self.rows, 'row')}", *parts])


def read_triplets(path: str | Path, *, combinations: bool = False) -> tuple[list[Triplet], TripletCounts]:
    """The triplets of a file in their order, with counts of the rows left out.

    Labelled NLI gives one triplet a premise (its first entailment, its first contradiction), or with `combinations`
    every entailment × contradiction, each beside one of the premise's neutral hypotheses in turn; `Triplet.line` is
    then the entailment's line. Sentences are stripped, and line feeds in them become blanks. Of repeated triplets the
    first is kept.

    Raises `SempaError` when the file cannot be read in one of the layouts, when over one row in a hundred is bad, or
    when no triplet is left.
    """
    path = Path(path)
    layout, records = read_records(path, (TRIPLETS, *LABELLED))
    counts = TripletCounts()
    rows = _usable(path, records, layout, counts)
    # A file of triplets has no neutral sentences.
    found = ((line, values, "") for line, values in rows) if layout == TRIPLETS else _paired(rows, counts, combinations)
    triplets: list[Triplet] = []
    seen: set[tuple[str, ...]] = set()
    for line, values, neutral in found:
        if values in seen:
            counts.leave_out(REPEATED, line)
        elif values[1] == values[2]:
            counts.leave_out(EQUAL, line)
        else:
            seen.add(values)
            triplets.append(Triplet(*values, line, neutral))
    counts.kept = len(triplets)
    if counts.bad > MAX_BAD_FRACTION * counts.rows:
        found = f"{counts.bad / counts.rows:.1%} of the rows are bad, expected at most {MAX_BAD_FRACTION:.1%}"
        raise SempaError(f"{path}: {found}: {counts.describe()}")
    if not triplets:
        raise SempaError(f"{path}: no usable triplet: {counts.describe()}")
    return triplets, counts


def _usable(path: Path, records: Iterator[Record], layout: Names, counts: TripletCounts) -> Iterator[Record]:
    """The records with clean values, without the unlabelled and those with an empty sentence."""
    for line, values in records:
        counts.rows += 1
        values = tuple(re.sub(r"\s*[\r\n]+\s*", " ", value).strip() for value in values)
        if layout != TRIPLETS:
            premise, hypothesis, label = values
            if label in _NO_LABEL:
                counts.leave_out(UNLABELLED, line)
                continue
            label = _CODES.get(label, label.lower())
            if label not in LABELS:
                expected = ", ".join((*LABELS, *_CODES))
                raise SempaError(f"{path}:{line}: {layout[2]} is '{label:.40}', expected one of {expected}")
            values = (premise, hypothesis, label)
        if "" in values:
            counts.leave_out(EMPTY, line)
        else:
            yield line, values


def _paired(
    rows: Iterator[Record], counts: TripletCounts, combinations: bool
) -> Iterator[tuple[int, tuple[str, ...], str]]:
    """Triplets of each premise with a neutral hypothesis, if any; a premise's rows need not stand together."""
    premises: dict[str, dict[str, list[tuple[int, str]]]] = {}
    first_lines: dict[str, int] = {}
    for line, (premise, hypothesis, label) in rows:
        first_lines.setdefault(premise, line)
        of_label = premises.setdefault(premise, {name: [] for name in LABELS})[label]
        # Unless every combination is wanted, the first of each is all that is needed, and so all that is held.
        if combinations or not of_label:
            of_label.append((line, hypothesis))
    for premise, hypotheses in premises.items():
        entailments, contradictions = hypotheses["entailment"], hypotheses["contradiction"]
        if not (entailments and contradictions):
            counts.leave_out(INCOMPLETE, first_lines[premise])
        neutrals = itertools.cycle([text for _, text in hypotheses["neutral"]] or [""])
        for (line, entailment), (_, contradiction) in itertools.product(entailments, contradictions):
            yield line, (premise, entailment, contradiction), next(neutrals)
