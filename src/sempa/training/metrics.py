"""The record of a run's steps: `metrics.jsonl`, the lines of the log, and a warning of likelihood displacement."""

import contextlib
import json
import warnings
from collections.abc import Mapping
from pathlib import Path

from sempa.config import Config
from sempa.io.files import explain_os_errors, write_atomic

# Nats between a sentence's log-probability and the base's: some four nats for each of a dozen tokens.
FAR = 50.0


def read_metrics(path: Path) -> list[dict]:
    """The whole lines of a metrics file (a kill may have cut the last one)."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            records.append(json.loads(line))
    return records


def cut_metrics(path: Path, step: int) -> None:
    """Take out what was logged beyond the checkpoint of `step`, from which training goes on."""
    records = read_metrics(path) if step and path.is_file() else []
    write_atomic(path, "".join(json.dumps(record) + "\n" for record in records if record["step"] <= step))


def log_metrics(path: Path, record: dict) -> None:
    """Append a record as a line; raises `SempaError` when the disk is full."""
    with explain_os_errors(path), path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")


def warn_of_displacement(config: Config, step: int, record: Mapping[str, float]) -> bool:
    """Warn where chosen sentences, too, have become far less likely (arXiv 2410.08847); returns whether they have."""
    ratio = record.get("rewards/chosen", 0.0) / config.beta
    if ratio >= -FAR:
        return False
    warnings.warn(
        f"step {step}: the chosen sentences' log-ratio to the base is {ratio:.0f} nats, so training makes them less "
        "likely too: raise anchor or retention, or lower preference or learning_rate",
        stacklevel=2,
    )
    return True


def print_step(step: int, total: int, record: Mapping[str, float], rate: float, minutes_left: float) -> None:
    """A step's line in the log: losses in nats, triplets per second of this step."""
    shown = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy"}
    shown |= {"contrast_loss": "contrast", "neutral_kl": "KL"}
    losses = "  ".join(f"{label} {record[name]:.3f}" for name, label in shown.items() if name in record)
    print(f"step {step}/{total}  {losses}  {rate:.1f} triplets/s  {minutes_left:.1f} min left", flush=True)
