"""SentEval's transfer tasks (Conneau & Kiela 2018, arXiv 1803.05449): sentences with classes, in their own files."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sempa.errors import SempaError
from sempa.io.rows import many, numbered_lines

LEAST_EXAMPLES = 12
"""Of a class: in each of ten folds of nine tenths of the examples there must be one."""

# A file per class, the positive one first; read as Latin-1 like TREC, as SentEval does.
_CLASS_FILES = {
    "MR": ("rt-polarity.pos", "rt-polarity.neg"),
    "CR": ("custrev.pos", "custrev.neg"),
    "SUBJ": ("subj.subjective", "subj.objective"),
    "MPQA": ("mpqa.pos", "mpqa.neg"),
}
_SPLIT_FILES = {
    "SST2": {split: f"stsa.binary.{split}" for split in ("train", "dev", "test")},
    "TREC": {split: f"TREC.{split}" for split in ("train", "test")},
    "MRPC": {split: f"msr_paraphrase_{split}.txt" for split in ("train", "test")},
}
TASKS = (*_CLASS_FILES, *_SPLIT_FILES)
_QUESTIONS = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM")
_MRPC_WIDTH = 5


@dataclass(frozen=True)
class Examples:
    """Texts, each one sentence or (MRPC) a pair, and their classes `[n]`, whole numbers from 0."""

    texts: list[tuple[str, ...]]
    labels: np.ndarray


@dataclass(frozen=True)
class TransferTask:
    """A task's examples: under `all` where they are cross-validated, else under `train`, `test` and (SST2) `dev`."""

    name: str
    splits: dict[str, Examples]
    notes: list[str] = field(default_factory=list)

    @property
    def sentences(self) -> list[str]:
        """All distinct sentences."""
        return list(dict.fromkeys(s for part in self.splits.values() for text in part.texts for s in text))


def read_transfer(folder: Path, names: Sequence[str] = TASKS) -> list[TransferTask]:
    """The named tasks, all from files in `folder`.

    MR `rt-polarity.{pos,neg}`, CR `custrev.{pos,neg}`, SUBJ `subj.{subjective,objective}` and MPQA `mpqa.{pos,neg}`
    hold a sentence a line; SST2 `stsa.binary.{train,dev,test}` holds "label sentence", TREC `TREC.{train,test}`
    "CLASS:kind question", and MRPC `msr_paraphrase_{train,test}.txt` five tab-separated columns under a header.

    Raises `SempaError` for an unknown name, a missing file, a line of another layout, a class with too few examples.
    """
    if unknown := [name for name in names if name not in TASKS]:
        raise SempaError(f"sets: found {unknown[0]!r}, expected some of {','.join(TASKS)}")
    tasks = [_class_task(folder, name) if name in _CLASS_FILES else _split_task(folder, name) for name in names]
    for task in tasks:
        labels = next(iter(task.splits.values())).labels
        counts = np.bincount(labels, minlength=2)
        if counts[counts > 0].min() < LEAST_EXAMPLES or np.count_nonzero(counts) < 2:
            found = ", ".join(map(str, counts))
            raise SempaError(
                f"{folder}: {task.name} has {found} examples of its classes, expected {LEAST_EXAMPLES} each"
            )
    return tasks


def _class_task(folder: Path, name: str) -> TransferTask:
    texts: list[tuple[str, ...]] = []
    labels, blank = [], 0
    for label, file in zip((1, 0), _CLASS_FILES[name]):
        for _, line in numbered_lines(folder / file, "latin-1"):
            if sentence := " ".join(line.split()):
                texts.append((sentence,))
                labels.append(label)
            else:
                blank += 1
    notes = [f"{name}: {many(blank, 'blank line')} left out"] if blank else []
    return TransferTask(name, {"all": Examples(texts, np.array(labels))}, notes)


def _split_task(folder: Path, name: str) -> TransferTask:
    parse = {"SST2": _sst2, "TREC": _trec, "MRPC": _mrpc}[name]
    splits = {split: _read_split(folder / file, parse) for split, file in _SPLIT_FILES[name].items()}
    trained = len(splits["train"].texts)
    notes = [f"SST2: trained on {trained:,} examples; SentEval's 67,349 are phrases too"] if name == "SST2" else []
    return TransferTask(name, splits, notes)


def _read_split(file: Path, parse: Callable[[Path], Iterator[tuple[int, int, tuple[str, ...]]]]) -> Examples:
    texts, labels = [], []
    for number, label, text in parse(file):
        cleaned = tuple(" ".join(sentence.split()) for sentence in text)
        if not all(cleaned):
            raise SempaError(f"{file}:{number}: an empty sentence")
        texts.append(cleaned)
        labels.append(label)
    return Examples(texts, np.array(labels, dtype=np.int64))


def _sst2(file: Path) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    for number, line in numbered_lines(file):
        label, _, sentence = line.strip().partition(" ")
        if label not in ("0", "1"):
            raise SempaError(f"{file}:{number}: begins with {label!r:.40}, expected 0 or 1, a blank and a sentence")
        yield number, int(label), (sentence,)


def _trec(file: Path) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    for number, line in numbered_lines(file, "latin-1"):
        kinds, _, question = line.strip().partition(" ")
        coarse = kinds.partition(":")[0]
        if coarse not in _QUESTIONS or ":" not in kinds:
            expected = f"CLASS:kind and a question, with a class of {', '.join(_QUESTIONS)}"
            raise SempaError(f"{file}:{number}: begins with {kinds!r:.40}, expected {expected}")
        yield number, _QUESTIONS.index(coarse), (question,)


def _mrpc(file: Path) -> Iterator[tuple[int, int, tuple[str, ...]]]:
    lines = numbered_lines(file)
    # The header.
    next(lines)
    for number, line in lines:
        columns = line.rstrip("\r\n").split("\t")
        if len(columns) != _MRPC_WIDTH or columns[0] not in ("0", "1"):
            found = f"{many(len(columns), 'tab-separated column')}, the first {columns[0]!r:.40}"
            raise SempaError(f"{file}:{number}: {found}; expected {_MRPC_WIDTH}, the first 0 or 1")
        yield number, int(columns[0]), (columns[3], columns[4])
