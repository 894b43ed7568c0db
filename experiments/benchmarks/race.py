"""What every benchmark shares: alternating runs, medians, peak memory in fresh processes, tables, JSON."""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib import metadata
from pathlib import Path

import torch
from draw import bars

from sempa.io.files import write_atomic
from sempa.io.origin import processor
from sempa.model.base import faster_dtype
from sempa.report.plots import available

RESULTS = Path(__file__).resolve().parents[1] / "results"
_PACKAGES = ("torch", "transformers", "trl", "peft", "sentence-transformers", "liger-kernel", "cut-cross-entropy")


def arguments(description: str, **options: dict) -> argparse.Namespace:
    """Parse `--short`, `--device`, `--rounds` and a benchmark's own options (name=keywords of `add_argument`)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--short", action="store_true", help="fewer sizes and rounds, for `make bench`")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=None, help="alternating rounds (default 5, short: 3)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: bfloat16 where it is the faster")
    parser.add_argument("--keep", metavar="NAME", help="name of the result's files (default: the benchmark's)")
    for name, keywords in options.items():
        parser.add_argument(f"--{name}", **keywords)
    given = parser.parse_args()
    given.rounds = given.rounds or (3 if given.short else 5)
    return given


def dtype(given: argparse.Namespace) -> str:
    """The dtype that every contestant computes in: the one asked for, else bfloat16 where it is the faster."""
    return given.dtype or faster_dtype(torch.device(given.device))


def alternate(contestants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each contestant: one warm-up, then `rounds` rounds in which everybody runs once, in turn.

    Alternating spreads the machine's noise over all; nobody follows the same one in every round (Williams' design).
    """
    names = list(contestants)
    for name in names:
        contestants[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    # 0, -1, 1, -2, 2, … places from the round's own.
    offsets = [(-1) ** i * ((i + 1) // 2) for i in range(len(names))]
    for number in range(rounds):
        for name in (names[(number + offset) % len(names)] for offset in offsets):
            synchronize()
            began = time.perf_counter()
            contestants[name]()
            synchronize()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def synchronize() -> None:
    """Wait for the accelerator, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class PeakMemory:
    """Bytes by which the peak has risen since the start: CUDA's allocator, or this process's resident set (Linux)."""

    def __init__(self, device: str) -> None:
        self.cuda = device.startswith("cuda")
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            # 5 resets the high-water mark to what is resident now.
            Path("/proc/self/clear_refs").write_text("5")
            self.before = _status("VmRSS")

    def risen(self) -> int:
        """Peak so far minus what there was at the start."""
        if self.cuda:
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated() - self.before
        return _status("VmHWM") - self.before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def in_fresh_process(script: str, *arguments: object) -> dict:
    """Run `script` with arguments in a process of its own; its last line of output is JSON."""
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def machine(device: str) -> dict[str, object]:
    """Processor, threads, packages and date: what makes a figure comparable."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": date.today().isoformat(),
        "processor": torch.cuda.get_device_name() if device.startswith("cuda") else processor(),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "not set"),
        "python": platform.python_version(),
        "packages": versions,
    }


def table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Rows as aligned text; floats with three significant digits."""
    cells = [[str(c) for c in columns], *([_text(value) for value in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    return "\n".join("  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in cells)


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def keep(
    name: str, given: argparse.Namespace, rows: list[dict], picture: Callable[[list[dict]], str] | None = bars
) -> Path:
    """Write rows and machine to `experiments/results/NAME[-short].json`, and their picture, if any, as SVG beside it.

    `--keep` gives another NAME, so that a run of other sizes stands beside the first.
    """
    kind = "-short" if given.short else ""
    where = "-cuda" if given.device.startswith("cuda") else ""
    path = RESULTS / f"{given.keep or name}{where}{kind}.json"
    path.parent.mkdir(exist_ok=True)
    # A file by its name alone: where it lies is this machine's business.
    options = [Path(option).name if Path(option).exists() else option for option in sys.argv[1:]]
    command = shlex.join(["python", f"experiments/benchmarks/{Path(sys.argv[0]).name}", *options])
    report = {
        "command": command,
        "machine": machine(given.device),
        **({} if "dtype" in rows[0] else {"dtype": dtype(given)}),
        "rounds": given.rounds,
        "rows": rows,
    }
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if picture is not None and available():
        write_atomic(path.with_suffix(".svg"), picture(rows))
    return path
