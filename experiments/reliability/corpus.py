"""Embed a million short sentences into shards with `sempa embed`, kill it once, resume, and see whether all stays flat.

    .venv/bin/python experiments/reliability/corpus.py --sentences 1000000

The model is the tests' tiny one: reading, packing, sharding and resuming are what is tried, not arithmetic, which would
take hours. A third of the way the process is killed (SIGKILL); the same command then continues to the end. Memory, file
handles and threads of the second process are sampled every second and judged as by long_run.py; the rate of its second
half is compared with that of its first. Vectors of some rows are compared with those of `Embedder.encode`. Writes the
figures as JSON and the plot as SVG.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from long_run import MIB, WARM_UP, Sample, judge
from tiny import make_folder, tiny_texts

from sempa.embedding.corpus import read_shards
from sempa.embedding.embedder import Embedder
from sempa.io.files import write_atomic, write_json
from sempa.report.plots import ALIGNED, INK, available, make_figure, svg

SHARD_ROWS, BATCH = 16_384, 256
SECONDS_BETWEEN_SAMPLES, KEPT = 1.0, 200
# The rate may fall by so much from the first half to the second; cosines of compared vectors.
LARGEST_SLOWDOWN, SMALLEST_COSINE = 0.1, 0.9999


def sentence(number: int) -> str:
    """A short sentence that no other number has."""
    texts = tiny_texts()
    return f"{texts[number % len(texts)][number % 3]} Number {number}."


def watch(
    command: list[str], until: Callable[[], bool], done: Callable[[], int]
) -> tuple[list[Sample], list[int], int]:
    """Run a command and sample its process; kill it when `until` says so. Returns samples, rows done, exit status."""
    began, samples, rows = time.perf_counter(), [], []
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    state = Path("/proc", str(process.pid))
    while process.poll() is None:
        time.sleep(SECONDS_BETWEEN_SAMPLES)
        try:
            pages = int((state / "statm").read_text().split()[1])
            handles, threads = (len(list((state / name).iterdir())) for name in ("fd", "task"))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            break
        if pages:
            samples.append(Sample(time.perf_counter() - began, pages * os.sysconf("SC_PAGE_SIZE"), handles, threads, 0))
            rows.append(done())
        if until():
            process.kill()
    error = process.communicate()[1]
    if process.returncode > 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{error[-2000:]}")
    return samples, rows, process.returncode


def corpus_run(folder: Path, count: int, shard_rows: int = SHARD_ROWS) -> dict:
    """Write the corpus, embed it with one kill, and judge memory, rate and vectors."""
    model, corpus, vectors = make_folder(folder / "model"), folder / "corpus.txt", folder / "vectors"
    with corpus.open("w", encoding="utf-8") as stream:
        stream.writelines(f"{sentence(number)}\n" for number in range(count))
    command = [sys.executable, "-m", "sempa", "embed", "--model", str(model), "--batch-size", str(BATCH)]
    command += ["--shard-rows", str(shard_rows), str(corpus), str(vectors)]

    def done() -> int:
        return min(count, shard_rows * len(list(vectors.glob("*.safetensors"))))

    _, _, killed = watch(command, lambda: done() >= count / 3, done)
    before = done()
    samples, rows, ended = watch(command, lambda: False, done)
    seconds = [sample.seconds for sample in samples]
    # As with the memory, behind a warm-up: a process that loads does not embed yet.
    warm = int(WARM_UP * len(rows))
    middle = (warm + len(rows)) // 2
    first, last = (_rate(seconds, rows, part) for part in (slice(warm, middle), slice(middle, None)))
    found = np.concatenate([shard for _, shard in read_shards(vectors)])
    chosen = list(range(0, count, max(1, count // 64)))
    expected = Embedder(str(model), device="cpu").encode([sentence(number) for number in chosen])
    cosines = (found[chosen] * expected).sum(1) / np.linalg.norm(found[chosen], axis=1)
    cosines /= np.linalg.norm(expected, axis=1)
    return {
        "command": f"corpus.py --sentences {count}",
        "sentences": count,
        "killed_at": before,
        "exit_statuses": [killed, ended],
        "rows": len(found),
        "smallest_cosine": round(float(cosines.min()), 6),
        "sentences_per_second": {"first half": round(first), "second half": round(last)},
        **judge(samples),
        "whole": killed == -9 and ended == 0 and len(found) == count and bool(cosines.min() > SMALLEST_COSINE),
        "rate_flat": last > (1 - LARGEST_SLOWDOWN) * first,
        "samples": {
            "seconds": [round(value, 1) for value in seconds[:: -(-len(seconds) // KEPT)]],
            "memory": [sample.memory for sample in samples[:: -(-len(samples) // KEPT)]],
            "rows": rows[:: -(-len(rows) // KEPT)],
        },
    }


def _rate(seconds: list[float], rows: list[int], part: slice) -> float:
    """Rows a second of a part of the samples: the slope of a fitted line."""
    return float(np.polyfit(seconds[part], rows[part], 1)[0])


def plot(result: dict) -> str:
    """Memory and rows over the seconds of the resumed process, as an SVG."""
    figure, axes = make_figure(2, (8.4, 2.9))
    samples = result["samples"]
    axes[0].plot(samples["seconds"], [value / MIB for value in samples["memory"]], color=ALIGNED, linewidth=1.2)
    axes[0].set_title("resident memory after the kill, MiB")
    axes[0].set_ylim(bottom=0)
    axes[1].plot(samples["seconds"], [value / 1000 for value in samples["rows"]], color=ALIGNED, linewidth=1.2)
    axes[1].axhline(result["killed_at"] / 1000, color=INK, linewidth=0.7, linestyle=":")
    axes[1].set_title("sentences embedded, thousand")
    for axis in axes:
        axis.set_xlabel("seconds")
    return svg(figure, "corpus", "Memory and sentences over the seconds of a resumed corpus", alone=True)


def main() -> None:
    """Run, print and write; exit code 1 when something is not flat or not whole."""
    parser = argparse.ArgumentParser(description="Embed a large corpus, kill it once, and look at memory and rate.")
    parser.add_argument("--sentences", type=int, default=1_000_000, help="how many (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/corpus"), help="where .json and .svg go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = corpus_run(Path(folder), arguments.sentences)
    write_json(arguments.out.with_suffix(".json"), result)
    print(json.dumps({key: value for key, value in result.items() if key != "samples"}, indent=2))
    if available():
        write_atomic(arguments.out.with_suffix(".svg"), plot(result))
    raise SystemExit(0 if all(value for key, value in result.items() if key.endswith("_flat") or key == "whole") else 1)


if __name__ == "__main__":
    main()
