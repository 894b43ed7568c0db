"""Does a score of uncertainty know when the greedy answer is wrong? AUROC of each, on questions with known answers.

    python experiments/uncertainty/auroc.py [--questions 64] [--answers 10] [--max-new-tokens 24] [--adapter FOLDER]

An answer is right when it holds one of the known answers as whole words, whatever their case. The uncertainty comes
from sampled answers alone; the greedy answer is not among them. `amortised` is what a map fitted to the other questions
foresees for each from the state before its answer. Writes figures, settings and answers as JSON.
"""

import argparse
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from sempa.amortised import foreseen, prompt_states
from sempa.embedding.embedder import Embedder
from sempa.evaluation.statistics import auroc, bootstrap_auroc, compare, interval, spearman
from sempa.io.files import write_json
from sempa.io.origin import origin
from sempa.model.resolve import DEFAULT_MODEL
from sempa.model.sampling import sample
from sempa.semantic_uncertainty import uncertainties

HERE = Path(__file__).resolve().parent
RESULTS = HERE.parent / "results"
SUM = re.compile(r"\d|half of|square root")
SCORES = ("semantic", "amortised", "length_normalised", "entropy")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=int, default=64, help="the first so many")
    parser.add_argument("--answers", type=int, default=10, help="sampled answers per question")
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("--adapter", type=Path, help="its figures get a file of their own: uncertainty-aligned.json")
    given = parser.parse_args()
    lines = (HERE / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [json.loads(line) for line in lines[: given.questions]]
    questions = [one["question"] for one in asked]
    embedder = Embedder(DEFAULT_MODEL, given.adapter, dtype="float32")
    greedy = [few[0].text for few in sample(embedder.base, questions, 1, given.max_new_tokens, temperature=0)]
    found = uncertainties(embedder, questions, given.answers, max_new_tokens=given.max_new_tokens)
    semantic = np.array([one.semantic for one in found])
    amortised = foreseen(prompt_states(embedder.base, questions), semantic)
    wrong = [not is_right(answer, one["answers"]) for answer, one in zip(greedy, asked, strict=True)]
    settings = {
        "model": DEFAULT_MODEL,
        "adapter": str(given.adapter or ""),
        "dtype": "float32",
        "readout": embedder.readout,
        "questions": len(asked),
        "answers": given.answers,
        "max_new_tokens": given.max_new_tokens,
        "temperature": 1.0,
        "seed": 0,
        "threads": torch.get_num_threads(),
    }
    rows = [
        {
            "question": one["question"],
            "greedy": answer,
            "wrong": is_wrong,
            "amortised": float(ahead),
            **{name: getattr(scores, name) for name in SCORES if name != "amortised"},
        }
        for one, answer, is_wrong, scores, ahead in zip(asked, greedy, wrong, found, amortised, strict=True)
    ]
    result = {
        "settings": settings,
        "cpu_seconds": time.process_time(),
        "wrong": sum(wrong),
        "amortised_follows_semantic": spearman(amortised, semantic),
        "auroc": measure(rows),
        "without_sums": without_sums(rows),
    }
    name = "uncertainty-aligned.json" if given.adapter else "uncertainty.json"
    write_json(RESULTS / name, {**origin(), **result, "rows": rows})
    print(json.dumps(result, indent=1))


def is_right(answer: str, known: Sequence[str]) -> bool:
    """Whether one of the known answers stands in the answer as whole words."""
    return any(re.search(rf"(?<!\w){re.escape(text)}(?!\w)", answer, re.IGNORECASE) for text in known)


def without_sums(rows: list[dict]) -> dict:
    """The same figures without the sums, whose answers often end before they come to the result."""
    kept = [row for row in rows if not SUM.search(row["question"])]
    return {"questions": len(kept), "wrong": sum(row["wrong"] for row in kept), "auroc": measure(kept)}


def measure(rows: list[dict]) -> dict[str, dict]:
    """Each score's AUROC with its 95 % interval, and what `semantic` is ahead of it on the same draws."""
    wrong = [row["wrong"] for row in rows]
    values = {name: [row[name] for row in rows] for name in SCORES}
    draws = {name: bootstrap_auroc(scores, wrong) for name, scores in values.items()}
    points = {name: auroc(scores, wrong) for name, scores in values.items()}
    table = {name: {"auroc": points[name], "interval": interval(draws[name])} for name in values}
    for name in SCORES[1:]:
        ahead = compare(points["semantic"], points[name], draws["semantic"], draws[name])
        table[name]["semantic_ahead_by"] = ahead.difference
        table[name]["semantic_ahead_interval"] = ahead.interval
    return table


if __name__ == "__main__":
    main()
