"""The trade-off curve: every objective at some strengths, similarity against what is left of the language model.

    python experiments/frontier/frontier.py --triplets snli_dev.jsonl --sts STS [--gsm8k gsm8k_test.jsonl]

Trains each of POINTS on the same triplets with the same batches and LoRA, scores samples of STS12–16, STS-B dev and
SICK trial, and measures KL and perplexity on text that no training saw; some adapters also at half scale
(`interpolated`). Table and plot take the 16 passages for these. Finished points are reused: a second call resumes
where the first stopped. Writes the figures as JSON, the table as Markdown, the plot as SVG.
"""

import json
import shutil
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from sempa.batching.batches import load_dataset
from sempa.cli import Parser
from sempa.config import load_config
from sempa.data.sts import StsTask, read_sts, sample_task
from sempa.embedding.embed import embed
from sempa.evaluation.drift import measure_drift
from sempa.evaluation.eval_texts import EvalText, report_texts
from sempa.evaluation.geometry import isoscore, uniformity, unit_vectors
from sempa.evaluation.sts import evaluate_sts
from sempa.io.files import write_atomic, write_json
from sempa.io.origin import origin, processor
from sempa.io.streams import exit_code
from sempa.model.base import BaseModel, load_base
from sempa.model.lora import add_lora, interpolated, remove_adapter
from sempa.report.plots import INK, make_figure, svg
from sempa.training.loop import train

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parent / "smollm2_nli.yaml"
RESULTS = HERE.parent / "results" / "frontier"
# What the points share unless they say otherwise, and what another recipe would change for all.
SHARED = (
    *("learning_rate", "batch_size", "beta", "preference", "preference_fraction", "contrast"),
    *("temperature", "retention", "lora_rank", "lora_alpha", "readout"),
)
# One objective alone, on whole batches; the contrast beside it is off, and the rate that suits it is lower.
ALONE = {"contrast": 0.0, "retention": 0.0, "preference": 1.0, "preference_fraction": 1.0, "learning_rate": 5e-4}
ANCHORED = {**ALONE, "anchor": 1.0}
RETAINED = {key: value for key, value in ALONE.items() if key != "retention"}
# Name, and what differs from the default recipe.
DEFAULT, PAPER = "default recipe", "DPO alone, the paper's settings"
POINTS: dict[str, dict[str, object]] = {
    DEFAULT: {},
    "contrast + retention, no DPO": {"objective": "none"},
    "DPO + retention": RETAINED,
    PAPER: {**ALONE, "learning_rate": 1e-4, "weight_decay": 0.1, "beta2": 0.95},
    "default recipe without retention": {"retention": 0.0},
    "DPO + anchor": ANCHORED,
    "full rankings + retention": {**RETAINED, "objective": "plackett-luce"},
    "IPO + anchor": {**ANCHORED, "objective": "ipo"},
}
# By the name's first word.
COLOURS = {"DPO": "#0072b2", "IPO": "#56b4e9", "full": "#009e73", "contrast": "#e69f00", "default": "#d55e00"}
# The paper's objective and optimiser settings, and the default recipe.
MARKS = {PAPER: ("*", 12), DEFAULT: ("D", 7)}
# Smaller scales of the adapter: each takes no training but a whole evaluation.
SCALES = {DEFAULT: (0.5,)}
# What recipes may be chosen by; the other sets are test sets, though most of STS-B's pairs come from them.
DEVELOPMENT = ("STS-B dev", "SICK trial")


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--triplets", required=True, help="labelled NLI, for rankings need neutral sentences")
    parser.add_argument("--sts", required=True, help="folder with STS12 to STS16, STSBenchmark and SICK")
    parser.add_argument("--gsm8k", default="", help="GSM8K file: perplexity of its conversations too")
    parser.add_argument("--pairs", type=int, default=200, help="pairs of each set, drawn once (default %(default)s)")
    parser.add_argument("--limit", type=int, default=640, help="triplets of every run (default %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="runs per point (default %(default)s)")
    parser.add_argument("--only", default="", help="only points whose name holds this text")
    parser.add_argument("--dtype", default="auto", help="bfloat16, float32 or auto (default %(default)s)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where .json, .md and .svg go")
    given = parser.parse_args()
    tasks = [sample_task(task, given.pairs) for task in read_sts(given.sts, ("dev", "trial"))]
    texts = report_texts(given.gsm8k)
    base = load_base("smollm2-135m", given.dtype)
    config = load_config(RECIPE)
    settings = {"pairs": given.pairs, "limit": given.limit, "dtype": str(base.model.dtype)}
    settings["data"] = [Path(path).name for path in (given.triplets, given.sts, given.gsm8k)]
    # Processors round differently, which moves a score by tenths of a point.
    settings["cpu"] = processor()
    settings["recipe"] = {key: getattr(config, key) for key in SHARED}
    result = _kept(given.out.with_suffix(".json"), settings, base.model)
    # A point that has changed since is measured anew.
    result["rows"] = [row for row in result["rows"] if row["changes"] == POINTS.get(row["name"])]
    if "base" not in result:
        result["base"] = _scores(base, tasks, config.readout)
    for seed in range(given.seeds):
        for name, changes in POINTS.items():
            done = any((row["name"], row["seed"]) == (name, seed) for row in result["rows"])
            if done or given.only not in name:
                continue
            shared = {"triplets": given.triplets, "combinations": True, "triplet_limit": given.limit, "held_out": 0}
            # Noise helps longer runs only.
            values = {**shared, "noise": 0.0, **changes, "seed": seed}
            measured = _measure(base, tasks, texts, name, values)
            result["rows"] += [{**row, "changes": changes} for row in measured]
            write_json(given.out.with_suffix(".json"), result)
            write_atomic(given.out.with_suffix(".svg"), plot(result))
    write_atomic(given.out.with_suffix(".md"), f"{table(result)}\n")
    print(table(result))


def _kept(path: Path, settings: dict, model: PreTrainedModel) -> dict:
    """What an earlier call with the same settings has measured."""
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {"rows": [], **(kept if kept.get("settings") == settings else {"settings": settings}), **origin(model)}


def _measure(
    base: BaseModel, tasks: list[StsTask], texts: dict[str, list[EvalText]], name: str, values: dict[str, object]
) -> list[dict]:
    """Train a point and measure it at each scale of the adapter: a row for each."""
    run = Path("runs/frontier") / f"{name.replace(' ', '-').replace(',', '')}-{values['seed']}"
    shutil.rmtree(run, ignore_errors=True)
    config = load_config(RECIPE, [f"{key}={value}" for key, value in values.items()])
    dataset = load_dataset(config, base.tokenizer)
    add_lora(base.model, config.lora_rank, config.lora_alpha, config.lora_dropout, config.seed)
    began, rows = time.perf_counter(), []
    # No development score: what is compared is the end of equal budgets.
    train(config, base, dataset.train, run, lambda: 0.0)
    seconds = time.perf_counter() - began
    for scale in (1.0, *SCALES.get(name, ())):
        with interpolated(base.model, scale):
            drift = measure_drift(base, texts)
            row = {"name": name, "seed": values["seed"], "scale": scale, **_scores(base, tasks, config.readout)}
        row |= {"kl": {r["text"]: r["kl"] for r in drift}}
        row |= {"perplexity": {r["text"]: 100 * r["change"] for r in drift}, "training_seconds": seconds}
        rows.append(row)
        print(json.dumps(row), flush=True)
    remove_adapter(base.model)
    return rows


def _scores(base: BaseModel, tasks: list[StsTask], readout: str) -> dict:
    vectors: list[np.ndarray] = []

    def encode(texts: list[str]) -> np.ndarray:
        vectors.append(embed(base, texts, readout=readout))
        return vectors[0]

    scores = {result.task.name: result.score for result in evaluate_sts(encode, tasks)}
    unit = unit_vectors(vectors[0])
    geometry = {"uniformity": uniformity(unit), "isoscore": isoscore(unit)}
    return {"sts": scores, "average": statistics.mean(scores.values()), "geometry": geometry}


@dataclass(frozen=True)
class Point:
    """An objective's runs at one scale of the adapter: each figure is one value per seed."""

    name: str
    scale: float
    average: tuple[float, ...]
    development: tuple[float, ...]
    kl: tuple[float, ...]
    perplexity: tuple[float, ...]


def points(result: dict) -> list[Point]:
    """The rows by objective and scale, in the rows' order; KL and change of perplexity are those of the passages.

    Conversations resemble the base's samples that retention trains on, passages do not.
    """
    groups: dict[tuple[str, float], list[dict]] = {}
    for row in result["rows"]:
        groups.setdefault((row["name"], row["scale"]), []).append(row)
    return [
        Point(
            *key,
            tuple(row["average"] for row in rows),
            tuple(development(row) for row in rows),
            *(tuple(row[name]["passages"] for row in rows) for name in ("kl", "perplexity")),
        )
        for key, rows in groups.items()
    ]


def development(row: dict) -> float:
    """The mean of a row's (or the base's) scores on the development sets, ρ × 100."""
    return statistics.mean(row["sts"][name] for name in DEVELOPMENT)


def table(result: dict) -> str:
    """The points as Markdown, the best first: mean over the seeds, and lowest to highest where there are several."""
    base, base_development = result["base"]["average"], development(result["base"])
    lines = [
        "| objective | scale | seeds | seven sets | STS-B dev, SICK trial | KL, nats | perplexity, % |",
        "|---|---|---|---|---|---|---|",
    ]
    for point in sorted(points(result), key=lambda point: -statistics.mean(point.average)):
        gains = [value - base for value in point.average], [value - base_development for value in point.development]
        cells = (
            *(_spread(gain, "+.2f") for gain in gains),
            _spread(point.kl, ".4f"),
            _spread(point.perplexity, "+.2f"),
        )
        lines.append(f"| {point.name} | {point.scale:g} | {len(point.average)} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"base: {base:.2f}"])


def _spread(values: Sequence[float], form: str) -> str:
    mean = format(statistics.mean(values), form)
    return mean if len(values) == 1 else f"{mean} ({min(values):{form}} to {max(values):{form}})"


def plot(result: dict) -> str:
    """Similarity against KL and against perplexity, the best first; a line joins the scales of one adapter; as an SVG.

    A point is the mean over its seeds, whiskers reach from the lowest to the highest. Points are numbered, and named
    beside the picture. The star is DPO with the paper's optimiser settings, the diamond the default recipe.
    """
    figure, axes = make_figure(3, (12.0, 7.6), width_ratios=(4, 4, 3))
    base = result["base"]["average"]
    measured = points(result)
    whole = [point for point in measured if point.scale == 1]
    names = [point.name for point in sorted(whole, key=lambda point: -statistics.mean(point.average))]
    for axis, key, label in (
        (axes[0], "kl", "KL(base ‖ aligned), nats per token"),
        (axes[1], "perplexity", "change of perplexity, %"),
    ):
        for number, name in enumerate(names, 1):
            colour = COLOURS[name.split()[0]]
            places = []
            for point in (point for point in measured if point.name == name):
                across, up = getattr(point, key), point.average
                places.append((statistics.mean(across), statistics.mean(up)))
                if point.scale < 1:
                    scale, below = f"scale {point.scale:g}", {"xytext": (4, -8), "textcoords": "offset points"}
                    axis.annotate(scale, places[-1], **below, fontsize=7, color=colour)
                for ends in (
                    [(min(across), max(across)), [places[-1][1]] * 2],
                    [[places[-1][0]] * 2, (min(up), max(up))],
                ):
                    axis.plot(*ends, color=colour, linewidth=0.8, alpha=0.5)
            axis.plot(*zip(*places, strict=True), "-", color=colour, linewidth=0.8)
            marker, size = MARKS.get(name, ("o", 5))
            axis.plot(*places[0], marker, color=colour, markersize=size)
            # Neighbours' numbers above and below in turn.
            offset = (3, 5 if number % 2 else -11)
            axis.annotate(str(number), places[0], fontsize=8, xytext=offset, textcoords="offset points", color=INK)
        axis.axhline(base, color=INK, linewidth=0.7, linestyle=":")
        axis.text(
            0.99, base, "base", color=INK, fontsize=8, ha="right", va="bottom", transform=axis.get_yaxis_transform()
        )
        axis.set_xlabel(f"{label} (16 passages)")
    axes[0].set_xscale("log")
    # Logarithmic on both sides of what is all but nothing.
    axes[1].set_xscale("symlog", linthresh=1)
    axes[0].set_ylabel("mean of seven STS sets, ρ × 100")
    axes[2].set_axis_off()
    for number, name in enumerate(names, 1):
        place = 1 - (number - 0.5) / max(len(names), 12)
        colour = COLOURS[name.split()[0]]
        axes[2].text(0.08, place, str(number), color=colour, fontsize=9, ha="right", va="center", weight="bold")
        axes[2].text(0.12, place, name, color=INK, fontsize=9, va="center")
    title = "Similarity against divergence from the base and against perplexity, by objective"
    return svg(figure, "frontier", title, alone=True)


if __name__ == "__main__":
    sys.exit(exit_code("frontier.py", main))
