"""Rows side by side, each on threads of its own, against one after another, each on all threads.

First why: the rate of the frozen layers' products for rows of several lengths, on one thread and on all. Then what it
gives: a forward pass and a training step of DPO, the default recipe's step, and an encoder.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import race
import torch
import torch.nn.functional as F
import training

from sempa.batching.batches import Batches
from sempa.batching.prompts import encode_triplet
from sempa.config import load_config
from sempa.embedding import embedder
from sempa.model.base import load_base
from sempa.model.lanes import count_lanes
from sempa.model.lora import add_lora, lora_parameters
from sempa.training.base_samples import NeutralText, neutral_texts
from sempa.training.loop import Fixed, lanes_for, train_step
from sempa.training.processes import ALONE
from sempa.training.reference import Reference

_RECIPE = Path(__file__).resolve().parents[1] / "smollm2_nli.yaml"
# Inputs and outputs of SmolLM2's linear layers, and numbers of tokens in a row.
_LAYERS, _LENGTHS = ((576, 576), (576, 1536), (1536, 576)), (256, 512, 1024, 2048)
_REPEATS = 30


def main() -> None:
    given = race.arguments(
        __doc__, **training.OPTIONS, count={"type": int, "default": 32, "help": "triplets of a step"}
    )
    rows = _products(given)
    print(race.table(list(rows[0]), [list(row.values()) for row in rows]), flush=True)
    contestants: dict[str, Callable[[], object]] = {}
    for name, own in (("side by side", True), ("one after another", False)):
        # What training and encoder would choose by themselves, or one lane.
        with mock.patch("training.lanes_for", lanes_for if own else _one_lane):
            passes = training.sempa_contestants(given, training.read_or_make(given))
            contestants |= {f"{kind}, {name}": passes[kind] for kind in ("forward", "step")}
            contestants[f"recipe's step, {name}"] = _recipe(given)
        contestants[f"encode, {name}"] = _encode(given, count_lanes if own else _one_lane)
    seconds = race.alternate(contestants, given.rounds)
    raced = []
    for kind in ("forward", "step", "recipe's step", "encode"):
        turns, lanes = (seconds[f"{kind}, {name}"] for name in ("one after another", "side by side"))
        raced.append({"what": kind, "s one after another": turns, "s side by side": lanes, "ratio": turns / lanes})
    print(race.table(list(raced[0]), [list(row.values()) for row in raced]))
    print(race.keep("lanes", given, [*rows, *raced], picture=None))


def _products(given: argparse.Namespace) -> list[dict]:
    """GFLOP/s of y = x Wᵀ and of its gradient g W, on one thread and on all."""
    dtype, threads = getattr(torch, race.dtype(given)), torch.get_num_threads()
    rows = []
    for inputs, outputs in _LAYERS:
        for length in _LENGTHS[:2] if given.short else _LENGTHS:
            x, weight, upstream = (
                torch.randn(size, dtype=dtype) for size in ((length, inputs), (outputs, inputs), (length, outputs))
            )
            runs = {"forward": lambda x=x, w=weight: F.linear(x, w), "backward": lambda g=upstream, w=weight: g @ w}
            row = {"layer": f"{inputs} to {outputs}", "tokens": length}
            for count in (1, threads):
                torch.set_num_threads(count)
                for name, run in runs.items():
                    seconds = race.alternate({name: lambda run=run: [run() for _ in range(_REPEATS)]}, given.rounds)
                    rate = 2 * length * inputs * outputs * _REPEATS / seconds[name] / 1e9
                    row[f"{name}, {count} thread{'s' * (count > 1)}"] = rate
            rows.append(row)
    return rows


def _one_lane(*_: object) -> int:
    return 1


def _recipe(given: argparse.Namespace) -> Callable[[], None]:
    """The default recipe's step: preferences, contrast and retention, on the first batch."""
    config = load_config(_RECIPE, [f"triplets={given.triplets}"])
    base = load_base(given.model, race.dtype(given), given.device)
    add_lora(base.model, config.lora_rank, config.lora_alpha)
    triplets = training.read_or_make(given)[: config.batch_size]
    (batch,) = Batches(config, [encode_triplet(base.tokenizer, triplet, words=True) for triplet in triplets])
    lanes = training.lanes_for(config, base.model, batch)
    reference = Reference(base, batch.rows, len(triplets), lanes=lanes)
    fixed = Fixed(reference, NeutralText(base, neutral_texts(base), config.neutral_tokens), lanes=lanes)
    optimizer = torch.optim.AdamW(lora_parameters(base.model).values())
    return lambda: train_step(config, base, optimizer, fixed, batch, 0, 1000, ALONE)


def _encode(given: argparse.Namespace, lanes: Callable[..., int]) -> Callable[[], None]:
    """All sentences of the triplets, in batches of 32."""
    encoder = embedder.Embedder(given.model, dtype=race.dtype(given), device=given.device)
    sentences = [text for one in training.read_or_make(given) for text in (one.sentence, one.chosen, one.rejected)]

    def run() -> None:
        with mock.patch("sempa.embedding.embedder.count_lanes", lanes):
            encoder.encode(sentences)

    return run


if __name__ == "__main__":
    main()
