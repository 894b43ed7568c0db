"""Speed on the device: the kernel, steps of large models, embedding, and a whole run, beside their peers."""

import argparse
import contextlib
import importlib
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import embedding
import logprob_kernel as kernel
import race
import torch
from gpu_setting import DPO, Setting, caption_batch, dtype_name, free_memory, kernel_inputs, reason
from plan import GPUS
from shapes import empty_model
from training import ALPHA, RANK, trl_trainer_step
from transformers import LlamaConfig, PreTrainedModel
from transformers.models.llama import modeling_llama

from sempa.batching.batches import Batch
from sempa.config import Config
from sempa.data.triplets import caption_triplets
from sempa.model.layers import checkpoint_blocks
from sempa.model.lora import add_lora, block_linears, lora_parameters
from sempa.run import start_run
from sempa.training.step import make_optimizer, train_step

PEERS = ("liger-kernel", "cut-cross-entropy")


def race_kernels(s: Setting) -> list[dict]:
    """Log-probabilities forward and backward beside the bare products and every peer that is there."""
    ways = kernel.WAYS | kernel.CUDA_WAYS
    rows = []
    for n, d, v in s.kernel_sizes:
        inputs = kernel_inputs(s, s.dtype, n, d, v)
        makers = {name: partial(kernel._bare, *inputs[:2], False, again) for name, again in kernel.BARE.items()}
        makers |= {name: partial(kernel._forward_backward, way, *inputs) for name, way in ways.items()}
        rows += [{"N": n, "D": d, "V": v, **row} for row in _measure(s, makers)]
    return rows


def race_steps(s: Setting, size: str) -> list[dict]:
    """A DPO step of a model with random weights: blocks kept or recomputed, and TRL's with Liger's kernels."""
    batch = caption_batch(s, replace(DPO, row_tokens=s.row_tokens), s.triplets)
    tokens, (peak, of) = sum(len(row.packed.tokens) for row in batch.preference_rows), _peak_flops(s)
    flops = _step_flops(s.shapes[size], tokens, sum(len(row.target) for row in batch.preference_rows))
    work = {"triplets/s": s.triplets, "tokens/s": tokens, f"MFU, % of {of}": 100 * flops / peak}
    ways = {"sempa": False, "sempa, recomputed": True}
    rows = _measure(s, {name: partial(_sempa_step, s, size, batch, again) for name, again in ways.items()}, work)
    name = "TRL + Liger" if s.device.startswith("cuda") else "TRL"
    theirs = {f"{name}, batch {count}": partial(_trl_step, s, size, count) for count in (16, 64)}
    # Liger patches transformers' modules; models built later must not have its patches.
    own = dict(vars(modeling_llama))
    try:
        return rows + _measure(s, theirs, {"triplets/s": s.triplets})
    finally:
        vars(modeling_llama).update(own)


def _sempa_step(s: Setting, size: str, batch: Batch, recomputed: bool) -> Callable[[], object]:
    config, model = replace(DPO, row_tokens=s.row_tokens), _random_model(s, size)
    add_lora(model, RANK, ALPHA)
    if recomputed:
        checkpoint_blocks(model)
    return partial(train_step, config, model, make_optimizer(config, model), batch, [], 0, 1000)


def _trl_step(s: Setting, size: str, batch: int) -> Callable[[], object]:
    model, liger = _random_model(s, size), s.device.startswith("cuda")
    model.set_attn_implementation("sdpa")
    return trl_trainer_step(model, s.tokenizer, caption_triplets("train", s.triplets), batch, liger=liger)


def _random_model(s: Setting, size: str) -> PreTrainedModel:
    torch.manual_seed(0)
    return empty_model(s.shapes[size], s.dtype, s.device).eval()


def _step_flops(shape: LlamaConfig, tokens: int, responses: int) -> float:
    """Operations that the step needs: 4P + 6L of a policy's token, 2P of the reference's, 6H of a response's token.

    Attention's own products and what is recomputed do not count.
    """
    model = empty_model(shape, torch.bfloat16, "meta")
    blocks = sum(linear.weight.numel() for linear in block_linears(model).values())
    head = model.get_output_embeddings().weight.numel()
    with torch.device("meta"):
        add_lora(model, RANK, ALPHA)
    adapter = sum(parameter.numel() for parameter in lora_parameters(model).values())
    return 6 * (tokens * (blocks + adapter) + responses * head)


def _peak_flops(s: Setting) -> tuple[float, str]:
    """Dense bfloat16 FLOP/s of the card's data sheet; elsewhere what a bare product reaches here."""
    processor = race.machine(s.device)["processor"]
    for known, (flops, _) in GPUS.items():
        # Of one name, the cards for PCI slots are slower.
        if known.removesuffix(" SXM").removesuffix(" 80GB") in processor and not re.search("PCI|NVL", processor):
            return flops, known
    side = 8192 if s.device.startswith("cuda") else 512
    x = torch.randn(side, side, dtype=s.dtype, device=s.device)
    (row,) = _measure(s, {"product": lambda: lambda: x @ x}, {"FLOP/s": 2 * side**3})
    return row["FLOP/s"], "a bare product"


def race_encoders(s: Setting) -> list[dict]:
    """Sentences embedded a second, beside sentence-transformers with the same model and prompt."""
    given = argparse.Namespace(
        model=s.model, device=s.device, dtype=dtype_name(s.dtype), sentences="", count=s.sentences
    )
    sentences = embedding._sentences(given)
    makers = {f"sempa, batch {size}": partial(embedding._sempa, given, sentences, size) for size in (32, 128, 512)}
    for size in (32, 128, 512):
        makers[f"sentence-transformers, batch {size}"] = partial(embedding._peer, given, sentences, size)
    return _measure(s, makers, {"sentences/s": len(sentences)})


def whole_run(s: Setting) -> list[dict]:
    """`sempa train` on the built-in captions with the default recipe: its seconds and its scores."""
    config = Config(model=s.model, dtype=dtype_name(s.dtype), device=s.device, output=str(s.folder / "run"), **s.run)
    # The peak that the report reads would be an earlier section's.
    race.PeakMemory(s.device)
    report = start_run(config, "gpu.py")
    scores = {f"{row['task']}, {side}": row[side] for row in report["sts"] for side in ("base", "aligned")}
    seconds = {f"{name}, s": value for name, value in report["seconds"].items()}
    return [{"steps": report["training"]["steps"], **seconds, "peak GiB": report["peak_memory_gib"], **scores}]


def install_peers(s: Setting) -> list[dict]:
    """The kernels to compare with, from the package index where the machine reaches one."""
    rows = []
    for package in PEERS:
        skipped = "it needs CUDA"
        if s.device.startswith("cuda"):
            # Beside the torch that is there.
            options = ["--quiet", "--no-deps", "--retries", "0", "--timeout", "10", "--disable-pip-version-check"]
            command = [sys.executable, "-m", "pip", "install", *options, package]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=40)
                skipped = "".join(done.stderr.strip().splitlines()[-1:]) if done.returncode else ""
            except subprocess.TimeoutExpired as error:
                skipped = reason(error)
        rows.append({"package": package, "skipped": skipped})
    importlib.invalidate_caches()
    return rows


def _measure(s: Setting, makers: dict[str, Callable], work: dict[str, float] | None = None) -> list[dict]:
    """Median milliseconds, peak memory above what the maker leaves, and the work done in a second.

    A maker returns what is timed. What fails is skipped with its reason. One after another: two models of 8 B would not
    lie side by side.
    """
    rows = []
    for name, make in makers.items():
        try:
            run = make()
            peak = race.PeakMemory(s.device)
            seconds = statistics.median([kernel._seconds(run) for _ in range(1 + s.rounds)][1:])
            row = {"ms": 1000 * seconds, "peak GiB": peak.risen() / 2**30}
            row |= {what: amount / seconds for what, amount in (work or {}).items()}
        except Exception as error:
            row = {"skipped": reason(error)}
        # The section's time may be over here too, and the alarm comes again.
        with contextlib.suppress(TimeoutError):
            run = None
            free_memory()
        rows.append({"contestant": name, **row})
    return rows
