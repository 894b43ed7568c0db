"""The training loop: batches in, steps, metrics, checkpoints, the best adapter by the development score out."""

import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from sempa.batching.batches import Batches, rounded_up
from sempa.batching.prompts import Preference
from sempa.config import Config
from sempa.errors import SempaError
from sempa.io.files import explain_os_errors, fingerprint
from sempa.model.adapter_files import save_adapter
from sempa.model.base import BaseModel, weights_fingerprint
from sempa.model.checkpointing import checkpoint_blocks
from sempa.model.resolve import portable_name
from sempa.training.base_samples import base_samples
from sempa.training.checkpoints import load_checkpoint, save_checkpoint
from sempa.training.metrics import log_metrics, open_metrics
from sempa.training.processes import any_of, broadcast_number, join_world, wait_for_all
from sempa.training.step import make_optimizer, train_step
from sempa.training.warnings import warn_of_step


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: the step was finished and a checkpoint written."""


def train(
    config: Config, base: BaseModel, preferences: list[Preference], run: Path, score_dev: Callable[[], float]
) -> dict:
    """Train the adapter that `base.model` holds; the best by `score_dev` is in `run/adapter` at the end.

    Continues from the latest checkpoint in `run`, bit-exactly as if it had never stopped: whatever a step depends on is
    in the checkpoint or follows from config and step number.

    Returns the final state: `step`, `best_step`, `best_score` (ρ × 100), `seconds` of training, preparations included,
    and `trains`, a fingerprint of base and triplets.

    Raises:
        SempaError: a loss that is not finite, a disk that is full, or a checkpoint of another base or other triplets.
        Interrupted: after Ctrl-C, once the running step is saved.
    """
    started = time.perf_counter()
    model, world = base.model.eval(), join_world()
    optimizer = make_optimizer(config, model)
    if config.checkpoint_activations:
        checkpoint_blocks(model)
    batches = Batches(config, preferences)
    total = max(1, rounded_up(config.epochs, len(batches)))
    samples = base_samples(base) if config.retention and world.is_last else []
    state = {"step": 0, "best_step": 0, "best_score": -math.inf, "seconds": 0.0}
    state["trains"] = fingerprint(weights_fingerprint(base), *preferences)
    saved = load_checkpoint(run, model, optimizer)
    if saved.get("trains", state["trains"]) != state["trains"]:
        raise SempaError(
            f"{run}: its checkpoints are of another base model, in weights or precision, or of other triplets; "
            "bring those back, or train anew with another output=…"
        )
    state |= saved
    metrics = open_metrics(run / "metrics.jsonl" if world.is_first else Path(os.devnull), state["step"])
    already_warned: set[str] = set()
    base_name = portable_name(config.model)
    began = started - state["seconds"]

    with (
        metrics,
        _stop_request() as stop,
        _progress(config, total, state["step"], len(preferences), world.is_first) as progress,
    ):
        for step in range(state["step"], total):
            epoch, place = divmod(step, len(batches))
            batch = batches[_batch_order(config.seed, epoch, len(batches))[place]]
            record = train_step(config, model, optimizer, batch, samples, step, total, world)
            if world.is_first:
                warn_of_step(config, step + 1, record, already_warned)
            rate = progress(step + 1, record, batch.size)
            position = {"step": step + 1, "epoch": (step + 1) / len(batches)}
            log_metrics(metrics, {**position, **record, "triplets_per_second": rate})

            last = step + 1 == total
            # A signal may reach one process a step before another: they stop together.
            stopping = any_of(bool(stop), world, model.device)
            due = (step + 1) % config.eval_every == 0 or last
            if due:
                score = broadcast_number(score_dev() if world.is_first else 0.0, world, model.device)
                if not math.isfinite(score):
                    raise SempaError(f"step {step + 1}: the development score is {score}, expected a finite number")
                if score > state["best_score"]:
                    state |= {"best_score": score, "best_step": step + 1}
                    if world.is_first:
                        save_adapter(model, run / "adapter", base_name, config.readout)
                log_metrics(metrics, {"step": step + 1, "eval/sts": score})
            if due or stopping:
                state |= {"step": step + 1, "seconds": time.perf_counter() - began}
                if world.is_first:
                    # A resumed run cuts the metrics at the checkpoint: they must be on disk before it.
                    with explain_os_errors(run):
                        os.fsync(metrics.fileno())
                    save_checkpoint(run, step + 1, model, optimizer, state, base_name)
                wait_for_all(world)
            # After the last step, too: what follows is a report, which takes minutes.
            if stopping:
                raise Interrupted
    return state


def _batch_order(seed: int, epoch: int, count: int) -> list[int]:
    if epoch == 0:
        return list(range(count))
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed + epoch)).tolist()


@contextlib.contextmanager
def _stop_request() -> Iterator[list[int]]:
    """Collect the first Ctrl-C or SIGTERM in a list, so that the running step can end; a second one stops at once."""
    received: list[int] = []

    def note(number: int, _frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        print("\nStopping after this step (once more to stop at once) …", file=sys.stderr, flush=True)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:
        # Outside the main thread signals belong to somebody else.
        yield received
        return
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


_SHOWN = {
    "loss": "loss",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
    "contrast_loss": "contrast",
    "neutral_kl": "KL",
}


@contextlib.contextmanager
def _progress(
    config: Config, total: int, start: int, count: int, shown: bool
) -> Iterator[Callable[[int, dict, int], float]]:
    """A bar with rate and time left on a terminal, plain lines in a log; advancing it returns the step's triplets/s."""
    per_epoch = math.ceil(count / config.batch_size)
    triplets = math.ceil(total / per_epoch * count)
    with tqdm(
        total=triplets,
        initial=min(triplets, start * config.batch_size),
        desc="training",
        unit="triplet",
        disable=not (shown and sys.stderr.isatty()),
        dynamic_ncols=True,
    ) as bar:
        last = time.perf_counter()
        seconds = done = 0.0

        def advance(step: int, record: dict, size: int) -> float:
            nonlocal last, seconds, done
            now = time.perf_counter()
            rate, seconds, done, last = size / (now - last), seconds + now - last, done + size, now
            values = {label: f"{record[name]:.3f}" for name, label in _SHOWN.items() if name in record}
            bar.set_postfix(values)
            bar.update(size)
            if shown and bar.disable and (step % 10 == 0 or step in (1, total)):
                left = (total - step) * config.batch_size * seconds / done
                parts = [f"step {step}/{total}", *(f"{label} {value}" for label, value in values.items())]
                print("  ".join([*parts, f"{rate:.1f} triplets/s", f"{left / 60:.1f} min left"]), flush=True)
            return rate

        yield advance
