"""SentEval's transfer tasks (Conneau & Kiela 2018, arXiv 1803.05449): sentences with classes, in their own files."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sempa.errors import SempaError
from sempa.io.rows import numbered_lines, read_records

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
    "CLASS:kind question", and MRPC `msr_paraphrase_{train,test}.txt` is a table.

    Raises `SempaError` for an unknown name, a missing file, and a line of another layout.
    """
    if unknown := [name for name in names if name not in TASKS]:
        raise SempaError(f"sets: found {unknown[0]!r}, expected some of {','.join(TASKS)}")
    return [_class_task(folder, name) if name in _CLASS_FILES else _split_task(folder, name) for name in names]


def _class_task(folder: Path, name: str) -> TransferTask:
    texts, labels = [], []
    for label, file in zip((1, 0), _CLASS_FILES[name]):
        # Some of the published files have blank lines.
        lines = [line for _, line in numbered_lines(folder / file, "latin-1") if line.strip()]
        texts += [(" ".join(line.split()),) for line in lines]
        labels += [label] * len(lines)
    return TransferTask(name, {"all": Examples(texts, np.array(labels))})


def _split_task(folder: Path, name: str) -> TransferTask:
    splits = {split: _read_split(folder / file, name) for split, file in _SPLIT_FILES[name].items()}
    trained = len(splits["train"].texts)
    notes = [f"SST2: trained on {trained:,} examples; SentEval's 67,349 are phrases too"] if name == "SST2" else []
    return TransferTask(name, splits, notes)


def _read_split(file: Path, name: str) -> Examples:
    if name == "MRPC":
        _, records = read_records(file, [("#1 String", "#2 String", "Quality")])
        rows = ((number, label, pair) for number, (*pair, label) in records)
    else:
        lines = numbered_lines(file, "latin-1" if name == "TREC" else "utf-8")
        parted = ((number, *line.strip().partition(" ")) for number, line in lines)
        rows = ((number, label.partition(":")[0], [sentence]) for number, label, _, sentence in parted)
    classes = ("ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM") if name == "TREC" else ("0", "1")
    texts, labels = [], []
    for number, label, sentences in rows:
        if label not in classes or not all(sentences):
            expected = f"one of {', '.join(classes)} and a sentence"
            raise SempaError(f"{file}:{number}: found the class {label!r:.40}, expected {expected}")
        texts.append(tuple(" ".join(sentence.split()) for sentence in sentences))
        labels.append(classes.index(label))
    if not texts:
        raise SempaError(f"{file}: no examples")
    return Examples(texts, np.array(labels))
