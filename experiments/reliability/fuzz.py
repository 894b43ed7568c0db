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
from collections.abc import Callable
from pathlib import Path

from broken_input import make_input
from readers import readers

from sempa.errors import SempaError
from sempa.io.files import read_json, write_json

# Of the processor, so that a busy machine makes no finding; a reader that sleeps is found by the clock, whose ticks a
# stopped process does not count.
SECONDS_PER_INPUT, SECONDS_BY_THE_CLOCK, TICK = 10, 300, 10
KEPT_EVERY = 1000


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
        for name, data in make_input(draw, reader.sound, others).items():
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
