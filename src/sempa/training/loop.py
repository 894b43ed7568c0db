"""The training loop, from top to bottom: packed batch → log-probs → loss → step → metrics → checkpoint."""

import contextlib
import math
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from sempa.batching.batches import Batch, Batches, count_ranked, rounded_up
from sempa.batching.packing import PreferenceRow, pack_preferences
from sempa.batching.prompts import Preference
from sempa.config import ONLINE, Config
from sempa.errors import SempaError
from sempa.io.files import explain_os_errors, fingerprint
from sempa.kernels import TokenDirections, token_directions
from sempa.model.base import BaseModel
from sempa.model.lanes import count_lanes
from sempa.model.lora import interpolated, lora_parameters, save_adapter
from sempa.training.base_samples import NeutralText, neutral_texts
from sempa.training.checkpoints import load_checkpoint, save_checkpoint
from sempa.training.metrics import log_metrics, open_metrics
from sempa.training.objectives import PREFERENCE_METRICS, contrast_term, preference_terms, retention_term
from sempa.training.online import Judge, sample_preferences, similarity_judge
from sempa.training.processes import (
    World,
    add_gradients,
    add_metrics,
    any_of,
    broadcast_number,
    join_world,
    wait_for_all,
)
from sempa.training.reference import Reference
from sempa.training.terms import add_terms, one_by_one
from sempa.training.warnings import watch_step


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: the step was finished and a checkpoint written."""


def train(
    config: Config,
    base: BaseModel,
    preferences: list[Preference],
    run: Path,
    score_dev: Callable[[], float],
    judge: Judge | None = None,
) -> dict:
    """Train the adapter that `base.model` holds; the best by `score_dev` is in `run/adapter` at the end.

    `judge` says which of two sampled paraphrases is better, for the online objectives; by default the base's own
    embeddings do.

    Continues from the latest checkpoint in `run`, to the same bits as if it had never stopped: whatever a step
    depends on is in the checkpoint or follows from config and step number.

    Returns the final state: `step`, `best_step`, `best_score` (ρ × 100), `seconds` of training, preparations included,
    and `trains`, a fingerprint of base and triplets.

    Raises:
        SempaError: a loss that is not finite, a disk that is full, or a checkpoint of another base or other triplets.
        Interrupted: after Ctrl-C, once the running step is saved.
    """
    started = time.perf_counter()
    model, world = base.model, join_world(config.shard)
    vocabulary = model.get_output_embeddings().weight.shape[0]
    if config.sparse and config.sparse_tokens > vocabulary:
        raise SempaError(
            f"sparse_tokens: found {config.sparse_tokens}, expected at most the vocabulary's {vocabulary:,}"
        )
    parameters = lora_parameters(model)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters.values(), lr=config.learning_rate, weight_decay=config.weight_decay)
    batches = Batches(config, preferences)
    total = max(1, rounded_up(config.epochs, len(batches)))
    lanes = lanes_for(config, model, batches[0])
    rows = (row for batch in batches for row in batch.rows)
    reference = Reference(base, rows, len(preferences), world, lanes)
    fixed = Fixed(
        reference,
        NeutralText(base, neutral_texts(base, world), config.neutral_tokens) if config.retention else None,
        judge or similarity_judge(base),
        token_directions(model.get_output_embeddings().weight) if config.sparse else None,
        lanes,
    )
    state = {"step": 0, "best_step": 0, "best_score": -math.inf, "seconds": 0.0}
    state["trains"] = fingerprint(reference.weights, *preferences)
    kept = load_checkpoint(run, model, optimizer)
    if kept.get("trains", state["trains"]) != state["trains"]:
        raise SempaError(
            f"{run}: its checkpoints are of another base model, in weights or precision, or of other triplets; "
            "bring those back, or train anew with another output=…"
        )
    state |= kept
    metrics = open_metrics(run / "metrics.jsonl" if world.leads else Path(os.devnull), state["step"])
    told: set[str] = set()
    began = started - state["seconds"]

    with (
        metrics,
        _stop_request() as stop,
        _progress(config, total, state["step"], len(preferences), world.leads) as progress,
    ):
        for step in range(state["step"], total):
            epoch, place = divmod(step, len(batches))
            batch = batches[_batch_order(config.seed, epoch, len(batches))[place]]
            record = train_step(config, base, optimizer, fixed, batch, step, total, world)
            if world.leads:
                watch_step(config, step + 1, record, told)
            rate = progress(step + 1, record, batch.size)
            position = {"step": step + 1, "epoch": (step + 1) / len(batches)}
            log_metrics(metrics, {**position, **record, "triplets_per_second": rate})

            last = step + 1 == total
            # A signal may reach one process a step before another: they stop together.
            stopping = any_of(bool(stop), world, model.device)
            due = (step + 1) % config.eval_every == 0 or last
            if due:
                with interpolated(model, config.interpolation):
                    score = score_dev() if world.evaluates else 0.0
                    score = broadcast_number(score, world, model.device)
                    if not math.isfinite(score):
                        raise SempaError(f"step {step + 1}: the development score is {score}, expected a finite number")
                    if score > state["best_score"]:
                        state |= {"best_score": score, "best_step": step + 1}
                        if world.leads:
                            save_adapter(model, run / "adapter", base.source)
                log_metrics(metrics, {"step": step + 1, "eval/sts": score})
            if due or stopping:
                state |= {"step": step + 1, "seconds": time.perf_counter() - began}
                reference.save()
                if world.leads:
                    # Resuming keeps the metrics up to the checkpoint: they must not reach the disk after it.
                    with explain_os_errors(run):
                        os.fsync(metrics.fileno())
                    save_checkpoint(run, step + 1, model, optimizer, state, base.source)
                wait_for_all(world)
            # In the last step, too: what comes next is a report, which takes minutes.
            if stopping:
                raise Interrupted
    return state


@dataclass(frozen=True)
class Fixed:
    """What a step consults and training leaves alone: the reference, and what only some objectives ask for.

    `lanes` is how many terms of the objective run at the same time.
    """

    reference: Reference | Callable[[PreferenceRow], Tensor]
    neutral: NeutralText | None = None
    judge: Judge | None = None
    tokens: TokenDirections | None = None
    lanes: int = 1


def lanes_for(config: Config, model: PreTrainedModel, batch: Batch) -> int:
    """How many terms of the objective should run at the same time on batches like this one."""
    terms = len(batch.rows) + bool(batch.sentences) + bool(config.retention)
    return 1 if one_by_one(config, model) else count_lanes(model, terms)


def learning_rate(config: Config, step: int, total: int) -> float:
    """Linear warm-up over the first `warmup · total` steps, then half a cosine down to zero; `step` counts from 0."""
    warm = round(config.warmup * total)
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    return config.learning_rate * (1 + math.cos(math.pi * (step - warm) / (total - warm))) / 2


def train_step(
    config: Config,
    base: BaseModel,
    optimizer: torch.optim.Optimizer,
    fixed: Fixed,
    batch: Batch,
    step: int,
    total: int,
    world: World,
) -> dict[str, float]:
    """One optimiser step on a batch of packed rows; returns the metrics under TRL's names."""
    model = base.model
    if config.objective in ONLINE:
        asked = batch.preferences[: count_ranked(config, batch.size)]
        made = sample_preferences(config, base, asked, fixed.judge, step, world)
        rows, known = pack_preferences(made, range(len(made)), config.row_tokens), fixed.reference.compute
    else:
        rows, known = batch.rows, fixed.reference
    model.train()
    # Chance follows from the step and the row's number, so that a resumed run meets the same.
    seed = (config.seed * 1_000_003 + step) * 3_000
    # All processes report the same metrics, those without a row of their own, too.
    metrics = Counter(dict.fromkeys(PREFERENCE_METRICS if rows else ("loss",), 0.0))
    try:
        ranked = preference_terms(config, model, known, rows, world, seed)
        others = []
        if fixed.neutral is not None:
            others.append(retention_term(config, model, fixed.neutral, step, world, seed + 2_000))
        if batch.sentences:
            texts = batch.sentences, batch.texts
            others.append(contrast_term(config, model, *texts, fixed.tokens, world, seed + 1_000))
        # One-word prompts wait for one another, whatever runs beside them; further rows of preferences need not wait.
        beside = len(ranked) if fixed.lanes > 1 else 1
        for terms in ([*ranked[:beside], *others], *([term] for term in ranked[beside:])):
            metrics.update(add_terms(config, model, terms, fixed.lanes))
    except ValueError as error:
        # Losses refuse what is no number.
        raise SempaError(_explain_divergence(config, batch, step, str(error))) from error
    metrics = add_metrics(dict(metrics), world, model.device)
    add_gradients(lora_parameters(model).values(), world)
    norm = torch.nn.utils.clip_grad_norm_(lora_parameters(model).values(), config.max_grad_norm).item()
    if not (math.isfinite(metrics["loss"]) and math.isfinite(norm)):
        found = f"the loss is {metrics['loss']} and the gradient norm {norm}, expected finite numbers"
        raise SempaError(_explain_divergence(config, batch, step, found))
    rate = learning_rate(config, step, total)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    optimizer.zero_grad()
    return {**metrics, "learning_rate": rate, "grad_norm": norm}


def _explain_divergence(config: Config, batch: Batch, step: int, found: str) -> str:
    return (
        f"step {step + 1}: {found}; the batch is lines "
        f"{', '.join(map(str, batch.lines))} of {config.triplets}; a checkpoint written before it is whole: "
        f"lower learning_rate ({config.learning_rate:g}) or mend the data"
    )


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


_TOLD = {
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
            told = {label: f"{record[name]:.3f}" for name, label in _TOLD.items() if name in record}
            bar.set_postfix(told)
            bar.update(size)
            if shown and bar.disable and (step % 10 == 0 or step in (1, total)):
                left = (total - step) * config.batch_size * seconds / done
                parts = [f"step {step}/{total}", *(f"{label} {value}" for label, value in told.items())]
                print("  ".join([*parts, f"{rate:.1f} triplets/s", f"{left / 60:.1f} min left"]), flush=True)
            return rate

        yield advance
