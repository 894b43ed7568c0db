"""Kill training with SIGKILL at random moments, resume it, and compare the end with that of a run left in peace.

    .venv/bin/python experiments/reliability/kill.py --kills 200 --json experiments/results/kill.json

A warm parent holds torch and a tiny model; every attempt is a forked child that trains, or resumes, until it is killed:
by the clock, or by a file layer that counts what training does to the disk (write, fsync, rename, mkdir, unlink, rmdir)
and dies before, within or after the k-th of these. A third of the children also take with them half of what had not
been fsynced, as a power cut might. After each kill every checkpoint must be whole; at the end of each run the adapter,
the optimiser's moments, the state and the metrics must equal the unbroken run's to the bit.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from tiny import load, make_folder, one_thread, train_tiny

from sempa.errors import SempaError
from sempa.io.files import write_json
from sempa.model.adapter_files import read_adapter
from sempa.model.base import BaseModel
from sempa.training.checkpoints import checkpoint_files, read_checkpoint
from sempa.training.metrics import read_metrics

EPOCHS = 3.0
# What may differ between two runs of the same training.
TIMES = ("seconds", "triplets_per_second")
HARMLESS = {"fatal": 0, "moment": "", "power_cut": False}
MODES = ("clock", "file layer", "power cut")


class FaultLayer:
    """Counts what the process does to the disk, and kills it at operation number `fatal`; 0 only counts.

    `moment` is "before", "within" (half a write) or "after"; with `power_cut`, what is not fsynced is cut off.
    """

    def __init__(self, run: Path, report: Path, fatal: int, moment: str, power_cut: bool) -> None:
        self.run, self.report, self.fatal, self.moment, self.power_cut = run, report, fatal, moment, power_cut
        self.count = 0
        self.synced: dict[int, int] = {}
        self.began = time.time_ns()
        for name in ("replace", "rename", "mkdir", "unlink", "rmdir"):
            setattr(os, name, self._counted(name, getattr(os, name)))
        os.fsync = self._counted("fsync", self._fsync(os.fsync))
        self.write, Path.write_bytes = Path.write_bytes, lambda path, data: self._write_bytes(path, data)

    def _counted(self, name: str, real: Callable) -> Callable:
        def operation(*arguments: object, **options: object) -> object:
            self.count += 1
            if self.count == self.fatal and self.moment == "before":
                self._die(f"before {name}")
            result = real(*arguments, **options)
            if self.count == self.fatal:
                self._die(f"after {name}")
            return result

        return operation

    def _fsync(self, real: Callable) -> Callable:
        def fsync(descriptor: int) -> None:
            real(descriptor)
            status = os.fstat(descriptor)
            self.synced[status.st_ino] = status.st_size

        return fsync

    def _write_bytes(self, path: Path, data: bytes) -> int:
        self.count += 1
        if self.count == self.fatal:
            if self.moment != "before":
                self.write(path, data[: len(data) // 2] if self.moment == "within" else data)
            self._die(f"{self.moment} write")
        return self.write(path, data)

    def _die(self, place: str) -> None:
        with self.report.open("w") as stream:
            stream.write(place)
        if self.power_cut:
            for file in filter(Path.is_file, self.run.rglob("*")):
                status = file.stat()
                if status.st_ino in self.synced or status.st_mtime_ns > self.began:
                    os.truncate(file, (self.synced.get(status.st_ino, 0) + status.st_size) // 2)
        os.kill(os.getpid(), signal.SIGKILL)


def attempt(base: BaseModel, run: Path, log: Path, layer: dict | None = None, seconds: float | None = None) -> int:
    """Train or resume in a forked child, killed as `layer` says or after so many seconds; the child's wait status."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            one_thread()
            with log.open("w") as stream:
                os.dup2(stream.fileno(), 1)
                os.dup2(stream.fileno(), 2)
            os.environ["SEMPA_CACHE"] = str(run.with_suffix(".cache"))
            counter = FaultLayer(run, log.with_suffix(".place"), **(layer or HARMLESS))
            train_tiny(base, run, EPOCHS)
            log.with_suffix(".count").write_text(str(counter.count))
            status = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def outcome(run: Path) -> dict:
    """What of a finished run must not depend on kills: bytes of its tensors, state and metrics less their times."""
    tensors, state = read_checkpoint(checkpoint_files(run)[-1])
    return {
        "files": {file.name: file.read_bytes() for file in sorted((run / "adapter").iterdir())},
        "checkpoint": {name: tensor.numpy().tobytes() for name, tensor in tensors.items()},
        "state": {key: value for key, value in state.items() if key not in TIMES},
        "metrics": [{k: v for k, v in r.items() if k not in TIMES} for r in read_metrics(run / "metrics.jsonl")],
    }


def unreadable(run: Path) -> list[str]:
    """What a killed process left that cannot be read: checkpoints, or the best adapter."""
    found = []
    for path in checkpoint_files(run):
        try:
            read_checkpoint(path)
        except SempaError as error:
            found.append(str(error))
    if (run / "adapter" / "adapter_config.json").exists():
        try:
            read_adapter(run / "adapter")
        except SempaError as error:
            found.append(str(error))
    return found


def kill_test(folder: Path, kills: int, seed: int) -> dict:
    """Kill at least so many times, over as many runs as that takes; returns the counts.

    Raises `SystemExit` with the reason when a child fails of itself, a file is unreadable or a result differs.
    """
    draw = random.Random(seed)
    one_thread()
    base = load(make_folder(folder / "model"))
    log = folder / "child.log"
    began = time.perf_counter()
    _expect(attempt(base, folder / "whole", log) == 0, f"the unbroken run failed: {log.read_text()}")
    duration = time.perf_counter() - began
    operations = int(log.with_suffix(".count").read_text())
    whole = outcome(folder / "whole")
    done: Counter[str] = Counter()
    places: Counter[str] = Counter()
    most = resumed = rounds = 0
    while done.total() < kills:
        rounds += 1
        run = folder / f"run-{rounds}"
        killed = 0
        while True:
            mode = draw.choice(MODES)
            moment = draw.choice(("before", "within", "after"))
            fatal = draw.randint(1, operations // 2)
            layer = {"fatal": fatal, "moment": moment, "power_cut": mode == "power cut"}
            seconds = draw.uniform(0, duration / 2)
            resumed += bool(checkpoint_files(run))
            status = attempt(base, run, log, *((None, seconds) if mode == "clock" else (layer, None)))
            if not os.WIFSIGNALED(status):
                _expect(status == 0, f"run {rounds}, attempt {killed + 1}: {log.read_text()}")
                break
            killed += 1
            done[mode] += 1
            places["by the clock" if mode == "clock" else log.with_suffix(".place").read_text()] += 1
            _expect(not unreadable(run), f"run {rounds}, kill {killed}: {'; '.join(unreadable(run))}")
        most = max(most, killed)
        found = outcome(run)
        for part in whole:
            _expect(found[part] == whole[part], f"run {rounds}: {part} differ from the unbroken run's")
        if sys.stderr.isatty() or rounds % 10 == 0:
            print(f"{done.total()} kills, {rounds} runs, all equal", file=sys.stderr, flush=True)
    return {
        "kills": done.total(),
        "kills_by_mode": dict(sorted(done.items())),
        "kills_by_place": dict(sorted(places.items())),
        "runs": rounds,
        "most_kills_of_one_run": most,
        "attempts_that_resumed_from_a_checkpoint": resumed,
        "unreadable_checkpoints": 0,
        "runs_bit_equal_to_the_unbroken_one": rounds,
        "disk_operations_of_the_unbroken_run": operations,
        "steps": whole["state"]["step"],
        "seed": seed,
        "seconds": round(time.perf_counter() - began, 1),
        "torch": torch.__version__,
    }


def _expect(condition: bool, otherwise: str) -> None:
    if not condition:
        raise SystemExit(f"kill test failed: {otherwise}")


def main() -> None:
    """Run the test and write its outcome."""
    parser = argparse.ArgumentParser(description="Kill training at random moments and compare what comes of it.")
    parser.add_argument("--kills", type=int, default=200, help="at least so many (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default %(default)s)")
    parser.add_argument("--json", type=Path, help="write the outcome to this file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = kill_test(Path(folder), arguments.kills, arguments.seed)
    print(json.dumps(result, indent=2))
    if arguments.json:
        write_json(arguments.json, {"command": " ".join(["kill.py", *sys.argv[1:]]), **result})


if __name__ == "__main__":
    main()
