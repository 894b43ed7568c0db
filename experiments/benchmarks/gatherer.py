"""token_logprobs, forward + backward: against the bare matrix products and every other way to the same numbers."""

import argparse
import json
from collections.abc import Callable

import race
import torch
import torch.nn.functional as F
from torch import Tensor

from sempa.kernels import token_logprobs

# rows N, width D, vocabulary V
_SIZES = ((256, 576, 49152), (2048, 576, 49152), (2048, 896, 75968), (1024, 2048, 128256), (512, 4096, 256000))
_SHORT = ((512, 576, 49152),)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# The naive version keeps several [N, V] tensors alive.
_LARGEST = 1 << 28


def main() -> None:
    given = race.arguments(
        __doc__,
        dtype={"choices": tuple(_DTYPES), "help": "this dtype only"},
        sizes={"default": "", "help": "N,D,V;N,D,V in place of the built-in sizes"},
        trained={"action": "store_true", "help": "gradient for the head too, against three products"},
        memory={"default": "", "help": "measure the peak memory of this contestant only"},
    )
    sizes = [tuple(map(int, size.split(","))) for size in given.sizes.split(";") if size] or (
        _SHORT if given.short else _SIZES
    )
    if given.memory:
        print(json.dumps({"bytes": _memory(given, *sizes[0])}))
        return
    rows = []
    for dtype in (given.dtype,) if given.dtype else _DTYPES:
        for size in sizes:
            rows += _race(given, dtype, *size)
            print(race.table(list(rows[0]), [list(row.values()) for row in rows[-_count(rows) :]]), flush=True)
    print(race.keep("gatherer-trained" if given.trained else "gatherer", given, rows))


def _count(rows: list[dict]) -> int:
    """How many rows belong to the last size."""
    last = [rows[-1][key] for key in ("dtype", "N", "D", "V")]
    return sum([row[key] for key in ("dtype", "N", "D", "V")] == last for row in rows)


def _race(given: argparse.Namespace, dtype: str, n: int, d: int, v: int) -> list[dict]:
    hidden, weight, targets = _inputs(given, dtype, n, d, v)
    contestants = {"bare products": _bare(hidden, weight, given.trained)}
    for name, gather in GATHERERS.items():
        if name == "sempa" or n * v <= _LARGEST:
            run = _forward_backward(gather, hidden, weight, targets)
            try:
                run()
            except Exception as error:
                print(f"{name}: {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)
                continue
            contestants[name] = run
    seconds = race.alternate(contestants, given.rounds)
    options = ("--device", given.device, "--dtype", dtype, "--sizes", f"{n},{d},{v}", "--memory")
    if given.trained:
        options = ("--trained", *options)
    return [
        {
            "dtype": dtype,
            "N": n,
            "D": d,
            "V": v,
            "contestant": name,
            "ms": 1000 * value,
            "x bare": value / seconds["bare products"],
            "peak MiB": race.in_fresh_process(__file__, *options, name)["bytes"] / 2**20,
        }
        for name, value in seconds.items()
    ]


def _inputs(given: argparse.Namespace, dtype: str, n: int, d: int, v: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, d, generator=generator)
    # Logits of standard deviation 3, as a language model's are.
    weight = 3 / d**0.5 * torch.randn(v, d, generator=generator)
    targets = torch.randint(v, (n,), generator=generator)
    hidden, weight = (x.to(given.device, _DTYPES[dtype]) for x in (hidden, weight))
    return hidden.requires_grad_(), weight.requires_grad_(given.trained), targets.to(given.device)


def _bare(hidden: Tensor, weight: Tensor, trained: bool) -> Callable[[], object]:
    @torch.no_grad()
    def run() -> None:
        logits = hidden @ weight.T
        logits @ weight
        if trained:
            logits.T @ hidden

    return run


def _forward_backward(gather: Callable, hidden: Tensor, weight: Tensor, targets: Tensor) -> Callable[[], None]:
    def run() -> None:
        hidden.grad = weight.grad = None
        gather(hidden, weight, targets).sum().backward()

    return run


def _log_softmax(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return (hidden @ weight.T).float().log_softmax(1).gather(1, targets[:, None])[:, 0]


def _trl(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from trl.trainer.utils import selective_log_softmax

    return selective_log_softmax(hidden @ weight.T, targets)


def _linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return -F.linear_cross_entropy(hidden, weight, targets, reduction="none")


def _chunked_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    # It finishes its gradients in the forward pass too, so it can only sum.
    options = torch.nn.LinearCrossEntropyOptions()
    return -F.linear_cross_entropy(hidden, weight, targets, reduction="sum", options=options)


def _liger(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction

    return -LigerFusedLinearCrossEntropyFunction.apply(hidden, weight, targets, None, None, -100, 0.0, 0.0, "none")[0]


def _cut(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    return -linear_cross_entropy(hidden, weight, targets, reduction="none")


GATHERERS = {
    "sempa": token_logprobs,
    "log_softmax": _log_softmax,
    "TRL": _trl,
    "linear_cross_entropy": _linear_cross_entropy,
    "linear_cross_entropy, chunked": _chunked_cross_entropy,
}
if torch.cuda.is_available():
    GATHERERS |= {"Liger": _liger, "cut-cross-entropy": _cut}


def _memory(given: argparse.Namespace, n: int, d: int, v: int) -> int:
    inputs = _inputs(given, given.dtype, n, d, v)
    run = (
        _bare(*inputs[:2], given.trained)
        if given.memory == "bare products"
        else _forward_backward(GATHERERS[given.memory], *inputs)
    )
    # Code and thread pools are loaded by a small run first.
    small = _inputs(given, given.dtype, 8, d, 512)
    _forward_backward(GATHERERS.get(given.memory, token_logprobs), *small)()
    peak = race.PeakMemory(given.device)
    run()
    return peak.risen()


if __name__ == "__main__":
    main()
