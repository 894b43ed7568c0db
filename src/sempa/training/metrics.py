"""A run's metrics on disk: a line of JSON per step, never ahead of the checkpoint that a resumed run starts from."""

import contextlib
import json
import os
from pathlib import Path
from typing import TextIO

from sempa.io.files import explain_os_errors, write_atomic


def read_metrics(path: Path) -> list[dict]:
    """The whole lines of a metrics file (a kill may have cut the last one)."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return records


def open_metrics(path: Path, step: int) -> TextIO:
    """Open the metrics for appending, less what was logged beyond the checkpoint that training resumes from."""
    with explain_os_errors(path):
        if path != Path(os.devnull):
            records = [r for r in read_metrics(path) if r["step"] <= step] if path.is_file() and step else []
            write_atomic(path, "".join(json.dumps(record) + "\n" for record in records))
        # Line by line, so that a full disk is met where a line is written.
        return path.open("a", encoding="utf-8", buffering=1)


def log_metrics(metrics: TextIO, record: dict) -> None:
    """Write a record as a line; raises `SempaError` when the disk is full."""
    with explain_os_errors(Path(metrics.name)):
        metrics.write(json.dumps(record) + "\n")
