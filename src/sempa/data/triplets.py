"""Preference triplets from a file, streamed; every row that is left out is counted and located.

A file holds triplets (`sent0,sent1,hard_neg`) or labelled NLI pairs (`sentence1, sentence2, gold_label` or `premise,
hypothesis, label`), in any form that `sempa.io.rows` reads; its columns say which.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sempa.data.examples import Triplet
from sempa.errors import SempaError
from sempa.io.rows import Layout, Record, Values, many, read_records

EXAMPLES_PER_KIND = 2
LABELS = {name: name for name in ("entailment", "neutral", "contradiction")}
LABELS |= {str(code): name for code, name in enumerate(tuple(LABELS))}
NO_LABEL = {"-", "-1", ""}

TRIPLETS = Layout(("sent0", "sent1", "hard_neg"), tabs_quote=True, number_last=False)
# The official SNLI and MultiNLI tables hold bare quotation marks; exports of data hubs are written by a CSV library.
LABELLED = (
    Layout(("sentence1", "sentence2", "gold_label"), tabs_quote=False),
    Layout(("premise", "hypothesis", "label"), tabs_quote=True),
)


@dataclass
class TripletCounts:
    """How many rows a file held and what became of them; `examples` locate the first bad rows of each kind.

    `empty`, `duplicates`, `same` (chosen equals rejected) and `malformed` are bad; `unlabelled` rows and `incomplete`
    premises (without an entailment or without a contradiction) are no fault of the file.
    """

    rows: int = 0
    kept: int = 0
    empty: int = 0
    duplicates: int = 0
    same: int = 0
    malformed: int = 0
    unlabelled: int = 0
    incomplete: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def bad(self) -> int:
        """Rows that were skipped because something is wrong with them."""
        return self.empty + self.duplicates + self.same + self.malformed

    def skip(self, kind: str, place: str, what: str) -> None:
        """Count a bad row of `kind` (a field's name); the first of each kind become examples, `place: what`."""
        setattr(self, kind, getattr(self, kind) + 1)
        if getattr(self, kind) <= EXAMPLES_PER_KIND:
            self.examples.append(f"{place}: {what}")

    def describe(self) -> str:
        """One line: how many triplets were kept, and which rows were skipped, why and where."""
        line = f"{many(self.kept, 'triplet')} from {many(self.rows, 'row')}"
        if self.bad:
            kinds = (
                (self.empty, "with an empty field"),
                (self.duplicates, "duplicate"),
                (self.same, "with chosen = rejected"),
                (self.malformed, "malformed"),
            )
            reasons = ", ".join(f"{count:,} {kind}" for count, kind in kinds if count)
            line += f"; skipped {self.bad:,}: {reasons} ({'; '.join(self.examples)})"
        if self.unlabelled:
            line += f"; {many(self.unlabelled, 'row')} without a gold label"
        if self.incomplete:
            line += f"; {many(self.incomplete, 'premise')} without an entailment or without a contradiction"
        return line


def read_triplets(
    path: str | Path, *, combinations: bool = False, max_bad_fraction: float = 0.01
) -> tuple[list[Triplet], TripletCounts]:
    """The triplets of a file in their order, with counts of the rows left out.

    Labelled NLI gives one triplet a premise (its first entailment, its first contradiction), or with `combinations`
    every entailment × contradiction, each beside one of the premise's neutral hypotheses in turn; `Triplet.line` is
    then the entailment's line. Sentences are stripped, and line feeds in them become blanks. Of repeated triplets the
    first is kept.

    Raises `SempaError` when the file cannot be read as text in one of the layouts, when bad rows are more than
    `max_bad_fraction` of all, or when no triplet is left.
    """
    path = Path(path)
    layout, records = read_records(path, (TRIPLETS, *LABELLED))
    counts = TripletCounts()

    def skip(kind: str, line: int, what: str) -> None:
        counts.skip(kind, f"{path.name}:{line}", what)

    rows = _usable(records, layout, counts, skip)
    triplets: list[Triplet] = []
    first_lines: dict[Values, int] = {}
    # Neither a triplets file nor the grammar has neutral sentences.
    found = ((line, values, "") for line, values in rows) if layout == TRIPLETS else _paired(rows, counts, combinations)
    for line, values, neutral in found:
        if values in first_lines:
            skip("duplicates", line, f"repeats line {first_lines[values]}")
        elif values[1] == values[2]:
            skip("same", line, "the chosen sentence is also the rejected one")
        else:
            first_lines[values] = line
            triplets.append(Triplet(*values, line, neutral))
    counts.kept = len(triplets)
    if counts.bad > max_bad_fraction * counts.rows:
        found = f"{counts.bad / counts.rows:.1%} of the rows are bad, expected at most {max_bad_fraction:.1%}"
        raise SempaError(f"{path}: {found}: {counts.describe()}")
    if not triplets:
        raise SempaError(f"{path}: no usable triplet: {counts.describe()}")
    return triplets, counts


def _usable(
    records: Iterator[Record], layout: Layout, counts: TripletCounts, skip: Callable[[str, int, str], None]
) -> Iterator[tuple[int, Values]]:
    """The records with clean values, without the malformed, the unlabelled and those with an empty sentence."""
    for line, values in records:
        counts.rows += 1
        if isinstance(values, str):
            skip("malformed", line, values)
            continue
        values = tuple(map(_clean, values))
        if layout != TRIPLETS:
            label = values[2].lower()
            if label in NO_LABEL:
                counts.unlabelled += 1
                continue
            if label not in LABELS:
                expected = ", ".join(LABELS)
                skip("malformed", line, f"unknown {layout.names[2]} '{label:.40}', expected one of {expected}")
                continue
            values = (*values[:2], LABELS[label])
        if "" in values:
            skip("empty", line, f"{layout.names[values.index('')]} is empty")
        else:
            yield line, values


def _paired(
    rows: Iterator[tuple[int, Values]], counts: TripletCounts, combinations: bool
) -> Iterator[tuple[int, Values, str]]:
    """Triplets of each premise with a neutral hypothesis, if any; a premise's rows need not stand together."""
    premises: dict[str, dict[str, list[tuple[int, str]]]] = {}
    for line, (premise, hypothesis, label) in rows:
        of_label = premises.setdefault(premise, {name: [] for name in LABELS})[label]
        # Unless every combination is wanted, the first of each is all that is needed, and so all that is held.
        if combinations or not of_label:
            of_label.append((line, hypothesis))
    for premise, hypotheses in premises.items():
        entailments, contradictions = hypotheses["entailment"], hypotheses["contradiction"]
        counts.incomplete += not (entailments and contradictions)
        neutrals = itertools.cycle([text for _, text in hypotheses["neutral"]] or [""])
        for (line, entailment), (_, contradiction) in itertools.product(entailments, contradictions):
            yield line, (premise, entailment, contradiction), next(neutrals)


def _clean(text: str) -> str:
    if "\n" in text or "\r" in text:
        text = " ".join(filter(None, map(str.strip, text.replace("\r", "\n").split("\n"))))
    return text.strip()
