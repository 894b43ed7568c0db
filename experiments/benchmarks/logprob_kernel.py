"""token_logprobs, forward + backward: against the bare matrix products and every other way to the same numbers."""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial

import race
import torch
import torch.nn.functional as F
from draw import bars
from torch import Tensor

from sempa.kernels import token_logprobs
from sempa.report.plots import ALIGNED, BASE, INK, make_figure, svg

# rows N, width D, vocabulary V
_SIZES = (
    (256, 576, 32000),
    (2048, 576, 49152),
    (8192, 576, 32000),
    (2048, 896, 75968),
    (1024, 2048, 128256),
    (256, 4096, 256000),
)
_TRAINED = ((2048, 576, 49152), (2048, 896, 75968), (512, 2048, 128256))
_SHORT = ((512, 576, 49152),)
# For the growth of time and memory: one of N and V at a time.
_GROWTH = (
    *((n, 576, 49152) for n in (256, 512, 1024, 2048, 4096, 8192)),
    *((512, 576, v) for v in (32000, 64000, 128000, 256000)),
)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# Who takes this many times the bare products runs once, not in every round.
_SLOW = 4


def main() -> None:
    given = race.arguments(
        __doc__,
        sizes={"default": "", "help": "N,D,V;N,D,V in place of the built-in sizes"},
        trained={"action": "store_true", "help": "gradient for the head too, against three products"},
        growth={"action": "store_true", "help": "time and memory over N and over V, with a plot"},
        chunks={"action": "store_true", "help": "sempa alone, with other numbers of rows at a time"},
        memory={"default": "", "help": "measure the peak memory of this contestant only"},
    )
    builtin = _GROWTH if given.growth else _TRAINED if given.trained else _SIZES
    sizes = [tuple(map(int, size.split(","))) for size in given.sizes.split(";") if size]
    short = (*_GROWTH[:2], *_GROWTH[6:8]) if given.growth else _SHORT
    sizes = sizes or (short if given.short else _SIZES[1:2] if given.chunks else builtin)
    if given.memory:
        print(json.dumps({"bytes": _memory(given, *sizes[0])}))
        return
    rows = []
    name = "-".join(["logprob-kernel", *(kind for kind in ("trained", "growth", "chunks") if getattr(given, kind))])
    # Where bfloat16 products are the slower, nobody computes in them.
    native = _DTYPES if race.dtype(given) == "bfloat16" else ("float32",)
    for dtype in (given.dtype,) if given.dtype else (race.dtype(given),) if given.growth else native:
        for size in sizes:
            measured = _race(given, dtype, *size)
            print(race.table(list(measured[0]), [list(row.values()) for row in measured]), flush=True)
            rows += measured
            # What an interrupt leaves is whole as far as it goes.
            race.keep(name, given, rows, picture=None)
    print(race.keep(name, given, rows, plot if given.growth else bars))


def _race(given: argparse.Namespace, dtype: str, n: int, d: int, v: int) -> list[dict]:
    hidden, weight, targets = _inputs(given, dtype, n, d, v)
    contestants = {name: _bare(hidden, weight, given.trained, reuse) for name, reuse in BARE.items()}
    seconds = {}
    for name in CHUNKS if given.chunks else ("sempa", "log_softmax") if given.growth else WAYS:
        run = _forward_backward((WAYS | CHUNKS)[name], hidden, weight, targets)
        try:
            # Whatever is loaded and started the first time is so on a small problem.
            _forward_backward((WAYS | CHUNKS)[name], *_inputs(given, dtype, 8, 16, 512))()
            limit = _SLOW * _seconds(contestants["bare products"])
            taken = _seconds(run)
        except Exception as error:
            print(f"{name} does not run: {type(error).__name__}: {str(error).splitlines()[0]}", flush=True)
            continue
        if taken > limit:
            print(f"{name} runs once: {taken:.1f} s, over {_SLOW} times the bare products", flush=True)
            seconds[name] = taken
        else:
            contestants[name] = run
    once = set(seconds)
    seconds = race.alternate(contestants, given.rounds) | seconds
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
            "runs": 1 if name in once else given.rounds,
            "ms": 1000 * value,
            "x bare": value / seconds["bare products"],
            "peak MiB": race.in_fresh_process(__file__, *options, name)["bytes"] / 2**20,
        }
        for name, value in seconds.items()
    ]


def _seconds(run: Callable[[], object]) -> float:
    race.synchronize()
    began = time.perf_counter()
    run()
    race.synchronize()
    return time.perf_counter() - began


def _inputs(given: argparse.Namespace, dtype: str, n: int, d: int, v: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(n, d, generator=generator)
    # Logits of standard deviation 3, as a language model's are.
    weight = torch.randn(v, d, generator=generator).mul_(3 / d**0.5)
    targets = torch.randint(v, (n,), generator=generator)
    hidden, weight = (x.to(given.device, _DTYPES[dtype]) for x in (hidden, weight))
    return hidden.requires_grad_(), weight.requires_grad_(given.trained), targets.to(given.device)


def _bare(hidden: Tensor, weight: Tensor, trained: bool, reuse: bool) -> Callable[[], object]:
    """Two products, or three; with `reuse` into memory that is there already, which spares a CPU its page faults."""
    hidden, weight = hidden.detach(), weight.detach()
    logits, direction, gradient = None, None, None
    if reuse:
        logits = hidden.new_empty(len(hidden), len(weight))
        direction, gradient = torch.empty_like(hidden), torch.empty_like(weight) if trained else None

    def run() -> None:
        scores = torch.mm(hidden, weight.T, out=logits)
        torch.mm(scores, weight, out=direction)
        if trained:
            torch.mm(scores.T, hidden, out=gradient)

    return run


def _forward_backward(gather: Callable, hidden: Tensor, weight: Tensor, targets: Tensor) -> Callable[[], None]:
    # Those of the contestant before would count as memory that is there.
    hidden.grad = weight.grad = None

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


def _liger(hidden: Tensor, weight: Tensor, targets: Tensor, reduction: str = "none") -> Tensor:
    from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction

    # Summed, it finishes its gradients in the forward pass; with a number for each token it computes the logits again.
    options = (None, None, -100, 0.0, 0.0, reduction)
    loss, *_ = LigerFusedLinearCrossEntropyFunction.apply(hidden, weight, targets, *options)
    return -loss


def _cut(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    from cut_cross_entropy import linear_cross_entropy

    return -linear_cross_entropy(hidden, weight, targets, reduction="none")


WAYS = {
    "sempa": token_logprobs,
    "log_softmax": _log_softmax,
    "TRL": _trl,
    "linear_cross_entropy": _linear_cross_entropy,
    "linear_cross_entropy, chunked": _chunked_cross_entropy,
}
CUDA_WAYS = {"Liger": _liger, "Liger, summed": partial(_liger, reduction="sum"), "cut-cross-entropy": _cut}
if torch.cuda.is_available():
    WAYS |= CUDA_WAYS


CHUNKS = {f"sempa, {rows} rows": partial(token_logprobs, chunk_rows=rows) for rows in (64, 128, 256, 512, 1024, 2048)}
BARE = {"bare products": False, "bare products, memory reused": True}


def _memory(given: argparse.Namespace, n: int, d: int, v: int) -> int:
    # Code and thread pools are loaded by a small run first.
    gather = (WAYS | CHUNKS).get(given.memory, token_logprobs)
    _forward_backward(gather, *_inputs(given, given.dtype, 8, d, 512))()
    hidden, weight, targets = _inputs(given, given.dtype, n, d, v)
    peak = race.PeakMemory(given.device)
    if given.memory in BARE:
        _bare(hidden, weight, given.trained, BARE[given.memory])()
    else:
        _forward_backward(gather, hidden, weight, targets)()
    return peak.risen()


def plot(rows: list[dict]) -> str:
    """Time and memory over rows N and vocabulary V, on logarithmic axes beside lines of slope 1; an SVG."""
    figure, axes = make_figure(4, (12.0, 3.2))
    colours = {"sempa": ALIGNED, "log_softmax": BASE, "bare products": "#999999"}
    over_rows = [row for row in rows if row["V"] == _GROWTH[0][2]]
    over_vocabulary = [row for row in rows if row["V"] != _GROWTH[0][2]]
    for axis, chosen, x, y in (
        (axes[0], over_rows, "N", "ms"),
        (axes[1], over_rows, "N", "peak MiB"),
        (axes[2], over_vocabulary, "V", "ms"),
        (axes[3], over_vocabulary, "V", "peak MiB"),
    ):
        for name, colour in colours.items():
            points = [(row[x], row[y]) for row in chosen if row["contestant"] == name]
            axis.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, label=name)
        # The slope of linear growth, through the first point of ours.
        first, *_ = [row for row in chosen if row["contestant"] == "sempa"]
        ends = [min(row[x] for row in chosen), max(row[x] for row in chosen)]
        axis.plot(ends, [first[y] * end / first[x] for end in ends], color=INK, linestyle=":", linewidth=0.8)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.minorticks_off()
        axis.set(xlabel=x, title=f"{y} over {x}")
    axes[0].legend(frameon=False, fontsize=8, labelcolor=INK)
    title = "Time and memory of the fused kernel over rows and vocabulary"
    return svg(figure, "logprob-kernel-growth", title, alone=True)


if __name__ == "__main__":
    main()
