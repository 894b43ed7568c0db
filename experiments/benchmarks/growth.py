"""How a training step grows: time and memory over the triplets of a pass, and over the model's parameters."""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import race
import torch
from training import OPTIONS, random_model, read_or_make, sempa_contestants
from transformers import AutoModelForCausalLM

from sempa.model.base import open_config
from sempa.model.resolve import quiet, resolve_model
from sempa.report.plots import ALIGNED, INK, make_figure, standalone, svg

_TRIPLETS = (16, 32, 64, 128)
# Width and depth of models with random weights, in the default model's proportions and with its vocabulary.
_SHAPES = ((192, 10), (320, 17), (448, 23), (576, 30), (768, 40))
# Triplets of a pass where the model is what grows.
_COUNT = 16


def main() -> None:
    given = race.arguments(
        __doc__,
        triplets=OPTIONS["triplets"],
        memory={"default": "", "help": "measure the peak memory of a step for MODEL,COUNT only"},
    )
    given.model = "smollm2-135m"
    if given.memory:
        given.model, count = given.memory.rsplit(",", 1)
        given.count = int(count)
        print(json.dumps({"bytes": _memory(given)}))
        return
    sizes, shapes = (_TRIPLETS[:2], _SHAPES[:2]) if given.short else (_TRIPLETS, _SHAPES)
    with tempfile.TemporaryDirectory() as folder:
        runs = [("triplets", given.model, count) for count in sizes]
        for width, depth in shapes:
            runs.append(("parameters", f"{folder}/{width}", _COUNT))
            random_model(given.model, Path(folder) / str(width), width, depth)
        rows = _measure(given, runs)
    print(race.table(list(rows[0]), [list(row.values()) for row in rows]))
    print(race.keep("growth", given, rows, plot))


def _measure(given: argparse.Namespace, runs: Sequence[tuple[str, str, int]]) -> list[dict]:
    """A pass of optimiser steps for each model and number of triplets: median seconds, peak above the loaded model."""
    steps = {}
    for run in runs:
        _, given.model, given.count = run
        steps[run] = sempa_contestants(given, read_or_make(given))["step"]
    seconds = race.alternate(steps, given.rounds)
    rows = []
    for over, model, count in runs:
        options = ("--device", given.device, "--dtype", race.dtype(given), "--triplets", given.triplets, "--memory")
        risen = race.in_fresh_process(__file__, *options, f"{model},{count}")["bytes"]
        size = {"triplets": count, "parameters": _parameters(model)}
        rows.append({"over": over, **size, "seconds": seconds[over, model, count], "peak MiB": risen / 2**20})
    return rows


def _parameters(model: str) -> int:
    """How many a model has, counted without storage."""
    with torch.device("meta"), quiet():
        empty = AutoModelForCausalLM.from_config(open_config(model, resolve_model(model)))
    return sum(parameter.numel() for parameter in empty.parameters())


def _memory(given: argparse.Namespace) -> int:
    step = sempa_contestants(given, read_or_make(given))["step"]
    peak = race.PeakMemory(given.device)
    step()
    return peak.risen()


def plot(rows: list[dict]) -> str:
    """Seconds and peak memory over the triplets of a pass, and over the model's parameters, from zero; an SVG."""
    figure, axes = make_figure(1, 4, (12.0, 2.9))
    for place, (over, unit, label) in enumerate(
        (("triplets", 1, "triplets of a pass"), ("parameters", 1e6, "parameters, million"))
    ):
        points = [row for row in rows if row["over"] == over]
        x = [row[over] / unit for row in points]
        for axis, key in zip(axes[2 * place : 2 * place + 2], ("seconds", "peak MiB"), strict=True):
            axis.plot(x, [row[key] for row in points], color=ALIGNED, marker="o", markersize=4)
            # What proportional growth from the largest point would be.
            axis.plot([0, x[-1]], [0, points[-1][key]], color=INK, linewidth=0.7, linestyle=":")
            axis.set(xlim=(0, None), ylim=(0, None), xlabel=label, title=key)
    return standalone(svg(figure, "growth", "Seconds and peak memory of training steps over triplets and parameters"))


if __name__ == "__main__":
    main()
