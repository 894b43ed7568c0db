"""Train and embed in one process for hours, and see whether memory, file handles, threads and the cache stay flat.

    .venv/bin/python experiments/reliability/long_run.py --minutes 120 --share 0.1

A round trains a tiny model on sixteen triplets into a fresh run folder, embeds sentences with the adapter, takes the
adapter off and measures this process; then it rests, so that its share of one core stays below `--share`. What was
freed goes back to the system before memory is read: a leak is held, the allocator's reserve is not. Behind a warm-up a
line is fitted to the resident memory. It is flat when the line climbs by less than 2 % of the memory or by less than
10 MiB over all that was measured; file handles, threads and the cache folder are flat when they end no higher than they
were after the warm-up. Writes the figures as JSON and the plot as SVG.
"""

import argparse
import contextlib
import ctypes
import gc
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
import torch
from tiny import load, make_folder, one_thread, sentences, train_tiny

from sempa.embedding.embed import embed
from sempa.io.files import write_atomic, write_json
from sempa.model.base import BaseModel
from sempa.model.lora import remove_adapter
from sempa.report.plots import ALIGNED, BASE, INK, available, make_figure, svg

MIB = 2**20
SENTENCES, WARM_UP, FEWEST = 64, 0.2, 10
LARGEST_GROWTH_SHARE, LARGEST_GROWTH_MIB = 0.02, 10.0
# The file keeps so many samples at most; the line is fitted to all.
KEPT, SECONDS_BETWEEN_WRITES = 200, 600


@dataclass(frozen=True)
class Sample:
    """This process after a round: seconds since the beginning, memory and cache in bytes, counts of the rest."""

    seconds: float
    memory: int
    handles: int
    threads: int
    cache: int


def release() -> None:
    """Collect garbage, and let glibc give the system what is free: the heap keeps it otherwise, at random places."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def measure(began: float, cache: Path) -> Sample:
    """Read the state of this process from Linux's `/proc`, and the size of the files in `cache`."""
    release()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    # The listing opens a handle of its own, which every sample counts alike.
    handles, threads = (len(list(Path("/proc/self", name).iterdir())) for name in ("fd", "task"))
    kept = sum(file.stat().st_size for file in cache.rglob("*") if file.is_file())
    return Sample(time.perf_counter() - began, pages * os.sysconf("SC_PAGE_SIZE"), handles, threads, kept)


def one_round(base: BaseModel, run: Path, texts: Sequence[str]) -> None:
    """Train, embed with the adapter, and leave `base` and the disk as they were."""
    with contextlib.redirect_stdout(io.StringIO()):
        train_tiny(base, run, 1.0)
    embed(base, texts)
    remove_adapter(base.model)
    shutil.rmtree(run)


def judge(samples: Sequence[Sample]) -> dict:
    """Fit a line to the memory behind the warm-up and say what is flat; needs two samples behind it."""
    steady = samples[int(WARM_UP * len(samples)) :]
    seconds, memory, handles, threads, cache = np.array([astuple(sample) for sample in steady]).T
    slope = float(np.polyfit(seconds, memory, 1)[0])
    duration, level = float(seconds[-1] - seconds[0]), float(memory.mean()) / MIB
    growth = slope * duration / MIB
    return {
        "measured_minutes": round(duration / 60, 2),
        "memory_mib": round(level, 2),
        "memory_slope_kib_per_hour": round(slope * 3600 / 1024, 2),
        "memory_growth_mib": round(growth, 3),
        "memory_growth_kib_per_round": round(growth * 1024 / (len(steady) - 1), 3),
        "memory_growth_percent": round(100 * growth / level, 3),
        "memory_flat": growth < LARGEST_GROWTH_MIB or growth < LARGEST_GROWTH_SHARE * level,
        **{
            name: {"first": int(values[0]), "last": int(values[-1]), "most": int(values.max())}
            for name, values in (("handles", handles), ("threads", threads), ("cache_bytes", cache))
        },
        "handles_flat": bool(handles[-1] <= handles[0]),
        "threads_flat": bool(threads[-1] <= threads[0]),
        "cache_flat": bool(cache[-1] <= cache[0]),
    }


def long_run(folder: Path, minutes: float, share: float, out: Path) -> dict:
    """Repeat rounds for so long at `share` of one core, writing `out` now and then; returns the last result."""
    one_thread()
    cache = folder / "cache"
    base, texts = load(make_folder(folder / "model")), sentences(SENTENCES)
    samples: list[Sample] = []
    began = written = time.perf_counter()
    while len(samples) < FEWEST or time.perf_counter() - began < 60 * minutes:
        busy = time.process_time()
        one_round(base, folder / "run", texts)
        samples.append(measure(began, cache))
        if len(samples) >= FEWEST and time.perf_counter() - written > SECONDS_BETWEEN_WRITES:
            written = time.perf_counter()
            write_json(out, _result(samples, minutes, share))
        time.sleep((time.process_time() - busy) * (1 / share - 1))
    result = _result(samples, minutes, share)
    write_json(out, result)
    return result


def _result(samples: Sequence[Sample], minutes: float, share: float) -> dict:
    kept = samples[:: -(-len(samples) // KEPT)]
    return {
        "command": f"long_run.py --minutes {minutes:g} --share {share:g}",
        "rounds": len(samples),
        "minutes": round(samples[-1].seconds / 60, 2),
        "cpu_share_of_one_core": round(time.process_time() / samples[-1].seconds, 3),
        "largest_share_asked": share,
        "criterion": f"the line climbs by less than {LARGEST_GROWTH_SHARE:.0%} or {LARGEST_GROWTH_MIB:g} MiB; "
        "handles, threads and cache end no higher than after the warm-up",
        **judge(samples),
        "torch": torch.__version__,
        "samples": {f.name: [round(getattr(sample, f.name), 1) for sample in kept] for f in fields(Sample)},
    }


def plot(result: dict) -> str:
    """Memory with the fitted line's slope, and handles and threads, over the minutes, as an SVG."""
    figure, axes = make_figure(2, (8.4, 2.9))
    samples = result["samples"]
    minutes = [seconds / 60 for seconds in samples["seconds"]]
    axes[0].plot(minutes, [value / MIB for value in samples["memory"]], color=ALIGNED, linewidth=1.2)
    axes[0].set_title(f"resident memory, MiB ({result['memory_growth_mib']:+.2f} MiB after the warm-up)")
    # The wide line shows on both sides of the narrow one where the two are equal.
    for name, colour, width in (("handles", ALIGNED, 4), ("threads", BASE, 1.2)):
        axes[1].plot(minutes, samples[name], color=colour, label=name, linewidth=width)
    axes[1].set_ylim(bottom=0)
    axes[1].set_title("open file handles and threads")
    axes[1].legend(frameon=False, labelcolor=INK)
    for axis in axes:
        axis.set_xlabel("minutes")
    return svg(figure, "long-run", "Memory, file handles and threads over the minutes of a long run", alone=True)


def main() -> None:
    """Run, print and write; exit code 1 when something is not flat."""
    parser = argparse.ArgumentParser(description="Train and embed for long, and look for leaks.")
    parser.add_argument("--minutes", type=float, default=100.0, help="how long (default %(default)s)")
    parser.add_argument("--share", type=float, default=1.0, help="largest share of one core (default %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/long_run"), help="where .json and .svg go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SEMPA_CACHE"] = str(Path(folder) / "cache")
        result = long_run(Path(folder), arguments.minutes, arguments.share, arguments.out.with_suffix(".json"))
    print(json.dumps({key: value for key, value in result.items() if key != "samples"}, indent=2))
    if available():
        write_atomic(arguments.out.with_suffix(".svg"), plot(result))
    raise SystemExit(0 if all(value for key, value in result.items() if key.endswith("_flat")) else 1)


if __name__ == "__main__":
    main()
