"""Which score of uncertainty is higher when the greedy answer is wrong? AUROC of each, on questions with known answers.

    python experiments/uncertainty/auroc.py [--questions 64] [--answers 10] [--max-new-tokens 24] [--adapter FOLDER]

An answer is right when it holds one of the known answers as whole words, whatever their case. The scores come from
sampled answers; the greedy answer is not among them. `amortised` is the prediction for each question by a map fitted to
all the others. Writes figures, settings and answers as JSON.
"""

import json
import math
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from amortised import leave_one_out, prompt_states
from semantic_uncertainty import uncertainties

from sempa import Embedder, SempaError
from sempa.cli import Parser
from sempa.commands.common import at_least
from sempa.config import DEFAULT_MODEL
from sempa.evaluation.statistics import compare, interval, spearman
from sempa.io.files import write_json
from sempa.io.origin import origin
from sempa.io.streams import exit_code
from sempa.model.sampling import sample

HERE = Path(__file__).resolve().parent
SUM = re.compile(r"\d|half of|square root")
SCORES = ("semantic", "amortised", "length_normalised", "entropy")


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--questions", type=at_least(4), default=64, help="the first so many")
    parser.add_argument("--answers", type=int, default=10, help="sampled answers per question")
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("--adapter", type=Path, help="its figures go to uncertainty-aligned.json")
    given = parser.parse_args()
    lines = (HERE / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    asked = [json.loads(line) for line in lines[: given.questions]]
    questions = [one["question"] for one in asked]
    embedder = Embedder(DEFAULT_MODEL, given.adapter, "prompteol", dtype="float32")
    greedy = [few[0].text for few in sample(embedder.base, questions, 1, given.max_new_tokens, temperature=0)]
    found = uncertainties(embedder, questions, given.answers, max_new_tokens=given.max_new_tokens)
    semantic = np.array([one.semantic for one in found])
    amortised = leave_one_out(prompt_states(embedder.base, questions), semantic)
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
            "amortised": float(predicted),
            **{name: getattr(scores, name) for name in SCORES if name != "amortised"},
        }
        for one, answer, is_wrong, scores, predicted in zip(asked, greedy, wrong, found, amortised, strict=True)
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
    write_json(HERE / name, {**origin(embedder.base.model), **result, "rows": rows})
    print(json.dumps(result, indent=1))


def is_right(answer: str, known: Sequence[str]) -> bool:
    """Whether one of the known answers stands in the answer as whole words."""
    return any(re.search(rf"(?<!\w){re.escape(text)}(?!\w)", answer, re.IGNORECASE) for text in known)


def without_sums(rows: list[dict]) -> dict:
    """The same figures without the sums, whose answers often end before they come to the result."""
    rest = [row for row in rows if not SUM.search(row["question"])]
    return {"questions": len(rest), "wrong": sum(row["wrong"] for row in rest), "auroc": measure(rest)}


def measure(rows: list[dict]) -> dict[str, dict]:
    """Each score's AUROC with its 95 % interval, and by how much `semantic` exceeds it on the same draws."""
    wrong = [row["wrong"] for row in rows]
    values = {name: [row[name] for row in rows] for name in SCORES}
    draws = {name: bootstrap_auroc(scores, wrong) for name, scores in values.items()}
    points = {name: auroc(scores, wrong) for name, scores in values.items()}
    table = {name: {"auroc": points[name], "interval": interval(draws[name])} for name in values}
    for name in SCORES[1:]:
        ahead = compare(points["semantic"], points[name], draws["semantic"], draws[name])
        table[name]["semantic_ahead_by"] = ahead["difference"]
        table[name]["semantic_ahead_interval"] = ahead["interval"]
    return table


def auroc(scores: Sequence[float] | np.ndarray, positive: Sequence[bool] | np.ndarray) -> float:
    """The area under the ROC curve of scores `[n]` as a detector of the positive cases: 0.5 is chance, 1 perfect.

    It is P(s⁺ > s⁻) + P(s⁺ = s⁻) / 2 over all pairs of a positive and a negative, counted exactly: the Mann–Whitney U
    over n⁺ n⁻ (Hanley & McNeil 1982, *The Meaning and Use of the Area under a ROC Curve*).

    Raises `SempaError` when the lengths differ, a score is NaN, or one of the two classes is missing.
    """
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    if scores.ndim != 1 or scores.shape != positive.shape:
        raise SempaError(f"AUROC of shapes {scores.shape} and {positive.shape}, expected two series of one length")
    if np.isnan(scores).any():
        raise SempaError("AUROC of a series with NaN, expected numbers")
    if positive.all() or not positive.any():
        raise SempaError(f"AUROC of {positive.sum():,} positives among {len(positive):,}, expected some and not all")
    above, below = scores[positive], np.sort(scores[~positive])
    # Twice the number of negatives below each positive, a tied one counted once.
    wins = np.searchsorted(below, above, "left") + np.searchsorted(below, above, "right")
    return float(wins.sum() / (2 * len(above) * len(below)))


def bootstrap_auroc(
    scores: Sequence[float] | np.ndarray,
    positive: Sequence[bool] | np.ndarray,
    resamples: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """The AUROC of `resamples` draws of n cases from n, with replacement: float64 `[resamples]`.

    The draws depend on n and `seed` alone, so that `compare` of two scores of the same cases is a paired test. A draw
    without both classes has no AUROC; it is NaN, which `interval` and `compare` leave out. Raises `SempaError` as
    `auroc` does.
    """
    auroc(scores, positive)
    scores, positive = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    chosen = np.random.default_rng(seed).integers(0, len(scores), (resamples, len(scores)))
    return np.array(
        [auroc(scores[c], positive[c]) if 0 < positive[c].sum() < len(c) else math.nan for c in chosen],
    )


if __name__ == "__main__":
    sys.exit(exit_code("auroc.py", main))
