"""Does preference alignment alone move the embedding, and when? DPO without contrast, measured as it trains.

.venv/bin/python experiments/frontier/preference.py --triplets snli_dev.jsonl --sts STS/STSBenchmark
    # experiments/results/preference.json and .svg (or --out); a run that is there already is not repeated
"""

import json
import shutil
import sys
from pathlib import Path

from sempa.batching.batches import load_dataset
from sempa.cli import Parser
from sempa.config import Config, load_config
from sempa.data.sts import StsTask, development_task
from sempa.embedding.embed import embed
from sempa.evaluation.budget import divergence
from sempa.evaluation.sts import evaluate_sts
from sempa.io.files import write_atomic, write_json
from sempa.io.origin import origin, processor
from sempa.io.streams import exit_code
from sempa.model.base import BaseModel, load_base
from sempa.model.lora import add_lora, remove_adapter
from sempa.report.plots import INK, make_figure, svg
from sempa.training.base_samples import base_samples
from sempa.training.loop import train

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parent / "smollm2_sempa.yaml"
RESULTS = HERE.parent / "results" / "preference"
READOUTS = ("prompteol", "attention-sum")
# What differs from smollm2_sempa.yaml, which is DPO with retention.
RUNS: dict[str, dict[str, object]] = {
    "DPO, the paper's settings": {"retention": 0.0, "learning_rate": 1e-4, "weight_decay": 0.1, "beta2": 0.95},
    "DPO + anchor": {"retention": 0.0, "anchor": 1.0},
    "DPO + retention": {},
    "full rankings + retention": {"objective": "plackett-luce"},
    "DPO + anchor + retention": {"anchor": 1.0},
}
COLOURS = dict(zip(RUNS, ("#999999", "#56b4e9", "#d55e00", "#009e73", "#cc79a7"), strict=True))
# Optimiser steps between two looks, and after how many of them the adapter is measured: 320 triplets, 1,280, …
STRIDE, LOOKS = 20, (1, 4, 9, 18, 27, 36)


def main() -> None:
    """Train what is missing, measure it on the way, and draw everything."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--triplets", required=True, help="labelled NLI: full rankings need neutral sentences")
    parser.add_argument("--sts", required=True, help="folder of STS-B")
    parser.add_argument("--epochs", type=float, default=1.0, help="(default %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each kind (default %(default)s)")
    parser.add_argument("--only", default="", help="only runs whose name holds this text")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where .json and .svg go")
    given = parser.parse_args()
    file = given.out.with_suffix(".json")
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    data = [Path(path).name for path in (given.triplets, given.sts)]
    # Processors round differently: another one's runs are not mixed in.
    same = (kept.get("data"), kept.get("machine", {}).get("cpu")) == (data, processor())
    result = kept if same else {"runs": [], "data": data}
    # A run that has changed since is measured anew.
    result["runs"] = [run for run in result["runs"] if run["changes"] == RUNS.get(run["name"])]
    base = load_base("smollm2-135m")
    task = development_task(given.sts)
    if "base" not in result:
        result["base"] = measure(base, task)
    for seed in range(given.seeds):
        for name, changes in RUNS.items():
            kind = {"name": name, "seed": seed, "epochs": given.epochs}
            if given.only not in name or any(run.items() >= kind.items() for run in result["runs"]):
                continue
            values = {"triplets": given.triplets, "triplet_limit": 0, "held_out": 0, "eval_every": STRIDE}
            values |= {"seed": seed, "epochs": given.epochs, **changes}
            config = load_config(RECIPE, [f"{key}={value}" for key, value in values.items()])
            points = train_and_measure(config, base, task)
            result["runs"].append({**kind, "changes": changes, "points": points})
            write_json(file, {**result, **origin(base.model)})
    write_atomic(given.out.with_suffix(".svg"), plot(result))


def measure(base: BaseModel, task: StsTask) -> dict[str, float]:
    """Spearman's ρ × 100 on the task, at each readout."""
    scores = {}
    for readout in READOUTS:
        (scored,) = evaluate_sts(lambda sentences, readout=readout: embed(base, sentences, readout=readout), [task])
        scores[readout] = scored.score
    return scores


def train_and_measure(config: Config, base: BaseModel, task: StsTask) -> list[dict[str, float]]:
    """One run; the whole adapter's scores and divergence at each of `LOOKS`."""
    dataset = load_dataset(config, base.tokenizer)
    held_out = base_samples(base, held_out=True)
    add_lora(base.model, config.lora_rank, config.lora_alpha, config.lora_dropout, config.seed)
    points: list[dict[str, float]] = []
    looks = 0

    def look() -> float:
        nonlocal looks
        looks += 1
        if looks in LOOKS:
            kl = divergence(base, held_out, 1.0)
            # The last look is at the end, however many steps ago the one before was.
            seen = min(looks * STRIDE * config.batch_size, round(config.epochs * len(dataset.train)))
            points.append({"triplets": seen, "kl": kl, **measure(base, task)})
            print(json.dumps(points[-1]), flush=True)
        # Every adapter is as good as another here: the run folder is not read.
        return 0.0

    folder = Path("runs/preference")
    shutil.rmtree(folder, ignore_errors=True)
    train(config, base, dataset.train, folder, look)
    remove_adapter(base.model)
    return points


def plot(result: dict) -> str:
    """STS-B dev over the triplets seen, at both readouts, and the divergence from the base; as an SVG."""
    figure, axes = make_figure(3, (11.0, 3.6))
    for axis, key in zip(axes, (*READOUTS, "kl"), strict=True):
        for run in result["runs"]:
            seen, values = zip(*((point["triplets"], point[key]) for point in run["points"]), strict=True)
            once = run["epochs"] == 1
            label = (run["name"] + ("" if once else f", {run['epochs']:g} times")) if run["seed"] == 0 else None
            style = {"marker": "o", "markersize": 4, "linestyle": "-" if once else "--", "linewidth": 1.2}
            axis.plot(seen, values, color=COLOURS[run["name"]], label=label, **style)
        axis.set_xscale("log")
        longest = max((run["points"] for run in result["runs"]), key=lambda points: points[-1]["triplets"])
        ticks: list[int] = []
        # On the logarithmic axis nearer ones would overlap.
        for point in longest:
            if not ticks or point["triplets"] >= 2 * ticks[-1]:
                ticks.append(point["triplets"])
        axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel("triplets seen")
        if key in READOUTS:
            axis.axhline(result["base"][key], color=INK, linewidth=0.7, linestyle=":")
            axis.set_title(f"STS-B dev at {key}, ρ × 100")
    # Room for the legend above.
    axes[2].set_ylim(0, 0.9)
    axes[2].set_title("KL(base ‖ policy), nats per token")
    axes[2].legend(frameon=False, labelcolor=INK, fontsize=7, loc="upper left")
    title = "Similarity and divergence while preference alignment trains without contrast"
    return svg(figure, "preference", title, alone=True)


if __name__ == "__main__":
    sys.exit(exit_code("preference.py", main))
