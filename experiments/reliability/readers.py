"""Every reader of the package, with sound files of each format that it takes."""

import gzip
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet
from tiny import load, make_folder, train_tiny

from sempa.config import load_config
from sempa.data.sentences import read_sentences
from sempa.data.sts import read_sts
from sempa.data.transfer import read_transfer
from sempa.data.triplets import read_triplets
from sempa.embedding.files import SUFFIXES, read_vectors, write_vectors
from sempa.evaluation.eval_texts import read_texts, report_texts
from sempa.evaluation.hellaswag import read_hellaswag
from sempa.model.adapter_files import load_adapter, save_adapter
from sempa.model.base import BaseModel
from sempa.model.lora import add_lora, remove_adapter
from sempa.training.checkpoints import checkpoint_files, read_checkpoint


@dataclass
class Reader:
    """A reader under test: sound inputs as files by name, and how a folder that holds one input is read."""

    name: str
    sound: list[dict[str, bytes]]
    read: Callable[[Path], object]
    # How many of a thousand inputs: the slow readers get few.
    weight: int


def readers(folder: Path) -> list[Reader]:
    """Every reader of the package, with sound files of each format it takes."""
    base = load(make_folder(folder / "model"))
    adapter = _written(folder / "adapter", lambda into: _save_adapter(base, into))
    run = folder / "run"
    train_tiny(load(folder / "model"), run, 0.5)
    checkpoint = checkpoint_files(run)[-1]
    vectors = []
    for suffix in SUFFIXES:
        write_vectors(folder / f"v{suffix}", np.arange(12, dtype=np.float32).reshape(3, 4))
        vectors.append({f"v{suffix}": (folder / f"v{suffix}").read_bytes()})

    def adapt(inside: Path) -> None:
        try:
            load_adapter(base.model, inside)
        finally:
            remove_adapter(base.model)

    def drain(rows: Iterable) -> None:
        for _ in rows:
            pass

    def only(read: Callable[[Path], object]) -> Callable[[Path], object]:
        return lambda inside: read(next(inside.iterdir()))

    def similarity(inside: Path) -> object:
        files = list(inside.iterdir())
        return read_sts(inside if len(files) > 1 else files[0])

    return [
        Reader("triplets", _triplets(), only(read_triplets), 240),
        Reader("labelled NLI", _labelled(), only(lambda path: read_triplets(path, combinations=True)), 170),
        Reader("similarity benchmarks", _similarity(), similarity, 200),
        Reader("YAML config", _configs(), only(lambda path: load_config(path, ["seed=1"])), 70),
        Reader("texts", _texts(), only(read_texts), 70),
        Reader("GSM8K", _texts()[:1], only(report_texts), 30),
        Reader("HellaSwag", _hellaswag(), only(read_hellaswag), 30),
        Reader("transfer tasks", _transfer(), lambda inside: read_transfer(inside, ["TREC", "MRPC"]), 30),
        Reader("text of sempa embed", _plain(), only(lambda path: drain(read_sentences(path))), 120),
        Reader("adapter folder", [adapter], adapt, 45),
        Reader("checkpoint", [{checkpoint.name: checkpoint.read_bytes()}], only(read_checkpoint), 10),
        Reader("file of vectors", vectors, only(read_vectors), 30),
    ]


def _save_adapter(base: BaseModel, into: Path) -> None:
    add_lora(base.model, 2, 4)
    save_adapter(base.model, into, base.source)
    remove_adapter(base.model)


def _written(folder: Path, write: Callable[[Path], object]) -> dict[str, bytes]:
    write(folder)
    return _content(folder)


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _table(
    header: Sequence[str], rows: Sequence[Sequence], delimiter: str = ",", quote: str = '"', end: str = "\n"
) -> bytes:
    lines = [delimiter.join(f"{quote}{cell}{quote}" for cell in row) for row in rows]
    return end.join([delimiter.join(header), *lines, ""]).encode()


def _lines(names: Sequence[str], rows: Sequence[Sequence]) -> bytes:
    return "".join(json.dumps(dict(zip(names, row)), ensure_ascii=False) + "\n" for row in rows).encode()


def _parquet(names: Sequence[str], rows: Sequence[Sequence]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(dict(zip(names, map(list, zip(*rows))))), sink)
    return sink.getvalue().to_pybytes()


def _triplets() -> list[dict[str, bytes]]:
    names = ("sent0", "sent1", "hard_neg")
    rows = [("A man runs.", "Someone runs.", "Nobody runs."), ('He said ""hi""', "A, b", "C;d"), ("Ü “x”", "y", "z")]
    return [
        {"t.csv": _table(names, rows)},
        {"t.tsv": _table(names, rows, "\t")},
        {"t.csv": _table(names, rows, end="\r\n")},
        {"t.jsonl": _lines(names, rows)},
        {"t.csv.gz": gzip.compress(_table(names, rows))},
        {"t.parquet": _parquet(names, rows)},
    ]


def _labelled() -> list[dict[str, bytes]]:
    official, hub = ("sentence1", "sentence2", "gold_label"), ("premise", "hypothesis", "label")
    rows = [("A man runs.", "He moves.", "entailment"), ("A man runs.", "He sits.", "contradiction"), ("A", "x", "-")]
    coded = [(a, b, code) for (a, b, _), code in zip(rows, (0, 2, -1))]
    return [
        {"n.tsv": _table(official, rows, "\t", "")},
        {"n.jsonl": _lines(official, rows)},
        {"n.jsonl": _lines(hub, coded)},
        {"n.csv": _table(hub, coded)},
        {"n.parquet": _parquet(hub, coded)},
    ]


def _similarity() -> list[dict[str, bytes]]:
    names, rows = (
        ("sentence1", "sentence2", "score"),
        [("A man runs.", "He runs.", 4.5), ("x y", "z", 0), ("a", "b", 3)],
    )
    benchmark = [("main", "file", "2012", i, score, a, b) for i, (a, b, score) in enumerate(rows)]
    sick = ("pair_ID", "sentence_A", "sentence_B", "relatedness_score")
    return [
        {"s.csv": _table(names, rows)},
        {"s.jsonl": _lines(names, rows)},
        {"sts-dev.csv": "".join("\t".join(map(str, row)) + "\n" for row in benchmark).encode()},
        {"SICK_trial.txt": _table(sick, [(i, *row) for i, row in enumerate(rows)], "\t", "")},
        {"STS.input.a.txt": b"A man runs.\tHe runs.\nx y\tz\na\tb\n", "STS.gs.a.txt": b"4.5\n\n3\n"},
    ]


def _configs() -> list[dict[str, bytes]]:
    recipes = sorted(Path(__file__).resolve().parents[1].glob("*.yaml"))
    anchored = b"beta: &a 0.1\nanchor: *a\nmodel: tiny\ntriplets: captions\nlearning_rate: 1e-4\n"
    return [{"c.yaml": anchored}, *({"c.yaml": path.read_bytes()} for path in recipes)]


def _texts() -> list[dict[str, bytes]]:
    problem = {"question": "1 + 1?", "answer": "It is <<1+1=2>>2. #### 2"}
    passages = ({"text": "Some words."}, {"text": "More words."})
    return [
        {"g.jsonl": "".join(json.dumps(problem) + "\n" for _ in range(3)).encode()},
        {"g.jsonl": "".join(json.dumps(text) + "\n" for text in passages).encode()},
        {"g.txt": b"A passage.\nIt goes on.\n\nAnother one.\n"},
    ]


def _hellaswag() -> list[dict[str, bytes]]:
    rows = [(f"Pets: A dog {k}", ["barks.", "sings.", "reads [title] it.", "x"], k % 4) for k in range(3)]
    return [{"h.jsonl": _lines(("ctx", "endings", "label"), rows)}]


def _transfer() -> list[dict[str, bytes]]:
    questions = "".join(f"{('NUM', 'HUM')[k % 2]}:x Who or how many {k} ?\n" for k in range(24)).encode()
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"
    pairs = (header + "".join(f"{k % 2}\t1\t2\tOne {k}.\tTwo.\n" for k in range(24))).encode()
    names = {"TREC": "TREC.{}", "MRPC": "msr_paraphrase_{}.txt"}
    data = {"TREC": questions, "MRPC": pairs}
    return [{names[task].format(split): data[task] for task in names for split in ("train", "test")}]


def _plain() -> list[dict[str, bytes]]:
    lines, fields = b"A man runs.\nTwo dogs sleep.\r\nDone", [("a b",), ("c",)]
    return [
        {"e.txt": lines},
        {"e.txt.gz": gzip.compress(lines)},
        {"e.jsonl": _lines(("text",), fields)},
        {"e.csv": _table(("text",), fields)},
        {"e.parquet": _parquet(("text",), fields)},
    ]
