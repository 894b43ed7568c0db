"""The training loop: steps, metrics, checkpoints, and the adapter with the best development score."""

import contextlib
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

from sempa.batching.batches import make_batch, rounded_up, steps_per_epoch
from sempa.batching.prompts import Preference
from sempa.config import Config
from sempa.errors import SempaError
from sempa.io.files import fingerprint, fsync
from sempa.model.adapter_files import save_adapter
from sempa.model.base import BaseModel, weights_fingerprint
from sempa.model.layers import checkpoint_blocks
from sempa.model.resolve import portable_name
from sempa.training.base_samples import base_samples
from sempa.training.checkpoints import load_checkpoint, save_checkpoint
from sempa.training.metrics import cut_metrics, log_metrics, print_step, warn_of_displacement
from sempa.training.processes import process_count, process_rank, sum_number
from sempa.training.step import make_optimizer, train_step


def train(
    config: Config, base: BaseModel, preferences: list[Preference], run: Path, score_dev: Callable[[], float]
) -> dict:
    """Train the adapter that `base.model` holds; the best by `score_dev` is in `run/adapter` at the end.

    Continues from the latest checkpoint in `run`, bit-exactly as if it had never stopped: whatever a step depends on is
    in the checkpoint or follows from config and step number.

    Returns the final state: `step`, `best_step`, `best_score` (ρ × 100), `seconds` of training, preparations included,
    and `data`, a fingerprint of the base and the triplets.

    Raises `SempaError` for a loss or development score that is not finite, a full disk, or a checkpoint of another base
    or other triplets, and `KeyboardInterrupt` after Ctrl-C or SIGTERM, once the running step is saved.
    """
    started = time.perf_counter()
    model, is_main = base.model.eval(), process_rank() == 0
    optimizer = make_optimizer(config, model)
    if config.checkpoint_activations:
        checkpoint_blocks(model, config.lora_dropout > 0)
    per_epoch = steps_per_epoch(config, preferences)
    total = rounded_up(config.epochs, per_epoch)
    # The last process runs the retention loss: where rows are few it has the fewest.
    samples = base_samples(base) if config.retention and process_rank() == process_count() - 1 else []
    state = {"step": 0, "best_step": 0, "best_score": -math.inf, "seconds": 0.0}
    state["data"] = fingerprint(weights_fingerprint(base), model.dtype, *preferences)
    saved = load_checkpoint(run, model, optimizer)
    if saved.get("data", state["data"]) != state["data"]:
        found = f"{run}: its checkpoints belong to another base or other triplets"
        raise SempaError(f"{found}; restore those, or give another output=…")
    state |= saved
    metrics_file, first, warned = run / "metrics.jsonl", state["step"], False
    if is_main:
        cut_metrics(metrics_file, first)
    base_name = portable_name(config.model)
    began, loop_began = started - state["seconds"], time.perf_counter()

    # A bar is for a terminal; a log has a line every ten steps.
    silent = not (is_main and sys.stderr.isatty())
    with _stop_request() as stop, tqdm(total=total, initial=first, desc="training", unit="step", disable=silent) as bar:
        for step in range(first, total):
            done, step_began = step + 1, time.perf_counter()
            batch = make_batch(config, preferences, step, process_count())
            record = train_step(config, model, optimizer, batch, samples, step, total)
            rate = len(batch.preferences) / (time.perf_counter() - step_began)
            if is_main:
                bar.update()
                warned = warned or warn_of_displacement(config, done, record)
                if done % 10 == 0 or done in (1, total):
                    seconds = (time.perf_counter() - loop_began) / (done - first)
                    bar.clear()
                    print_step(done, total, record, rate, (total - done) * seconds / 60)
                position = {"step": done, "epoch": done / per_epoch}
                log_metrics(metrics_file, {**position, **record, "triplets_per_second": rate})

            due = done % config.eval_every == 0 or done == total
            if due and is_main:
                try:
                    score = score_dev()
                except SempaError as error:  # embeddings that are not finite have no score
                    raise SempaError(f"step {done}: {error}; checkpoints are intact: lower learning_rate") from error
                if score > state["best_score"]:
                    state |= {"best_score": score, "best_step": done}
                    save_adapter(model, run / "adapter", base_name, config.readout)
                log_metrics(metrics_file, {"step": done, "eval/sts": score})
            # A signal may reach one process a step before another: they stop together.
            stopping = sum_number(bool(stop)) > 0
            if due or stopping:
                state |= {"step": done, "seconds": time.perf_counter() - began}
                if is_main:
                    # A resumed run cuts the metrics at the checkpoint: they must be on disk before it.
                    fsync(metrics_file)
                    save_checkpoint(run, done, model, optimizer, state)
                # A barrier: no process goes on before the checkpoint is written.
                sum_number(0.0)
            # After the last step, too: what follows is a report, which takes minutes.
            if stopping:
                raise KeyboardInterrupt
    return state | {"seconds": time.perf_counter() - began}


@contextlib.contextmanager
def _stop_request() -> Iterator[list[tuple[int, float]]]:
    """Collect Ctrl-C, SIGTERM and hang-up, so that the running step can end; one more, later, stops at once."""
    received: list[tuple[int, float]] = []

    def note(number: int, _frame: object) -> None:
        received.append((number, time.monotonic()))
        if len(received) == 1:
            print("\nStopping after this step (once more to stop at once) …", file=sys.stderr, flush=True)
        # Sooner it may be the same one: torchrun passes on what a cluster has sent to every process.
        elif received[-1][1] - received[0][1] > 2:
            raise KeyboardInterrupt

    hang_up = [] if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else [signal.SIGHUP]  # nohup ignores it
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, *hang_up)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
