"""Online preferences: the policy samples two paraphrases of a sentence as it trains, and a judge prefers one.

    python experiments/online/online.py --triplets snli_dev.jsonl --sts STS

Online IPO samples from the policy, IPO-MD from the geometric mixture of policy and reference (Calandriello et al. 2024,
arXiv 2403.08635). The judge is the frozen base: it prefers the paraphrase whose embedding is nearer to the sentence's.
The script trains both and writes similarity, KL and perplexity as JSON.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from mixture import sample_mixture

from sempa import SempaError
from sempa.batching.batches import load_dataset, make_batch, rounded_up, steps_per_epoch
from sempa.batching.packing import pack_preferences
from sempa.batching.prompts import Preference
from sempa.cli import Parser
from sempa.config import Config, load_config
from sempa.data.sts import StsTask, read_sts, sample_task
from sempa.embedding.embed import embed
from sempa.evaluation.drift import measure_drift
from sempa.evaluation.eval_texts import report_texts
from sempa.evaluation.sts import evaluate_sts
from sempa.io.files import write_json
from sempa.io.origin import origin
from sempa.io.streams import exit_code
from sempa.model.base import BaseModel, load_base
from sempa.model.lora import adapter_disabled, add_lora, remove_adapter
from sempa.model.sampling import sample
from sempa.training.base_samples import base_samples
from sempa.training.step import Metrics, make_optimizer, train_step

HERE = Path(__file__).resolve().parent
RECIPE = HERE.parent / "smollm2_nli.yaml"
# IPO with an anchor on whole batches of eight, and no other loss.
ALONE = (
    "objective=ipo",
    "preference=1",
    "preference_fraction=1",
    "anchor=1",
    "contrast=0",
    "retention=0",
    "batch_size=8",
)
# Name, and the weight λ of the reference in the mixture that is sampled.
METHODS = {"Online IPO": 0.0, "IPO-MD": 0.5}

Judge = Callable[[Sequence[str], Sequence[Sequence[str]]], np.ndarray]
"""Sentences, and candidate paraphrases of each → scores `[sentences, candidates]`, higher is better."""


def similarity_judge(base: BaseModel) -> Judge:
    """A paraphrase's score is the cosine of its embedding and the sentence's, both by the frozen base."""

    def judge(sentences: Sequence[str], candidates: Sequence[Sequence[str]]) -> np.ndarray:
        texts = [*sentences, *(text for pair in candidates for text in pair)]
        with adapter_disabled(base.model):
            vectors = embed(base, texts)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        answers = vectors[len(sentences) :].reshape(len(sentences), -1, vectors.shape[1])
        return np.einsum("nd,nkd->nk", vectors[: len(sentences)], answers)

    return judge


def sample_preferences(
    base: BaseModel,
    preferences: Sequence[Preference],
    judge: Judge,
    seed: int,
    reference_fraction: float = 0.0,
    new_tokens: int = 32,
) -> list[Preference]:
    """Two new paraphrases of each preference's sentence; the one that the judge prefers is chosen.

    A sentence is left out where both paraphrases are equal, one is empty, or their scores are. Raises `SempaError` for
    scores of another shape or that are not finite.
    """
    prompts = [preference.prompt for preference in preferences]
    if reference_fraction:
        drawn = sample_mixture(base, prompts, 2, new_tokens, seed, reference_fraction)
    else:
        drawn = sample(base, prompts, 2, new_tokens, seed=seed)
    # Texts that the judge can tell apart.
    differ = [i for i, (one, two) in enumerate(drawn) if one.text != two.text and one.text and two.text]
    if not differ:
        return []
    texts = [[answer.text for answer in drawn[i]] for i in differ]
    scores = np.asarray(judge([preferences[i].sentence for i in differ], texts), dtype=float)
    if scores.shape != (len(differ), 2) or not np.isfinite(scores).all():
        found = "that are not finite" if scores.shape == (len(differ), 2) else f"of shape {scores.shape}"
        raise SempaError(f"judge: found scores {found}, expected finite ones of shape {(len(differ), 2)}")
    made = []
    for i, (first, second) in zip(differ, scores):
        if first != second:
            best, worst = drawn[i] if first > second else drawn[i][::-1]
            closing = int(best.ended and len(best.tokens) > 1)
            made.append(replace(preferences[i], responses=(best.tokens, worst.tokens), closing=closing))
    return made


def train_online(
    config: Config,
    base: BaseModel,
    preferences: list[Preference],
    reference_fraction: float = 0.0,
    new_tokens: int = 32,
    judge: Judge | None = None,
) -> list[Metrics]:
    """Train the adapter that `base.model` holds, without checkpoints; returns every step's metrics.

    The package's own step on batches whose responses are sampled when their step comes. What `config` asks for beside
    the preference loss stays as it is.
    """
    model, judge = base.model.eval(), judge or similarity_judge(base)
    optimizer = make_optimizer(config, model)
    total = rounded_up(config.epochs, steps_per_epoch(config, preferences))
    samples = base_samples(base) if config.retention else []
    steps = []
    for step in range(total):
        batch = make_batch(config, preferences, step)
        asked = batch.preferences[: rounded_up(config.preference_fraction, len(batch.preferences))]
        seed = config.seed * 1_000_003 + step
        made = sample_preferences(base, asked, judge, seed, reference_fraction, new_tokens)
        batch = replace(batch, preference_rows=pack_preferences(made, config.row_tokens))
        steps.append(train_step(config, model, optimizer, batch, samples, step, total))
    return steps


def main() -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--triplets", required=True, help="labelled NLI or a file of triplets")
    parser.add_argument("--sts", required=True, help="folder with STS12 to STS16, STSBenchmark and SICK")
    parser.add_argument("--pairs", type=int, default=200, help="pairs of each set (default %(default)s)")
    parser.add_argument("--limit", type=int, default=320, help="triplets to train on (default %(default)s)")
    given = parser.parse_args()
    data = (f"triplets={given.triplets}", f"triplet_limit={given.limit}", "combinations=true", "held_out=0")
    config = load_config(RECIPE, [*ALONE, *data])
    tasks = [sample_task(task, given.pairs) for task in read_sts(given.sts, ("dev", "trial"))]
    base = load_base(config.model, config.dtype)
    preferences = load_dataset(config, base.tokenizer).train
    settings = {"pairs": given.pairs, "limit": given.limit, "dtype": str(base.model.dtype)}
    result = {**origin(base.model), "settings": settings, "base": scores(base, tasks), "rows": []}
    for name, reference_fraction in METHODS.items():
        add_lora(base.model, config.lora_rank, config.lora_alpha)
        began = time.perf_counter()
        train_online(config, base, preferences, reference_fraction)
        row = {"name": name, "seed": config.seed, "training_seconds": time.perf_counter() - began}
        drift = measure_drift(base, report_texts())
        row |= {**scores(base, tasks), "kl": {text["text"]: text["kl"] for text in drift}}
        row |= {"perplexity": {text["text"]: 100 * text["change"] for text in drift}}
        remove_adapter(base.model)
        result["rows"].append(row)
        write_json(HERE / "online.json", result)
        print(json.dumps(row), flush=True)


def scores(base: BaseModel, tasks: Sequence[StsTask]) -> dict[str, object]:
    """Spearman's ρ × 100 of each task, and their mean."""
    found = {result.task.name: result.score for result in evaluate_sts(lambda texts: embed(base, texts), tasks)}
    return {"sts": found, "average": statistics.mean(found.values())}


if __name__ == "__main__":
    sys.exit(exit_code("online.py", main))
