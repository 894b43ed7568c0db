"""How time and memory grow: over response tokens, vocabulary, triplets, parameters and the sentences of a corpus.

Tokens and vocabulary are those of `token_logprobs` forward and backward (D 576), triplets and parameters those of
training steps, sentences those of a corpus that is embedded into shards.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import logprob_kernel as kernel
import race
import torch
from training import OPTIONS, random_model, read_or_make, sempa_contestants
from transformers import AutoModelForCausalLM

from sempa.data.sts import caption_pairs
from sempa.embedding.corpus import embed_corpus
from sempa.embedding.embedder import Embedder
from sempa.kernels import token_logprobs
from sempa.model.base import open_config
from sempa.model.resolve import quiet, resolve_model
from sempa.report.plots import ALIGNED, BASE, INK, make_figure, svg

# Each from small to large; of a model width and depth, in the default model's proportions and with its vocabulary.
SIZES = {
    "tokens": (512, 1024, 2048, 4096, 8192),
    "vocabulary": (32_000, 64_000, 128_000, 256_000),
    "triplets": (16, 32, 64, 128),
    "parameters": ((192, 10), (320, 17), (448, 23), (576, 30), (768, 40)),
    "sentences": (128, 256, 512, 1024),
}
# Held fixed while another grows: N, D and V of a kernel call, and triplets per pass.
_TOKENS, _WIDTH, _VOCABULARY, _TRIPLETS = 512, 576, 49_152, 16


def main() -> None:
    given = race.arguments(
        __doc__,
        triplets=OPTIONS["triplets"],
        model=OPTIONS["model"],
        over={"choices": SIZES, "help": "measure the peak memory of this kind only, at --size"},
        size={"type": int, "help": "number of what grows"},
    )
    if given.over:
        print(json.dumps({"bytes": _memory(given)}))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for over, sizes in SIZES.items():
            rows += _measure(given, over, sizes[:2] if given.short else sizes, Path(folder))
    print(race.table(list(rows[0]), [list(row.values()) for row in rows]))
    print(race.keep("growth", given, rows, plot))


def _measure(given: argparse.Namespace, over: str, sizes: tuple, folder: Path) -> list[dict]:
    """Median seconds of every size, and its peak memory above what lay there before, in a fresh process."""
    models = dict.fromkeys(sizes, given.model)
    if over == "parameters":
        for width, depth in sizes:
            models[width, depth] = f"{folder}/{width}"
            random_model(given.model, folder / str(width), width, depth)
    counts = {size: _parameters(models[size]) if over == "parameters" else size for size in sizes}
    runs = {size: make_run(given, over, counts[size], models[size]) for size in sizes}
    seconds = race.alternate(runs, given.rounds)
    options = ("--device", given.device, "--dtype", race.dtype(given), "--triplets", given.triplets, "--over", over)
    rows = []
    for size in sizes:
        more = ("--model", models[size], "--size", counts[size])
        risen = race.in_fresh_process(__file__, *options, *more)["bytes"] / 2**20
        rows.append({"over": over, "size": counts[size], "seconds": seconds[size], "peak MiB": risen})
    return rows


def make_run(given: argparse.Namespace, over: str, size: int, model: str) -> Callable[[], object]:
    """What is timed: one call with `size` of what grows."""
    if over in ("tokens", "vocabulary"):
        n, v = (size, _VOCABULARY) if over == "tokens" else (_TOKENS, size)
        where = argparse.Namespace(device=given.device, trained=False)
        return kernel._forward_backward(token_logprobs, *kernel._inputs(where, race.dtype(given), n, _WIDTH, v))
    if over == "sentences":
        return partial(_embed, Embedder(model, dtype=race.dtype(given), device=given.device), size)
    chosen = argparse.Namespace(**vars(given) | {"model": model, "count": size if over == "triplets" else _TRIPLETS})
    return sempa_contestants(chosen, read_or_make(chosen))["step"]


def _embed(embedder: Embedder, count: int) -> None:
    """A corpus of so many sentences into shards of 128."""
    texts = [text for pair in caption_pairs("test") for text in (pair.first, pair.second)]
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus.txt")
        corpus.write_text("".join(f"{text}\n" for text in texts[:count]), encoding="utf-8")
        embed_corpus(embedder, corpus, Path(folder, "vectors"), shard_rows=128)


def _parameters(model: str) -> int:
    """How many a model has, counted without storage."""
    with torch.device("meta"), quiet():
        empty = AutoModelForCausalLM.from_config(open_config(model, resolve_model(model)))
    return sum(parameter.numel() for parameter in empty.parameters())


def _memory(given: argparse.Namespace) -> int:
    run = make_run(given, given.over, given.size, given.model)
    peak = race.PeakMemory(given.device)
    run()
    return peak.risen()


def plot(rows: list[dict]) -> str:
    """Seconds (left) and peak memory (right) over everything that grows, from zero; an SVG."""
    from matplotlib.ticker import EngFormatter

    figure, axes = make_figure(len(SIZES), (2.2 * len(SIZES), 2.5))
    for axis, over in zip(axes, SIZES, strict=True):
        points = [row for row in rows if row["over"] == over]
        x = [row["size"] for row in points]
        for side, key, colour in ((axis, "seconds", ALIGNED), (axis.twinx(), "peak MiB", BASE)):
            side.plot(x, [row[key] for row in points], color=colour, marker="o", markersize=4)
            # What proportional growth from the largest point would be.
            side.plot([0, x[-1]], [0, points[-1][key]], color=INK, linewidth=0.7, linestyle=":")
            side.set_ylim(0, None)
            side.set_ylabel(key, color=colour)
            side.tick_params(axis="y", labelsize=8, colors=colour)
        axis.set(xlim=(0, None), xlabel=over)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    return svg(figure, "growth", "Seconds and peak memory over what a run can have more of", alone=True)


if __name__ == "__main__":
    main()
