"""Semantic textual similarity: the benchmarks' gold-scored sentence pairs, and the scores of an encoder on them.

The score is Spearman's rank correlation × 100 between the cosines of the pairs' embeddings and their gold scores, for
STS12–16 over all scored pairs of a year together ("all" in SentEval); Pearson's, and the sub-tasks', stand beside it.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sempa.data.examples import ScoredPair, distinct_sentences
from sempa.errors import SempaError
from sempa.evaluation.statistics import bootstrap, pearson, spearman
from sempa.io.rows import Layout, many, numbered_lines, read_records

Encode = Callable[[list[str]], np.ndarray]
"""Sentences → embeddings, float32 `[n, D]`."""

SPLITS = ("train", "dev", "trial", "test")
SICK = Layout(("sentence_A", "sentence_B", "relatedness_score"), tabs_quote=False)
COLUMNS = ("sentence1", "sentence2", "score")
# What the annotators were offered; a file of one's own may use any scale.
STS_SCALE, SICK_SCALE, ANY_SCALE = (0.0, 5.0), (1.0, 5.0), (-np.inf, np.inf)
# SICK's test split without gold scores was published first, under the plain name.
SICK_FILES = {
    "SICK_train.txt": "train",
    "SICK_trial.txt": "trial",
    "SICK_test.txt": "test",
    "SICK_test_annotated.txt": "test",
}
STSB_FILES = {f"sts-{split}.csv": split for split in ("train", "dev", "test")}
STSB_COLUMNS = 7
_SAME_COSINE = 1e-10
SETS = (*(f"STS{year}" for year in range(12, 17)), "STS-B", "SICK")
"""The columns of the usual table."""
TABLE_ORDER = (
    *SETS[:-2],
    *(f"{name} {split}" for name in SETS[-2:] for split in SPLITS),
)


@dataclass(frozen=True)
class StsTask:
    """A benchmark's split: its pairs with gold scores, and what was left out of it.

    `subtasks` says how many of the pairs, one sub-task after another, belong to which; empty where there are none.
    `unscored` counts pairs without a gold score, `out_of_range` those whose score is off the scale; `first_odd` tells
    where the first of these is and what it says. `whole` is the number of pairs that a sample was drawn from (0: all
    are there).
    """

    name: str
    pairs: list[ScoredPair]
    unscored: int = 0
    out_of_range: int = 0
    first_odd: str = ""
    subtasks: dict[str, int] = field(default_factory=dict)
    whole: int = 0

    @property
    def gold(self) -> np.ndarray:
        """The pairs' gold scores, float64 `[n]`."""
        return np.array([pair.score for pair in self.pairs], dtype=np.float64)


@dataclass(frozen=True, eq=False)
class StsResult:
    """An encoder's `score` (Spearman's ρ × 100) and `pearson` (r × 100) on a task, and the pairs' cosines `[n]`.

    `subtasks` holds both for each sub-task; None where it has no correlation: one pair, or one gold score for all.
    """

    task: StsTask
    score: float
    pearson: float
    subtasks: dict[str, tuple[float, float] | None]
    cosines: np.ndarray


Row = tuple[int, str, str, str]
"""Line number, first sentence, second sentence, score as text."""

Part = tuple[str, Path, Iterator[Row]]
"""Sub-task (empty where there is none), file, and its rows."""


def read_sts(
    path: str | Path, splits: Sequence[str] = ("dev", "trial", "test"), columns: tuple[str, str, str] = COLUMNS
) -> list[StsTask]:
    """The tasks of a folder, or the one task of a file, in the order of the usual table (STS12–16, STS-B, SICK).

    A folder holds, itself or up to two levels down, `STS.input.*.txt` with `STS.gs.*.txt` (a year of STS12–16, all
    taken together), `sts-{train,dev,test}.csv` (STS-B) or `SICK_{train,trial,test}.txt`; of the latter two only
    `splits` are read. A file is one of the latter, or a CSV, TSV or JSON-lines file with two sentences and a score in
    `columns`. Pairs without a score, or with one off the benchmark's scale, are counted and left out; `left_out` tells.

    Raises `SempaError` when nothing is found, and for rows of the wrong width, scores that are no number, inputs and
    gold scores of different length, empty sentences, the same task twice, and tasks of fewer than two scored pairs.
    """
    path = Path(path)
    if unknown := sorted(set(splits) - set(SPLITS)):
        raise SempaError(f"unknown split '{unknown[0]}', expected some of {', '.join(SPLITS)}")
    if not path.is_dir():
        return [_file_task(path, columns)]
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


def select_tasks(path: str | Path, names: Sequence[str], splits: Sequence[str]) -> list[StsTask]:
    """The tasks of a folder under `names` ("STS12" … "STS16", "STS-B", "SICK"), one each, in the order of the names.

    Raises `SempaError` as `read_sts` does, and for a name that is given twice, is missing (naming the file that was
    looked for) or has several of the `splits`.
    """
    path = Path(path)
    if not path.is_dir():
        raise SempaError(f"{path}: no such folder, expected one that holds {', '.join(names)}")
    if twins := [name for name in names if names.count(name) > 1]:
        raise SempaError(f"sets: {twins[0]} is there twice, expected each once")
    found = read_sts(path, splits)
    chosen = []
    for name in names:
        matches = [task for task in found if task.name == name or task.name.startswith(f"{name} ")]
        if len(matches) > 1:
            several = " and ".join(task.name for task in matches)
            raise SempaError(f"splits {','.join(splits)}: ask for {several}, expected one of them")
        if not matches:
            raise SempaError(f"{path}: {name} is missing; {_looked_for(path, name, splits)}")
        chosen += matches
    return chosen


def _looked_for(path: Path, name: str, splits: Sequence[str]) -> str:
    """Which files a missing task would be in, and which of its other splits are there."""
    files = {"STS-B": STSB_FILES, "SICK": SICK_FILES}.get(name)
    if files is None:
        return f"looked for STS.input.*.txt in folders named {name} in it and one level further down"
    wanted = [file for file, split in files.items() if split in splits]
    if not wanted:
        return (
            f"none of the splits asked for ({', '.join(splits)}) is one of {', '.join(dict.fromkeys(files.values()))}"
        )
    there = [file for file in files if any(any(path.glob(depth + file)) for depth in ("", "*/", "*/*/"))]
    told = f"looked for {' or '.join(wanted)} in it and up to two levels down"
    return told + (f"; found {' and '.join(there)}" if there else "")


def sample_task(task: StsTask, count: int, seed: int = 0) -> StsTask:
    """`count` of the task's pairs, drawn by `seed`, in the task's own order; the task itself where it has no more."""
    if count >= len(task.pairs):
        return task
    kept = np.sort(np.random.default_rng(seed).permutation(len(task.pairs))[:count])
    ends = np.cumsum([0, *task.subtasks.values()])
    sizes = np.diff(np.searchsorted(kept, ends))
    return replace(
        task,
        pairs=[task.pairs[place] for place in kept],
        subtasks=dict(zip(task.subtasks, sizes.tolist(), strict=True)),
        whole=len(task.pairs),
    )


def left_out(tasks: Sequence[StsTask]) -> list[str]:
    """A sentence per task of which pairs were left out: how many, and why."""
    notes = []
    for task in tasks:
        if task.whole:
            notes.append(f"{task.name}: a sample of {len(task.pairs):,} of its {task.whole:,} scored pairs")
        if task.unscored:
            notes.append(f"{task.name}: {many(task.unscored, 'pair')} without a gold score left out")
        if task.out_of_range:
            odd = many(task.out_of_range, "pair")
            notes.append(f"{task.name}: {odd} with a gold score off the scale left out, first {task.first_odd}")
    return notes


def _folder_tasks(folder: Path, splits: Sequence[str]) -> Iterator[StsTask]:
    if inputs := sorted(folder.glob("STS.input.*.txt")):
        name = folder.resolve().name
        year = re.search(r"STS1[2-6]", name)
        parts = ((file.name.split(".", 2)[2].removesuffix(".txt"), file, _semeval_rows(file)) for file in inputs)
        yield _task(year.group() if year else name, folder, parts, STS_SCALE)
    for file in map(folder.joinpath, (*STSB_FILES, *SICK_FILES)):
        superseded = file.name == "SICK_test.txt" and (folder / "SICK_test_annotated.txt").exists()
        if {**STSB_FILES, **SICK_FILES}[file.name] in splits and file.is_file() and not superseded:
            yield _file_task(file, COLUMNS)


def _file_task(file: Path, columns: tuple[str, str, str]) -> StsTask:
    if file.name in STSB_FILES:
        name, rows, scale = f"STS-B {STSB_FILES[file.name]}", _stsb_rows(file), STS_SCALE
    elif file.name in SICK_FILES:
        name, rows, scale = f"SICK {SICK_FILES[file.name]}", _record_rows(file, SICK), SICK_SCALE
    else:
        rows, scale = _record_rows(file, Layout(columns, tabs_quote=False)), ANY_SCALE
        name = file.name.split(".")[0]
    return _task(name, file, [("", file, rows)], scale)


def _task(name: str, source: Path, parts: Iterable[Part], scale: tuple[float, float]) -> StsTask:
    pairs, subtasks, unscored, odd = [], {}, 0, []
    for subtask, file, rows in parts:
        before = len(pairs)
        for line, first, second, text in rows:
            if not text.strip():
                unscored += 1
                continue
            score = _score(text, f"{file}:{line}")
            if not (first.strip() and second.strip()):
                raise SempaError(f"{file}:{line}: an empty sentence, expected two sentences")
            if scale[0] <= score <= scale[1]:
                pairs.append(ScoredPair(first.strip(), second.strip(), score))
            else:
                odd.append(f"{file}:{line}: {score:g}, expected {scale[0]:g} to {scale[1]:g}")
        if subtask:
            subtasks[subtask] = len(pairs) - before
    if len(pairs) < 2:
        raise SempaError(f"{source}: {many(len(pairs), 'scored pair')}, expected at least 2")
    first_odd = odd[0] if odd else ""
    return StsTask(name, pairs, unscored, out_of_range=len(odd), first_odd=first_odd, subtasks=subtasks)


def _score(text: str, place: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = np.nan
    if not np.isfinite(score):
        raise SempaError(f"{place}: score '{text.strip():.40}', expected a number")
    return score


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
    """The scores of an encoder on each task; a sentence that several tasks share is encoded once.

    Raises `SempaError` as `pair_cosines` and `score_sts` do.
    """
    cosines = pair_cosines(encode, [pair for task in tasks for pair in task.pairs])
    ends = np.cumsum([len(task.pairs) for task in tasks])
    return [score_sts(task, part) for task, part in zip(tasks, np.split(cosines, ends[:-1]))]


def score_sts(task: StsTask, cosines: np.ndarray) -> StsResult:
    """Spearman's ρ and Pearson's r × 100 of a task's cosines `[n]` against its gold scores, sub-tasks included.

    Raises `SempaError` naming the task when all cosines are the same, or all gold scores are.
    """
    # Copies of one vector, in float32 and of any length, have cosines that differ from 1 by rounding only.
    if np.ptp(cosines) < _SAME_COSINE:
        raise SempaError(
            f"{task.name}: all {len(cosines):,} cosines are {cosines[0]:.6g}, so the pairs have no order; "
            "does the encoder give every sentence the same embedding?"
        )
    gold, subtasks, begin = task.gold, {}, 0
    try:
        score, linear = spearman(cosines, gold), pearson(cosines, gold)
    except SempaError as error:
        raise SempaError(f"{task.name}: {error}") from error
    for name, size in task.subtasks.items():
        x, y = cosines[begin : begin + size], gold[begin : begin + size]
        begin += size
        defined = size > 1 and np.ptp(x) >= _SAME_COSINE and np.ptp(y) > 0
        subtasks[name] = (spearman(x, y), pearson(x, y)) if defined else None
    return StsResult(task, score, linear, subtasks, cosines)


def draw_scores(result: StsResult, resamples: int = 1000, seed: int = 0, ranks: bool = True) -> np.ndarray:
    """`statistics.bootstrap` of a result: ρ × 100 (r × 100 without `ranks`) of draws of its pairs, `[resamples]`.

    The draws depend on the task's name and `seed`: those of two encoders meet the same pairs.
    """
    return bootstrap(result.cosines, result.task.gold, resamples, (seed, *result.task.name.encode()), ranks)


def pair_cosines(encode: Encode, pairs: Sequence[ScoredPair]) -> np.ndarray:
    """The cosine of each pair's embeddings, float64 `[n]`; `encode` is called once, with the distinct sentences.

    Raises `SempaError` when `encode` returns another shape than `[sentences, D]`, or a zero or non-finite vector.
    """
    if not pairs:
        return np.empty(0)
    sentences = distinct_sentences(pairs)
    return vector_cosines(np.asarray(encode(sentences)), sentences, pairs)


def vector_cosines(vectors: np.ndarray, sentences: Sequence[str], pairs: Sequence[ScoredPair]) -> np.ndarray:
    """The same of embeddings `[sentences, D]` that are there already; each pair's sentences are among `sentences`.

    Raises `SempaError` as `pair_cosines` does.
    """
    if vectors.ndim != 2 or len(vectors) != len(sentences):
        raise SempaError(f"the encoder returned shape {vectors.shape}, expected [{len(sentences)}, D]")
    index = {sentence: i for i, sentence in enumerate(sentences)}
    cosines = np.empty(len(pairs))
    for row, pair in enumerate(pairs):
        # Row by row, so that no second copy of all vectors, in float64, is held.
        first, second = (vectors[index[sentence]].astype(np.float64) for sentence in (pair.first, pair.second))
        length = np.sqrt(first @ first) * np.sqrt(second @ second)
        if not (0 < length < np.inf):
            raise SempaError(f"the encoder returned a zero or non-finite vector for '{pair.first}' or '{pair.second}'")
        cosines[row] = first @ second / length
    return cosines
