"""A run's metrics: a line of JSON per step on disk, and warnings of what they show to go wrong."""

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

from sempa.config import Config
from sempa.io.files import explain_os_errors, write_atomic

# Nats between a sentence's log-probability and the base's: some four nats for each of a dozen tokens.
FAR = 50.0


def read_metrics(path: Path) -> list[dict]:
    """The whole lines of a metrics file (a kill may have cut the last one)."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
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


def warn_of_step(config: Config, step: int, record: Mapping[str, float], already_warned: set[str]) -> None:
    """Warn of what `record`, a step's metrics, shows to be wrong; once for each kind of finding.

    The kinds: a chosen sentence that becomes less likely (likelihood displacement, arXiv 2410.08847), log-ratios that
    explode, and a gradient of zero.
    """
    for kind, text in _findings(config, record):
        if kind not in already_warned:
            already_warned.add(kind)
            warnings.warn(f"step {step}: {text}", stacklevel=2)


def _findings(config: Config, record: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    ratios = {name: record.get(f"rewards/{name}", 0.0) / config.beta for name in ("chosen", "rejected")}
    if ratios["chosen"] < -FAR:
        yield (
            "displaced",
            f"the chosen sentences' log-ratio to the base is {ratios['chosen']:.0f} nats, so training makes them less "
            "likely too: raise anchor or retention, or lower preference or learning_rate",
        )
    for name, ratio in ratios.items():
        # Rejected sentences move far by design; beyond this the language model is lost.
        if abs(ratio) > 10 * FAR:
            yield (
                "exploded",
                f"the {name} sentences' log-ratio to the base is {ratio:.0f} nats, expected at most {10 * FAR:.0f} "
                "either way: lower learning_rate or raise beta",
            )
    if record["grad_norm"] == 0:
        yield "still", "the gradient is zero, so this step does not change the adapter: does the loss depend on it?"
