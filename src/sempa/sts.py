"""Semantic textual similarity: the benchmarks' gold-scored sentence pairs, and the score of an encoder on them.

The score is Spearman's rank correlation × 100 between the cosines of a pair's embeddings and its gold score, for
STS12–16 over all scored pairs of a year together.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from sempa.data import ScoredPair
from sempa.errors import SempaError
from sempa.records import Layout, numbered_lines, read_records

Encode = Callable[[list[str]], np.ndarray]
"""Sentences → embeddings, float32 `[n, D]`."""

SPLITS = ("train", "dev", "trial", "test")
SICK = Layout(("sentence_A", "sentence_B", "relatedness_score"), tabs_quote=False)
SCORED = Layout(("sentence1", "sentence2", "score"), tabs_quote=False)
# SICK's test split without gold scores was published first, under the plain name.
SICK_FILES = {
    "SICK_train.txt": "train",
    "SICK_trial.txt": "trial",
    "SICK_test.txt": "test",
    "SICK_test_annotated.txt": "test",
}
STSB_FILES = {f"sts-{split}.csv": split for split in ("train", "dev", "test")}
STSB_COLUMNS = 7
TABLE_ORDER = (
    *(f"STS{year}" for year in range(12, 17)),
    *(f"{name} {split}" for name in ("STS-B", "SICK") for split in SPLITS),
)


@dataclass(frozen=True)
class StsTask:
    """A benchmark's split: its pairs with gold scores, and how many were left out for want of one."""

    name: str
    pairs: list[ScoredPair]
    unscored: int = 0


@dataclass(frozen=True, eq=False)
class StsResult:
    """An encoder's `score` (Spearman's ρ × 100) on a task, and the cosines of the task's pairs, float64 `[n]`."""

    task: StsTask
    score: float
    cosines: np.ndarray


Row = tuple[int, str, str, str]
"""Line number, first sentence, second sentence, score as text."""


def read_sts(path: str | Path, splits: Sequence[str] = ("dev", "trial", "test")) -> list[StsTask]:
    """The tasks of a folder, or the one task of a file, in the order of the usual table (STS12–16, STS-B, SICK).

    A folder holds, itself or up to two levels down, `STS.input.*.txt` with `STS.gs.*.txt` (a year of STS12–16, all
    taken together), `sts-{train,dev,test}.csv` (STS-B) or `SICK_{train,trial,test}.txt`; of the latter two only
    `splits` are read. A file is one of the latter, or a CSV, TSV or JSON-lines file of `sentence1, sentence2, score`.
    Pairs with an empty score are counted and left out.

    Raises `SempaError` when nothing is found, and for rows of the wrong width, scores that are no number, inputs and
    gold scores of different length, empty sentences, the same task twice, and tasks of fewer than two scored pairs.
    """
    path = Path(path)
    if unknown := sorted(set(splits) - set(SPLITS)):
        raise SempaError(f"unknown split '{unknown[0]}', expected some of {', '.join(SPLITS)}")
    if not path.is_dir():
        return [_file_task(path)]
    tasks: dict[str, tuple[Path, StsTask]] = {}
    inner = (folder for depth in ("*", "*/*") for folder in sorted(path.glob(depth)) if folder.is_dir())
    for folder in (path, *inner):
        for task in _folder_tasks(folder, splits):
            if task.name in tasks:
                raise SempaError(f"{path}: {task.name} is there twice, in {tasks[task.name][0]} and in {folder}")
            tasks[task.name] = (folder, task)
    if not tasks:
        raise SempaError(
            f"{path}: no STS task found, expected folders STS12 to STS16 with STS.input.*.txt and STS.gs.*.txt, "
            f"{' or '.join(STSB_FILES)}, or {' or '.join(SICK_FILES)} (splits asked for: {', '.join(splits)})"
        )
    return sorted(
        (task for _, task in tasks.values()),
        key=lambda task: (TABLE_ORDER.index(task.name) if task.name in TABLE_ORDER else len(TABLE_ORDER), task.name),
    )


def _folder_tasks(folder: Path, splits: Sequence[str]) -> Iterator[StsTask]:
    if inputs := sorted(folder.glob("STS.input.*.txt")):
        name = folder.resolve().name
        year = re.search(r"STS1[2-6]", name)
        rows = ((file, row) for file in inputs for row in _semeval_rows(file))
        yield _task(year.group() if year else name, folder, rows)
    for file in map(folder.joinpath, (*STSB_FILES, *SICK_FILES)):
        superseded = file.name == "SICK_test.txt" and (folder / "SICK_test_annotated.txt").exists()
        if {**STSB_FILES, **SICK_FILES}[file.name] in splits and file.is_file() and not superseded:
            yield _file_task(file)


def _file_task(file: Path) -> StsTask:
    if file.name in STSB_FILES:
        name, rows = f"STS-B {STSB_FILES[file.name]}", _stsb_rows(file)
    elif file.name in SICK_FILES:
        name, rows = f"SICK {SICK_FILES[file.name]}", _record_rows(file, SICK)
    else:
        name, rows = file.name.split(".")[0], _record_rows(file, SCORED)
    return _task(name, file, ((file, row) for row in rows))


def _task(name: str, source: Path, rows: Iterator[tuple[Path, Row]]) -> StsTask:
    pairs, unscored = [], 0
    for file, (line, first, second, text) in rows:
        if not text.strip():
            unscored += 1
            continue
        try:
            score = float(text)
        except ValueError:
            score = np.nan
        if not np.isfinite(score):
            raise SempaError(f"{file}:{line}: score '{text.strip():.40}', expected a number")
        if not (first.strip() and second.strip()):
            raise SempaError(f"{file}:{line}: an empty sentence, expected two sentences")
        pairs.append(ScoredPair(first.strip(), second.strip(), score))
    if len(pairs) < 2:
        raise SempaError(f"{source}: {len(pairs)} scored pairs, expected at least 2")
    return StsTask(name, pairs, unscored)


def _semeval_rows(file: Path) -> Iterator[Row]:
    gold = file.with_name(file.name.replace("STS.input.", "STS.gs."))
    inputs, scores = (list(numbered_lines(part)) for part in (file, gold))
    if len(inputs) != len(scores):
        raise SempaError(f"{file}: {len(inputs)} pairs, but {gold.name} has {len(scores)} scores")
    for (line, text), (_, score) in zip(inputs, scores):
        yield line, *_columns(file, line, text, 2, 2), score


def _stsb_rows(file: Path) -> Iterator[Row]:
    for line, text in numbered_lines(file):
        # Some rows name the two sentences' sources in two columns more.
        columns = _columns(file, line, text, STSB_COLUMNS, STSB_COLUMNS + 2)
        yield line, columns[5], columns[6], columns[4]


def _columns(file: Path, line: int, text: str, least: int, most: int) -> list[str]:
    columns = text.split("\t")
    if not least <= len(columns) <= most:
        raise SempaError(f"{file}:{line}: {len(columns)} tab-separated columns, expected {least}")
    return columns


def _record_rows(file: Path, layout: Layout) -> Iterator[Row]:
    for line, values in read_records(file, (layout,))[1]:
        if isinstance(values, str):
            raise SempaError(f"{file}:{line}: {values}")
        yield line, *values


def evaluate_sts(encode: Encode, tasks: Sequence[StsTask]) -> list[StsResult]:
    """The score of an encoder on each task; a sentence that several tasks share is encoded once.

    Raises `SempaError` as `pair_cosines` and `spearman` do, the latter's naming the task.
    """
    cosines = pair_cosines(encode, [pair for task in tasks for pair in task.pairs])
    results, begin = [], 0
    for task in tasks:
        part = cosines[begin : begin + len(task.pairs)]
        begin += len(task.pairs)
        try:
            score = spearman(part, np.array([pair.score for pair in task.pairs]))
        except SempaError as error:
            raise SempaError(f"{task.name}: {error}") from error
        results.append(StsResult(task, score, part))
    return results


def pair_cosines(encode: Encode, pairs: Sequence[ScoredPair]) -> np.ndarray:
    """The cosine of each pair's embeddings, float64 `[n]`; `encode` is called once, with the distinct sentences.

    Raises `SempaError` when `encode` returns another shape than `[sentences, D]`, or a zero or non-finite vector.
    """
    index = {sentence: i for i, sentence in enumerate(dict.fromkeys(s for p in pairs for s in (p.first, p.second)))}
    if not index:
        return np.empty(0)
    sentences = list(index)
    vectors = np.asarray(encode(sentences))
    if vectors.ndim != 2 or len(vectors) != len(sentences):
        raise SempaError(f"the encoder returned shape {vectors.shape}, expected [{len(sentences)}, D]")
    cosines = np.empty(len(pairs))
    for row, pair in enumerate(pairs):
        # Row by row, so that no second copy of all vectors, in float64, is held.
        first, second = (vectors[index[sentence]].astype(np.float64) for sentence in (pair.first, pair.second))
        length = np.sqrt(first @ first) * np.sqrt(second @ second)
        if not (0 < length < np.inf):
            raise SempaError(f"the encoder returned a zero or non-finite vector for '{pair.first}' or '{pair.second}'")
        cosines[row] = first @ second / length
    return cosines


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's ρ × 100 of two series of equal length `[n]`; ties share their average rank.

    Raises `SempaError` when the lengths differ, or a series has fewer than two values, is constant or holds a NaN.
    """
    ranks = []
    for values in (x, y):
        values = np.asarray(values, dtype=np.float64)
        if values.shape != (len(x),) or len(x) < 2:
            shapes = f"{np.shape(x)} and {np.shape(y)}"
            raise SempaError(f"rank correlation of shapes {shapes}, expected two series of one length, at least 2")
        if np.isnan(values).any():
            raise SempaError("rank correlation of a series with NaN, expected numbers")
        if (values == values[0]).all():
            raise SempaError(f"rank correlation of a constant series (all {len(x)} values are {values[0]:g})")
        ranks.append(rankdata(values) - (len(x) + 1) / 2)
    a, b = ranks
    return float(np.clip(100 * (a @ b) / np.sqrt((a @ a) * (b @ b)), -100, 100))
