"""What a training step spends its time on: its operations by kind, beside the least that they can take.

.venv/bin/python experiments/benchmarks/spent.py --triplets snli_dev_triplets.csv

Passes over packed rows of two lengths run under `torch.profiler`. "floor, operations" is what the large products would
take at the rate of a bare product of 2,048 rows, "floor, bytes" what it takes to read the blocks' weights twice and to
write and read once what is kept for the backward pass, at the rate of a copy.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable

import race
import torch
from kept import kept_bytes
from torch.profiler import ProfilerActivity, profile
from training import OPTIONS, RANK, prepare, read_or_make, sempa_contestants

from sempa.model.lora import lora_layers

# Where the operands' shapes stand among the arguments.
_PRODUCTS = {"aten::mm": (0, 1), "aten::addmm": (1, 2), "aten::addmm_": (1, 2)}
_BATCHED = {"aten::bmm", "aten::baddbmm", "aten::baddbmm_"}
_COPIED = 1 << 26


def main() -> None:
    given = race.arguments(
        __doc__,
        **OPTIONS,
        count={"type": int, "default": 16, "help": "triplets of a step (default %(default)s)"},
    )
    # The profiler would not see what other threads do.
    torch.set_num_threads(1)
    product, copy = _rates(given)
    print(f"a bare product: {product / 1e9:.0f} GFLOP/s   a copy: {copy / 1e9:.1f} GB/s, read and written")
    rows = []
    for row_tokens in (512, 128):
        measured = _measure(given, row_tokens, product, copy)
        print(race.table(list(measured[0]), [list(row.values()) for row in measured]), flush=True)
        rows += measured
    print(race.keep("spent", given, rows, picture=None))


def _measure(given: argparse.Namespace, row_tokens: int, product: float, copy: float) -> list[dict]:
    triplets = read_or_make(given)
    step = sempa_contestants(given, triplets, row_tokens)["step"]
    step()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if given.device.startswith("cuda") else [])]
    with profile(activities=activities, record_shapes=True) as profiled:
        for _ in range(given.rounds):
            step()
    milliseconds: dict[str, float] = defaultdict(float)
    operations: dict[str, float] = defaultdict(float)
    for event in profiled.key_averages(group_by_input_shape=True):
        kind, count = _kind(event.key, event.input_shapes)
        spent = event.self_device_time_total if given.device.startswith("cuda") else event.self_cpu_time_total
        milliseconds[kind] += spent / 1000 / given.rounds
        operations[kind] += count * event.count / given.rounds
    base, _, batches = prepare(given, triplets, row_tokens)
    packed = [row for batch in batches for row in batch.preference_rows]
    linears = [layer.base for layer in lora_layers(base.model).values()]
    weights = sum(parameter.nbytes for linear in linears for parameter in linear.parameters())
    moved = 2 * sum(weights + sum(kept_bytes(base, row).values()) for row in packed)
    whole, tokens = sum(milliseconds.values()), sum(len(row.packed.tokens) for row in packed)
    floors = {"floor, operations": 1000 * operations[_LARGE] / product, "floor, bytes": 1000 * moved / copy}
    ordered = sorted(milliseconds.items(), key=lambda one: -one[1])
    return [
        {
            "rows of": row_tokens,
            "tokens a triplet": tokens / len(triplets),
            "what": what,
            "ms": value,
            "%": 100 * value / whole,
            "GFLOP/s": operations[what] / value / 1e6 if operations[what] else "",
        }
        for what, value in [("all", whole), *ordered, *floors.items()]
    ]


_LARGE, _SMALL, _ATTENTION, _REST = (
    "frozen layers' products",
    "LoRA's thin products",
    "attention's products",
    "the rest",
)


def _kind(name: str, shapes: list[list[int]]) -> tuple[str, float]:
    """What an operation is, and how many floating-point operations one call takes where that is counted."""
    if name in _BATCHED:
        return _ATTENTION, 0.0
    if name not in _PRODUCTS:
        return _REST, 0.0
    (m, k), (_, n) = (shapes[place] for place in _PRODUCTS[name])
    return (_SMALL if min(m, k, n) <= RANK else _LARGE), 2.0 * m * k * n


def _rates(given: argparse.Namespace) -> tuple[float, float]:
    """Operations a second of a bare product, and bytes a second of a copy (read and written), the best of five."""
    dtype = getattr(torch, race.dtype(given))
    x, y = (torch.randn(size, dtype=dtype, device=given.device) for size in ((2048, 576), (576, 1536)))
    source = torch.zeros(_COPIED, device=given.device)
    target = torch.zeros_like(source)
    product, copy = _best(lambda: x @ y), _best(lambda: target.copy_(source))
    return 2 * 2048 * 576 * 1536 / product, 2 * source.nbytes / copy


def _best(run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(6):
        race.synchronize()
        began = time.perf_counter()
        run()
        race.synchronize()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


if __name__ == "__main__":
    main()
