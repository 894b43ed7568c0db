"""Similarity benchmarks: sentence pairs with gold scores, read from the files in which they were published."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from sempa.errors import SempaError
from sempa.io.rows import column_files, many, numbered_lines, read_records

SETS = ("STS12", "STS13", "STS14", "STS15", "STS16", "STS-B", "SICK")
"""The columns of the usual table."""
SPLITS = ("train", "dev", "trial", "test")
COLUMNS = ("sentence1", "sentence2", "score")

_FILES = {
    **{f"sts-{split}.csv": f"STS-B {split}" for split in ("train", "dev", "test")},
    **{f"SICK_{split}.txt": f"SICK {split}" for split in ("train", "trial")},
    # The test split as it was first published, `SICK_test.txt`, has no gold scores.
    "SICK_test_annotated.txt": "SICK test",
}
# Place, first sentence, second sentence, gold score as it is written, and sub-task ("" where there is none).
_Row = tuple[str, str, str, str, str]


@dataclass(frozen=True)
class ScoredPair:
    """Two sentences, their gold similarity (on the scale of their task, mostly 0–5), and their sub-task, if any."""

    first: str
    second: str
    score: float
    subtask: str = ""


@dataclass(frozen=True)
class StsTask:
    """One split of a benchmark: its pairs with gold scores; `notes` are sentences on pairs that were left out."""

    name: str
    pairs: list[ScoredPair]
    notes: list[str] = field(default_factory=list)

    @property
    def gold(self) -> np.ndarray:
        """The gold scores, float64 `[pairs]`."""
        return np.array([pair.score for pair in self.pairs], dtype=np.float64)


def read_sts(
    path: str | Path,
    splits: Sequence[str] = ("dev", "trial", "test"),
    columns: Sequence[str] = COLUMNS,
    sets: Sequence[str] = (),
) -> list[StsTask]:
    """The tasks in a folder or a file, in the order of the usual table (STS12–16, STS-B, SICK).

    A folder holds, itself or up to two levels down, the benchmarks as they were published: `STS.input.*.txt` with
    `STS.gs.*.txt` (one year of STS12–16), `sts-{train,dev,test}.csv` (STS-B) and
    `SICK_{train,trial,test_annotated}.txt`. A file is one of the latter two, or a table or JSON-lines file with two
    sentences and a score in `columns`.

    `splits` selects from STS-B, SICK and files with a column `split`; `sets`, if given, selects from a folder. Pairs
    without a gold score are left out; the task's `notes` count them.

    Raises `SempaError` for an unknown split, nothing found, one of `sets` not found exactly once, rows of the wrong
    width, scores that are not numbers, gold scores of another length, empty sentences, and scores all alike.
    """
    path, splits = Path(path), [split.strip() for split in splits]
    if unknown := set(splits) - set(SPLITS):
        raise SempaError(f"splits: found {min(unknown)!r}, expected some of {', '.join(SPLITS)}")
    if not path.is_dir() or column_files(path):
        return _read_file(path, splits, columns)
    found = _benchmarks(path)
    there = f"splits: {', '.join(splits)}; found {', '.join(found) or 'none'}"
    in_splits = [name for name in found if name.partition(" ")[2] in ("", *splits)]
    chosen = [name for name in in_splits if not sets or name.partition(" ")[0] in sets]
    for wanted in sets:
        if (count := sum(name.partition(" ")[0] == wanted for name in chosen)) != 1:
            files = [file for file, name in _FILES.items() if name in [f"{wanted} {split}" for split in splits]]
            expected = f"one, in {' or '.join(files)}" if files else f"one of {', '.join(SETS)}"
            raise SempaError(f"{path}: {many(count, 'task')} for {wanted} ({there}), expected {expected}")
    if not chosen:
        expected = f"folders STS12 to STS16 with STS.input.*.txt and STS.gs.*.txt, or some of {', '.join(_FILES)}"
        raise SempaError(f"{path}: no STS task ({there}), expected {expected}")
    return [_make_task(name, found[name], _benchmark_rows(name, found[name])) for name in chosen]


def caption_pairs(split: Literal["dev", "test"], count: int | None = None) -> list[ScoredPair]:
    """The first `count` pairs of the built-in captions, or all (300 `dev`, 600 `test`).

    They are scored 0–5, all grades equally often, and depend on no seed, so that the scores of runs are comparable.
    """
    return read_sts(Path(__file__).parent / f"captions-{split}.csv")[0].pairs[:count]


def development_task(path: str | Path) -> StsTask:
    """The task that a training run may choose its checkpoint by: STS-B's or SICK's development split, else the first.

    Its `notes` also name the tasks beside it. Raises `SempaError` as `read_sts` does.
    """
    tasks = read_sts(path, ("dev", "trial"))
    chosen = next((task for task in tasks if task.name.endswith((" dev", " trial"))), tasks[0])
    others = ", ".join(task.name for task in tasks if task is not chosen)
    if not others:
        return chosen
    return replace(chosen, notes=[*chosen.notes, f"{path}: only {chosen.name} is used here, not {others}"])


def sample_task(task: StsTask, count: int, seed: int = 0) -> StsTask:
    """`count` of the task's pairs, drawn by `seed`, in their own order; the task itself where it has no more."""
    if count >= len(task.pairs):
        return task
    drawn = np.sort(np.random.default_rng(seed).permutation(len(task.pairs))[:count])
    return replace(
        task,
        pairs=[task.pairs[i] for i in drawn],
        notes=[f"{task.name}: a sample of {count:,} of its {len(task.pairs):,} scored pairs", *task.notes],
    )


def distinct_sentences(pairs: Iterable[ScoredPair]) -> list[str]:
    """Every sentence of the pairs once, in the order of first appearance."""
    return list(dict.fromkeys(sentence for pair in pairs for sentence in (pair.first, pair.second)))


def _benchmarks(path: Path) -> dict[str, Path]:
    """The published benchmarks in a folder by their names, in the order of the table; a year is a folder itself."""
    found: dict[str, Path] = {}
    for folder in (path, *sorted(path.glob("*")), *sorted(path.glob("*/*"))):
        for file, name in _FILES.items():
            if (folder / file).is_file():
                found.setdefault(name, folder / file)
        year = re.search(r"STS1[2-6]", folder.resolve().name)
        if year and any(folder.glob("STS.input.*.txt")):
            found.setdefault(year.group(), folder)
    order = [f"{name} {split}".strip() for name in SETS for split in ("", *SPLITS)]
    return {name: found[name] for name in order if name in found}


def _benchmark_rows(name: str, path: Path) -> Iterator[_Row]:
    if path.is_dir():
        return _year_rows(path)
    if name.startswith("STS-B"):
        # Some rows name the sources of the two sentences in two more columns.
        return ((place, cells[5], cells[6], cells[4], "") for place, cells in _tab_rows(path, 7, 9))
    # SICK as it was published begins with a header.
    return ((place, *cells[1:4], "") for place, cells in _tab_rows(path, 5, 5) if cells[0] != "pair_ID")


def _read_file(file: Path, splits: Sequence[str], columns: Sequence[str]) -> list[StsTask]:
    by_split: dict[str, list[_Row]] = {}
    if file.name in _FILES:
        name, split = _FILES[file.name].split()
        by_split[split] = list(_benchmark_rows(name, file))
    else:
        name = file.name.split(".")[0]
        _, records = read_records(file, [("split", *columns), tuple(columns)])
        for line, (*split, first, second, score) in records:
            split = split[0].strip().lower() if split else ""
            own = by_split.setdefault("dev" if split in ("val", "valid", "validation") else split, [])
            own.append((f"{file}:{line}", first, second, score, ""))
    chosen = [split for split in ("", *SPLITS) if split in ("", *splits) and split in by_split]
    if not chosen:
        found = ", ".join(by_split)[:80] or "none"
        raise SempaError(f"{file}: found the splits {found}, asked for {', '.join(splits)}")
    return [_make_task(f"{name} {split}".strip(), file, by_split[split]) for split in chosen]


def _make_task(name: str, source: Path, rows: Iterable[_Row]) -> StsTask:
    pairs, unscored = [], 0
    for place, first, second, gold, subtask in rows:
        if not gold.strip():
            unscored += 1
            continue
        try:
            score = float(gold)
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            raise SempaError(f"{place}: score '{gold.strip():.40}', expected a number")
        if not (first.strip() and second.strip()):
            raise SempaError(f"{place}: an empty sentence, expected two sentences")
        pairs.append(ScoredPair(first.strip(), second.strip(), score, subtask))
    if len(pairs) < 2:
        raise SempaError(f"{source}: {many(len(pairs), 'scored pair')}, expected at least 2")
    if len({pair.score for pair in pairs}) < 2:
        raise SempaError(f"{source}: all {len(pairs):,} gold scores are {score:g}, so the pairs have no order")
    notes = [f"{name}: {many(unscored, 'pair')} without a gold score left out"] if unscored else []
    return StsTask(name, pairs, notes)


def _year_rows(folder: Path) -> Iterator[_Row]:
    for file in sorted(folder.glob("STS.input.*.txt")):
        gold = file.with_name(file.name.replace("STS.input.", "STS.gs."))
        pairs, scores = list(_tab_rows(file, 2, 2)), list(numbered_lines(gold))
        if len(pairs) != len(scores):
            raise SempaError(f"{file}: {len(pairs)} pairs, but {gold.name} has {len(scores)} scores")
        subtask = file.name.removeprefix("STS.input.").removesuffix(".txt")
        for (place, (first, second)), (_, score) in zip(pairs, scores):
            yield place, first, second, score, subtask


def _tab_rows(file: Path, least: int, most: int) -> Iterator[tuple[str, list[str]]]:
    """The place of each line in a tab-separated file without quotes, and its `least` to `most` cells."""
    for line, text in numbered_lines(file):
        cells = text.split("\t")
        if not least <= len(cells) <= most:
            raise SempaError(f"{file}:{line}: {len(cells)} tab-separated columns, expected {least}")
        yield f"{file}:{line}", cells
