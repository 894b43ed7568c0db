"""The trade-off curve: every objective over a grid of strengths, similarity against what is left of the language model.

    python experiments/frontier/frontier.py --triplets snli_dev.jsonl --sts STS --gsm8k gsm8k_test.jsonl

Trains each point of POINTS with equal triplets, batch and LoRA, scores STS12–16, STS-B dev and SICK trial, and measures
KL and perplexity on text that no training saw. Finished points are kept: a second call goes on where the first stopped.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch

from sempa.config import load_config
from sempa.embedder import embed
from sempa.evaluation import gsm8k_sample, measure_generation
from sempa.experiment import start_run
from sempa.files import write_json
from sempa.lora import load_adapter
from sempa.models import BaseModel, load_base
from sempa.sts import StsTask, evaluate_sts, read_sts

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results" / "frontier.json"
# Name, and what differs from the shared settings; the first word names the family in the plot.
POINTS: dict[str, dict[str, object]] = {
    "DPO (the paper's recipe)": {"objective": "dpo", "learning_rate": 1e-4, "lora_dropout": 0.05},
    "DPO lr 4e-4": {"objective": "dpo"},
    "DPO + anchor": {"objective": "dpo", "anchor": 1.0},
    "DPO + retention": {"objective": "dpo", "retention": 10.0},
    "cDPO + anchor": {"objective": "conservative-dpo", "anchor": 1.0},
    "IPO + anchor": {"objective": "ipo", "anchor": 1.0},
    "ranking + anchor": {"objective": "plackett-luce", "anchor": 1.0},
    "ranking + retention": {"objective": "plackett-luce", "retention": 10.0},
    "SFT (anchor alone)": {"objective": "none", "anchor": 1.0},
    "contrast": {"objective": "none", "contrast": 1.0},
    "contrast + retention 3": {"objective": "none", "contrast": 1.0, "retention": 3.0},
    "contrast + retention 10": {"objective": "none", "contrast": 1.0, "retention": 10.0},
    "contrast + retention 30": {"objective": "none", "contrast": 1.0, "retention": 30.0},
    "contrast + DPO + retention 10": {"objective": "dpo", "contrast": 1.0, "retention": 10.0},
    "contrast + ranking + retention 10": {"objective": "plackett-luce", "contrast": 1.0, "retention": 10.0},
}
SHARED = {
    **{"anchor": 0.0, "interpolation": 1.0, "held_out": 0, "eval_every": 1000, "dev_pairs": 100},
    **{"builtin_pairs": 20, "generation_tokens": 0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--triplets", required=True, help="labelled NLI, for rankings need neutral sentences")
    parser.add_argument("--sts", required=True, help="folder with STS12 to STS16, STSBenchmark and SICK")
    parser.add_argument("--gsm8k", default="", help="GSM8K file: perplexity of its conversations too")
    parser.add_argument("--pairs", type=int, default=500, help="pairs of each set, drawn once (0: all)")
    parser.add_argument("--limit", type=int, default=1280, help="triplets of every run")
    parser.add_argument("--seeds", type=int, default=1, help="runs per point")
    parser.add_argument("--only", default="", help="only points whose name holds this text")
    parser.add_argument("--runs", type=Path, default=Path("runs/frontier"), help="where the run folders go")
    given = parser.parse_args()
    tasks = [_sample(task, given.pairs) for task in read_sts(given.sts, ("dev", "trial"))]
    settings = {"pairs": given.pairs, "limit": given.limit, **SHARED}
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    done = kept.get("points", []) if kept.get("settings") == settings else []
    base_row = next((row for row in done if row["name"] == "base"), None)
    if base_row is None:
        base_row = {"name": "base", "seed": 0, **_scores(load_base("smollm2-135m"), tasks), "kl": {}, "perplexity": {}}
        done.append(base_row)
    for seed in range(given.seeds):
        for name, changes in POINTS.items():
            if given.only in name and not any(row["name"] == name and row["seed"] == seed for row in done):
                done.append(_point(given, tasks, name, seed, changes))
                write_json(RESULTS, {"settings": settings, "points": done})
                _draw(done)


def _point(given: argparse.Namespace, tasks: list[StsTask], name: str, seed: int, changes: dict[str, object]) -> dict:
    run = given.runs / f"{name.replace(' ', '-')}-{seed}"
    values = {
        "triplets": given.triplets,
        "triplet_limit": given.limit,
        "output": run,
        "seed": seed,
        **SHARED,
        **changes,
    }
    config = load_config(HERE.parent / "smollm2_nli.yaml", [f"{key}={value}" for key, value in values.items()])
    if not (run / "report.json").exists():
        start_run(config, f"frontier: {name}")
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    base = load_base(config.model, config.dtype)
    load_adapter(base.model, run / "adapter")
    retention, _ = measure_generation(base, gsm8k_sample(given.gsm8k), 0)
    row = {
        "name": name,
        "seed": seed,
        **_scores(base, tasks),
        "kl": {r["text"]: r["kl"] for r in retention},
        "perplexity": {r["text"]: r["change"] for r in retention},
        "training_seconds": report["seconds"]["training"],
    }
    print(json.dumps(row), flush=True)
    return row


def _sample(task: StsTask, pairs: int) -> StsTask:
    order = torch.randperm(len(task.pairs), generator=torch.Generator().manual_seed(0)).tolist()
    return StsTask(task.name, [task.pairs[i] for i in sorted(order[: pairs or None])])


def _scores(base: BaseModel, tasks: list[StsTask]) -> dict:
    scores = {r.task.name: r.score for r in evaluate_sts(lambda texts: embed(base, texts, show_progress=True), tasks)}
    return {"sts": scores, "average": statistics.mean(scores.values())}


def _draw(rows: list[dict]) -> None:
    from matplotlib.figure import Figure

    points = [row for row in rows if row["kl"]]
    base = next(row for row in rows if row["name"] == "base")
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, key, label in (
        (axes[0], "kl", "KL(base ‖ aligned), nats per token"),
        (axes[1], "perplexity", "change of perplexity, %"),
    ):
        scale = 100 if key == "perplexity" else 1
        for row in points:
            x = scale * statistics.mean(row[key].values())
            marker, size = ("*", 12) if "paper" in row["name"] else ("o", 6)
            axis.plot(x, row["average"], marker, markersize=size)
            axis.annotate(row["name"], (x, row["average"]), fontsize=7, xytext=(4, 3), textcoords="offset points")
        axis.axhline(base["average"], color="grey", linewidth=0.8, linestyle=":")
        axis.axhline(base["average"] + 8, color="grey", linewidth=0.8, linestyle="--")
        axis.axvline(0.02 if key == "kl" else 1.0, color="grey", linewidth=0.8, linestyle="--")
        axis.set_xlabel(f"{label} (mean of the unseen texts)")
    axes[0].set_ylabel("mean of seven STS sets, ρ × 100")
    figure.savefig(RESULTS.with_suffix(".png"), dpi=130)


if __name__ == "__main__":
    main()
