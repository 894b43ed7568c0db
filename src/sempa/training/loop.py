"""The training loop: steps, metrics, checkpoints, and the adapter with the best development score."""

import contextlib
import json
import math
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from tqdm import tqdm

from sempa.batching.batches import Batches, rounded_up
from sempa.batching.prompts import Preference
from sempa.config import Config
from sempa.errors import SempaError
from sempa.io.files import explain_os_errors, fingerprint, fsync, write_atomic
from sempa.model.adapter_files import save_adapter
from sempa.model.base import BaseModel
from sempa.model.layers import checkpoint_blocks
from sempa.model.resolve import portable_name
from sempa.training.base_samples import base_samples
from sempa.training.checkpoints import load_checkpoint, save_checkpoint
from sempa.training.processes import process_count, process_rank, sum_number
from sempa.training.step import make_optimizer, train_step

# Nats between a sentence's log-probability and the base's: some four nats for each of a dozen tokens.
FAR = 50.0


def train(
    config: Config, base: BaseModel, preferences: list[Preference], run: Path, score_dev: Callable[[], float]
) -> dict:
    """Train the adapter that `base.model` holds; the best by `score_dev` is in `run/adapter` at the end.

    Continues from the latest checkpoint in `run`, bit-exactly as if it had never stopped: whatever a step depends on is
    in the checkpoint or follows from config and step number.

    Returns the final state: `step`, `best_step`, `best_score` (ρ × 100), `seconds` of training, preparations included,
    and `data`, a fingerprint of the triplets and the base's dtype.

    Raises:
        SempaError: a loss that is not finite, a disk that is full, or a checkpoint of other triplets.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, once the running step is saved.
    """
    started = time.perf_counter()
    model, is_first = base.model.eval(), process_rank() == 0
    optimizer = make_optimizer(config, model)
    if config.checkpoint_activations:
        checkpoint_blocks(model)
    batches = Batches(config, preferences)
    total = max(1, rounded_up(config.epochs, len(batches)))
    # The last process runs the retention loss: where rows are few it has the fewest.
    is_last = process_rank() == process_count() - 1
    samples = base_samples(base) if config.retention and is_last else []
    state = {"step": 0, "best_step": 0, "best_score": -math.inf, "seconds": 0.0}
    state["data"] = fingerprint(model.dtype, *preferences)
    saved = load_checkpoint(run, model, optimizer)
    if saved.get("data", state["data"]) != state["data"]:
        raise SempaError(
            f"{run}: its checkpoints are of a base in another precision, or of other triplets; bring those back, or "
            "train anew with another output=…"
        )
    state |= saved
    metrics, first, warned = run / "metrics.jsonl", state["step"], False
    if is_first:
        cut_metrics(metrics, first)
    base_name = portable_name(config.model)
    began, loop_began = started - state["seconds"], time.perf_counter()

    # A bar is for a terminal; a log has a line every ten steps.
    unseen = not (is_first and sys.stderr.isatty())
    with _stop_request() as stop, tqdm(total=total, initial=first, desc="training", unit="step", disable=unseen) as bar:
        for step in range(first, total):
            step_began = time.perf_counter()
            epoch, place = divmod(step, len(batches))
            if epoch:
                generator = torch.Generator().manual_seed(config.seed + epoch)
                place = int(torch.randperm(len(batches), generator=generator)[place])
            batch = batches[place]
            record = train_step(config, model, optimizer, batch, samples, step, total)
            rate = len(batch.preferences) / (time.perf_counter() - step_began)
            if is_first:
                bar.update()
                warned = warned or warn_of_displacement(config, step + 1, record)
                if (step + 1) % 10 == 0 or step + 1 in (1, total):
                    seconds = (time.perf_counter() - loop_began) / (step + 1 - first)
                    bar.clear()
                    _print_step(step + 1, total, record, rate, (total - step - 1) * seconds / 60)
                position = {"step": step + 1, "epoch": (step + 1) / len(batches)}
                log_metrics(metrics, {**position, **record, "triplets_per_second": rate})

            due = (step + 1) % config.eval_every == 0 or step + 1 == total
            if due:
                score = sum_number(score_dev() if is_first else 0.0)
                if not math.isfinite(score):
                    raise SempaError(f"step {step + 1}: the development score is {score}, expected a finite number")
                if score > state["best_score"]:
                    state |= {"best_score": score, "best_step": step + 1}
                    if is_first:
                        save_adapter(model, run / "adapter", base_name, config.readout)
                if is_first:
                    log_metrics(metrics, {"step": step + 1, "eval/sts": score})
            # A signal may reach one process a step before another: they stop together.
            stopping = sum_number(bool(stop)) > 0
            if due or stopping:
                state |= {"step": step + 1, "seconds": time.perf_counter() - began}
                if is_first:
                    # A resumed run cuts the metrics at the checkpoint: they must be on disk before it.
                    fsync(metrics)
                    save_checkpoint(run, step + 1, model, optimizer, state)
                # The others wait for it.
                sum_number(0.0)
            # After the last step, too: what follows is a report, which takes minutes.
            if stopping:
                raise KeyboardInterrupt
    return state


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


def warn_of_displacement(config: Config, step: int, record: Mapping[str, float]) -> bool:
    """Warn where a step's metrics show likelihood displacement (arXiv 2410.08847); returns whether they do.

    The chosen sentences have then also become less likely than under the base.
    """
    ratio = record.get("rewards/chosen", 0.0) / config.beta
    if ratio >= -FAR:
        return False
    warnings.warn(
        f"step {step}: the chosen sentences' log-ratio to the base is {ratio:.0f} nats, so training makes them less "
        "likely too: raise anchor or retention, or lower preference or learning_rate",
        stacklevel=2,
    )
    return True


@contextlib.contextmanager
def _stop_request() -> Iterator[list[int]]:
    """Collect the first Ctrl-C or SIGTERM in a list, so that the running step can end; a second one stops at once."""
    received: list[int] = []

    def note(number: int, _frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        print("\nStopping after this step (once more to stop at once) …", file=sys.stderr, flush=True)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_step(step: int, total: int, record: Mapping[str, float], rate: float, minutes_left: float) -> None:
    shown = {"loss": "loss", "rewards/margins": "margin", "rewards/accuracies": "accuracy"}
    shown |= {"contrast_loss": "contrast", "neutral_kl": "KL"}
    losses = "  ".join(f"{label} {record[name]:.3f}" for name, label in shown.items() if name in record)
    print(f"step {step}/{total}  {losses}  {rate:.1f} triplets/s  {minutes_left:.1f} min left", flush=True)
