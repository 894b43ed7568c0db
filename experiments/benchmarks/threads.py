"""Passes side by side, each on threads of its own, against one after another, each on all threads.

First why: the rate of the frozen layers' products for rows of several lengths, on one thread and on all. Then the gain:
a forward pass and a training step of DPO, the default recipe's step, and an encoder.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from unittest import mock

import race
import torch
import torch.nn.functional as F
import training

from sempa.batching.batches import make_batch
from sempa.batching.prompts import encode_triplet
from sempa.config import Config, load_config
from sempa.data.triplets import Triplet
from sempa.embedding.embedder import Embedder
from sempa.model.base import load_base
from sempa.model.lora import add_lora, lora_parameters
from sempa.training.base_samples import base_samples
from sempa.training.step import train_step

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
    triplets = training.read_or_make(given)
    passes = training.sempa_contestants(given, triplets)
    runs = {
        "forward": passes["forward"],
        "step": passes["step"],
        "recipe's step": recipe(given),
        "encode": _encode(given, triplets),
    }
    contestants: dict[str, Callable[[], object]] = {}
    for kind, run in runs.items():
        contestants[f"{kind}, side by side"] = run
        contestants[f"{kind}, one after another"] = partial(_one_after_another, run)
    seconds = race.alternate(contestants, given.rounds)
    raced = []
    for kind in runs:
        turns, together = (seconds[f"{kind}, {name}"] for name in ("one after another", "side by side"))
        raced.append(
            {"what": kind, "s one after another": turns, "s side by side": together, "ratio": turns / together}
        )
    print(race.table(list(raced[0]), [list(row.values()) for row in raced]))
    print(race.keep("threads", given, [*rows, *raced], picture=None))


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


def _one_after_another(run: Callable[[], object]) -> None:
    with mock.patch("sempa.model.threads.passes_at_once", lambda model: 1):
        run()


def recipe(given: argparse.Namespace, row_tokens: int = Config.row_tokens) -> Callable[[], object]:
    """The default recipe's step: preferences, contrast and retention, on the first batch."""
    config = load_config(_RECIPE, [f"triplets={given.triplets}", f"row_tokens={row_tokens}"])
    base = load_base(given.model, race.dtype(given), given.device)
    add_lora(base.model, config.lora_rank, config.lora_alpha)
    parameters = lora_parameters(base.model).values()
    triplets = training.read_or_make(given)[: config.batch_size]
    batch = make_batch(config, [encode_triplet(base.tokenizer, triplet, one_word=True) for triplet in triplets], 0)
    return partial(train_step, config, base.model, torch.optim.AdamW(parameters), batch, base_samples(base), 0, 1000)


def _encode(given: argparse.Namespace, triplets: Sequence[Triplet]) -> Callable[[], object]:
    """All sentences of the triplets, in batches of the default size."""
    encoder = Embedder(given.model, dtype=race.dtype(given), device=given.device)
    return partial(encoder.encode, [text for one in triplets for text in (one.sentence, one.chosen, one.rejected)])


if __name__ == "__main__":
    main()
