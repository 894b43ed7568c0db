"""All that wants a GPU, in ten minutes on one card: correctness, kernels, steps of 1 B and 8 B, embedding, a run.

    .venv/bin/python experiments/benchmarks/gpu.py           # one H100 or H200
    .venv/bin/python experiments/benchmarks/gpu.py --tiny    # the same sections on a CPU, with tiny models

The large models have random weights, made on the device. What fails or is missing is kept with its reason, and the rest
goes on. Results are written after every section: JSON, a table (.md) and a picture (.svg).
"""

import argparse
import faulthandler
import json
import signal
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import race
import torch
from draw import bars
from gpu_checks import check_gradients, check_kernel, check_packing
from gpu_races import install_peers, race_encoders, race_kernels, race_steps, whole_run
from gpu_setting import Setting, dtype_name, free_memory, full_setting, reason, tiny_setting

from sempa.io.files import write_atomic, write_json
from sempa.report.plots import available

# Seconds after which no section begins, that a section may take, after which the last one's contestants are ended, and
# after which the program ends wherever it is.
BUDGET, SECTION, LAST, END = 420, 150, 500, 580

SECTIONS: dict[str, Callable[[Setting], list[dict]]] = {
    "packages": install_peers,
    "packed = separate": check_packing,
    "kernel against float64": check_kernel,
    "gradients against float64": check_gradients,
    "log-probabilities": race_kernels,
    "step, 1 B": partial(race_steps, size="1 B"),
    "embedding": race_encoders,
    "a whole run": whole_run,
    "step, 8 B": partial(race_steps, size="8 B"),
}


def run_sections(s: Setting, out: Path, command: str) -> dict:
    """Run every section and write `out`.json, .md and .svg after each; returns the result."""
    signal.signal(signal.SIGALRM, _end_section)
    began, measured = time.perf_counter(), []
    result = {"command": command, "dtype": dtype_name(s.dtype), "sections": []}
    for name, section in SECTIONS.items():
        entry, started = {"name": name}, time.perf_counter()
        try:
            if started - began > BUDGET:
                raise TimeoutError(f"not begun: {BUDGET} s are over")
            # Again and again, for each contestant that is left.
            signal.setitimer(signal.ITIMER_REAL, min(SECTION, LAST - (started - began)), 15)
            entry["rows"] = section(s)
            _compare(entry["rows"])
        except Exception as error:
            entry["failed"] = reason(error)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        free_memory()
        entry["seconds"] = time.perf_counter() - started
        result["sections"].append(entry)
        print(_section_table(entry), flush=True)
        # Anew each time: the first section installs packages whose versions belong there.
        result["machine"] = race.machine(s.device)
        write_json(out.with_suffix(".json"), result)
        write_atomic(out.with_suffix(".md"), as_markdown(result))
        measured += [{"section": name, **row} for row in entry.get("rows", []) if "ms" in row]
        if measured and available():
            write_atomic(out.with_suffix(".svg"), bars(measured))
    return result


def _end_section(signum: int, frame: object) -> None:
    raise TimeoutError("ended: its time is over")


def _compare(rows: list[dict]) -> None:
    """Put each time beside the first of its size: bare products, or sempa."""
    first = {}
    for row in rows:
        if "ms" in row:
            size = tuple(row.get(side) for side in ("N", "D", "V"))
            row["x first"] = row["ms"] / first.setdefault(size, row["ms"])


def as_markdown(result: dict) -> str:
    """The command, the machine, and a table for each section."""
    machine = result["machine"]
    head = f"`{result['command']}`, {machine['processor']}, {result['dtype']}, {machine['date']}"
    return "\n\n".join([head, *map(_section_table, result["sections"])]) + "\n"


def _section_table(entry: dict) -> str:
    title = f"## {entry['name']} ({entry['seconds']:.1f} s)"
    if "failed" in entry:
        return f"{title}\n\nfailed: {entry['failed']}"
    columns = list(dict.fromkeys(key for row in entry["rows"] for key in row))
    table = race.table(columns, [[row.get(column, "") for column in columns] for row in entry["rows"]])
    return f"{title}\n\n```\n{table}\n```"


def main() -> None:
    """Run all sections; exit code 1 when one failed or a check does not pass."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, on a CPU too")
    parser.add_argument("--out", type=Path, help="where .json, .md and .svg go (default: experiments/results/gpu)")
    given = parser.parse_args()
    if not given.tiny and not torch.cuda.is_available():
        parser.exit(2, f"{parser.prog}: no GPU is there; --tiny rehearses on a CPU\n")
    out = given.out or race.RESULTS / ("gpu-tiny" if given.tiny else "gpu")
    out.parent.mkdir(parents=True, exist_ok=True)
    # A hung kernel does not come back to Python: the last resort ends the program from outside of it.
    faulthandler.dump_traceback_later(END, exit=True)
    torch.backends.cuda.matmul.allow_tf32 = False
    with tempfile.TemporaryDirectory() as folder:
        setting = tiny_setting("cpu", Path(folder)) if given.tiny else full_setting("cuda", Path(folder))
        result = run_sections(setting, out, f"gpu.py{' --tiny' * given.tiny}")
    failed = []
    for entry in result["sections"]:
        failed += [entry["name"]] if "failed" in entry else []
        failed += [row["what"] for row in entry.get("rows", []) if row.get("passes") is False]
    print(json.dumps({"failed": failed, "seconds": sum(entry["seconds"] for entry in result["sections"])}))
    raise SystemExit(1 if failed else 0)


if __name__ == "__main__":
    main()
