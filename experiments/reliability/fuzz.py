"""Throw broken input at every reader: each ends in a result or in a `SempaError` that names the file, never otherwise.

    .venv/bin/python experiments/reliability/fuzz.py --inputs 100000 --json experiments/results/fuzz.json

Sound files of every format are cut, flipped, spliced, repeated and stuffed with what parsers dislike: stray quotes,
NUL, byte-order marks, half surrogates, numbers without end, gzip within gzip, YAML's anchors. Any
other exception is a finding, and so are an input that takes longer than some seconds and a message that does not name
the file. The seed and an input's number make it again (`--first NUMBER --inputs 1`). `--resume` goes on behind the
inputs that the JSON file counts already.
"""

import argparse
import contextlib
import gzip
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
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
from sempa.errors import SempaError
from sempa.evaluation.eval_texts import read_texts, report_texts
from sempa.evaluation.hellaswag import read_hellaswag
from sempa.io.files import read_json, write_json
from sempa.model.adapter_files import load_adapter, save_adapter
from sempa.model.base import BaseModel
from sempa.model.lora import add_lora, remove_adapter
from sempa.training.checkpoints import checkpoint_files, read_checkpoint

# Of the processor, so that a busy machine makes no finding; a reader that sleeps is found by the clock, whose ticks a
# stopped process does not count.
SECONDS_PER_INPUT, SECONDS_BY_THE_CLOCK, TICK = 10, 300, 10
KEPT_EVERY = 1000
NASTY = (
    *(b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\x1f\x8b", b"\x80", b"\r", b"\n", b"\r\n", b"\n\n\n", b"\t", b'"', b'""'),
    *(b"'", b",", b";", b"{", b"}", b"[", b"]", b":", b"\\", b"\\u0000", b"\\ud800", b'{"', b"null", b"NaN", b"true"),
    *(b"-Infinity", b"1e999", b"-1", b"0", b"9" * 5000, b"\xed\xa0\x80", b"\xe2\x80\xa8"),
    *(b"&a ", b"*a", b"<<: *a", b"!!python/object/apply:os.system ['true']", b"!!int x", b"? ", b"- ", b"|", b"%YAML"),
    *(b"2001-99-99", b"0x", b"0b", b"!!binary ", b"!!timestamp ", b"..", b"../../../etc/passwd", b"sent0", b"label"),
    *(b"F8_E4M3", b"I64", b"BOOL", b"F64", b"U16", b"C64", b"18446744073709551615", b"lora_A", b'"r": 1e9', b"$x^$"),
)
"""What parsers dislike."""


@dataclass
class Reader:
    """A reader under test: sound inputs as files by name, and how a folder that holds one input is read."""

    name: str
    sound: list[dict[str, bytes]]
    read: Callable[[Path], object]
    # How many of a thousand inputs: the slow readers get few.
    weight: int


def mutate(draw: random.Random, data: bytes, others: list[bytes]) -> bytes:
    """One to eight random changes, some of the whole file."""
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        # Half of the changes fall on the beginning, where long files have their headers.
        place = draw.randrange(min(len(data), draw.choice((len(data), 500))) + 1)
        end = min(len(data), place + draw.choice((1, 1, 2, 8, 64, 1000)))
        kind = draw.randrange(12)
        if kind == 0:
            data = data[:place]
        elif kind == 1:
            data = data[:place] + data[end:]
        elif kind == 2 and place < len(data):
            data = data[:place] + bytes([data[place] ^ 1 << draw.randrange(8)]) + data[place + 1 :]
        elif kind == 3:
            data = data[:place] + data[place:end] * draw.choice((2, 3, 50)) + data[end:]
        elif kind == 4:
            other = draw.choice(others)
            begin = draw.randrange(len(other) + 1)
            data = data[:place] + other[begin : begin + draw.choice((4, 40, 400))] + data[end:]
        elif kind == 5:
            data = data[:place] + draw.randbytes(draw.choice((1, 2, 4, 8, 100))) + data[place:]
        elif kind == 6 and draw.random() < 0.3:
            data = gzip.compress(data, draw.choice((0, 6)))
        elif kind == 7 and draw.random() < 0.1:
            data = data.decode("utf-8", "replace").encode(
                draw.choice(("utf-16", "utf-8-sig", "utf-32", "cp500")), "replace"
            )
        else:
            data = data[:place] + draw.choice(NASTY) + data[place if kind == 8 else end :]
    return data


def structured(draw: random.Random, depth: int = 0) -> object:
    """A random JSON or YAML value."""
    kind = draw.randrange(9 if depth < 3 else 7)
    if kind == 7:
        return [structured(draw, depth + 1) for _ in range(draw.randrange(4))]
    if kind == 8:
        return {draw.choice(("a", "r", "peft_type", "text", "")): structured(draw, depth + 1) for _ in range(3)}
    numbers = (0, -1, 2, 1e308, -1e-308, float("nan"), float("inf"), 10**400, True)
    texts = ("", "x", "LORA", "\ud800", "é" * 50, "a\nb", "../..", "1e-4", "{")
    return draw.choice((None, draw.choice(numbers), draw.choice(texts)))


def reshape(draw: random.Random, data: bytes) -> bytes:
    """A JSON document or YAML mapping with one of its values replaced by a random one."""
    try:
        value = json.loads(data)
    except ValueError:
        lines = data.split(b"\n")
        place = draw.randrange(len(lines))
        key = lines[place].partition(b":")[0]
        lines[place] = key + b": " + json.dumps(structured(draw)).encode()
        return b"\n".join(lines)
    if isinstance(value, dict) and value:
        value[draw.choice(list(value))] = structured(draw)
    return json.dumps(value).encode()


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


def make_input(draw: random.Random, reader: Reader, others: Sequence[bytes]) -> dict[str, bytes]:
    """Sound files of `reader` with one or all of them broken, or one missing."""
    files = dict(draw.choice(reader.sound))
    broken = list(files) if draw.random() < 0.1 else [draw.choice(list(files))]
    for name in broken:
        if len(files) > 1 and draw.random() < 0.02:
            del files[name]
        else:
            change = reshape if draw.random() < 0.2 else mutate
            files[name] = change(draw, files[name]) if change is reshape else change(draw, files[name], others)
    return files


class TooLong(BaseException):
    """An input took longer than it may; not an `Exception`, so that no reader can take it for one."""


def fuzz(
    inputs: int,
    seed: int,
    folder: Path,
    only: str = "",
    first: int = 0,
    keep: Callable[[dict], object] = lambda result: None,
) -> dict:
    """Read so many broken inputs; returns counts by reader, and the findings with what makes them again.

    `keep` gets the outcome so far every thousand inputs.
    """
    testees = [reader for reader in readers(folder) if only in reader.name]
    others = [data for reader in testees for files in reader.sound for data in files.values()]
    outcomes = {reader.name: Counter() for reader in testees}
    findings: list[dict] = []
    inside, nowhere = folder / "input", (folder / "nowhere").open("w")
    before = _peak_mib()
    began = time.perf_counter()
    waited = 0

    def tick(_signal: int, _frame: object) -> None:
        nonlocal waited
        waited += TICK
        if waited > SECONDS_BY_THE_CLOCK:
            raise TooLong(f"over {SECONDS_BY_THE_CLOCK} s by the clock")

    def outcome(count: int) -> dict:
        return {
            "inputs": count,
            "seed": seed,
            "readers": {name: dict(sorted(counts.items())) for name, counts in outcomes.items()},
            "findings": findings,
            "peak_memory_growth_mib": round(_peak_mib() - before),
            "seconds": round(time.perf_counter() - began, 1),
        }

    signal.signal(signal.SIGPROF, _too_long)
    signal.signal(signal.SIGALRM, tick)
    for number in range(first, first + inputs):
        draw = random.Random(f"{seed} {number}")
        (reader,) = draw.choices(testees, [reader.weight for reader in testees])
        shutil.rmtree(inside, ignore_errors=True)
        inside.mkdir()
        for name, data in make_input(draw, reader, others).items():
            (inside / name).write_bytes(data)
        signal.setitimer(signal.ITIMER_PROF, SECONDS_PER_INPUT)
        waited = 0
        signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
        try:
            with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                reader.read(inside)
            outcomes[reader.name]["read"] += 1
        except SempaError as error:
            outcomes[reader.name]["refused"] += 1
            if problem := _unclear(str(error), inside):
                findings.append({"number": number, "reader": reader.name, "what": problem, "message": str(error)[:300]})
        except (Exception, TooLong) as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__}: {str(error)[:200]} ({Path(place.filename).name}:{place.lineno})"
            findings.append({"number": number, "reader": reader.name, "what": what})
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
        if (number + 1) % KEPT_EVERY == 0:
            keep(outcome(number + 1 - first))
            print(f"{number + 1:,} inputs, {len(findings)} findings", file=sys.stderr, flush=True)
    return outcome(inputs)


def add_up(one: dict, two: dict) -> dict:
    """The outcome of the inputs behind those of `one` added to it; memory is the larger of both."""
    readers = {
        name: dict(sorted((Counter(one["readers"].get(name)) + Counter(counts)).items()))
        for name, counts in two["readers"].items()
    }
    return {
        "inputs": one["inputs"] + two["inputs"],
        "seed": two["seed"],
        "readers": readers,
        "findings": one["findings"] + two["findings"],
        "peak_memory_growth_mib": max(one["peak_memory_growth_mib"], two["peak_memory_growth_mib"]),
        "seconds": round(one["seconds"] + two["seconds"], 1),
    }


def _unclear(message: str, inside: Path) -> str:
    """What is wrong with the sentence of an error: it must name the file, be one line and stay short."""
    # A GGUF file is read through a folder of its name in the cache.
    if not (str(inside) in message or "/cache/models/m-" in message):
        return "the message does not name the file"
    if len(message.splitlines()) != 1:
        return "the message has several lines"
    return "the message is very long" if len(message) > 2010 else ""


def _too_long(_signal: int, _frame: object) -> None:
    raise TooLong(f"over {SECONDS_PER_INPUT} s")


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Run the fuzzer, print and write its outcome; exit code 1 when there are findings."""
    parser = argparse.ArgumentParser(description="Throw broken input at every reader.")
    parser.add_argument("--inputs", type=int, default=100_000, help="how many (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all inputs (default %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="number of the first input, to make one again")
    parser.add_argument("--only", default="", help="only the readers whose name holds this")
    parser.add_argument("--json", type=Path, help="write the outcome to this file, now and then and at the end")
    parser.add_argument("--resume", action="store_true", help="go on behind the inputs that --json counts already")
    arguments = parser.parse_args()
    done = {"inputs": 0, "readers": {}, "findings": [], "peak_memory_growth_mib": 0, "seconds": 0.0}
    if arguments.resume and arguments.json and arguments.json.is_file():
        done = read_json(arguments.json)
        if done["seed"] != arguments.seed:
            parser.error(f"{arguments.json} was made with seed {done['seed']}")

    def keep(result: dict) -> dict:
        result = add_up(done, result)
        if arguments.json:
            write_json(arguments.json, {"command": " ".join(["fuzz.py", *sys.argv[1:]]), **result})
        return result

    first, left = arguments.first + done["inputs"], max(0, arguments.inputs - done["inputs"])
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SEMPA_CACHE"] = str(Path(folder) / "cache")
        result = keep(fuzz(left, arguments.seed, Path(folder), arguments.only, first, keep))
    print(json.dumps(result, indent=2, ensure_ascii=False))
    raise SystemExit(1 if result["findings"] else 0)


if __name__ == "__main__":
    main()
