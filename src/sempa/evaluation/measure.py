"""What a report measures of a model with its adapter off (`base`) and on (`aligned`).

Similarity, preference on held-out triplets, and the geometry of the embeddings. The language model's part is in
`sempa.evaluation.drift`.
"""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from sempa.batching.prompts import Preference
from sempa.data.sts import StsTask, caption_pairs, distinct_sentences
from sempa.embedding.embed import embed
from sempa.evaluation.geometry import all_measures, positive_pairs
from sempa.evaluation.statistics import compare
from sempa.evaluation.sts import bootstrap_scores, pair_cosines, score_sts
from sempa.io.progress import bar
from sempa.model.base import BaseModel
from sempa.model.logprobs import response_logprobs
from sempa.model.lora import adapter_disabled

BUILTIN = "built-in"

Sides = Mapping[str, Mapping[str, np.ndarray]]
"""Under `base` and `aligned`: the embedding of each sentence, float32 `[D]`."""


def builtin_task(pairs: int) -> StsTask:
    """The first built-in graded pairs, at most 600, with scenes of no built-in triplet."""
    return StsTask(BUILTIN, caption_pairs("test", pairs))


def embed_sides(base: BaseModel, sentences: Sequence[str], readout: str = "prompteol", layer: int = -1) -> Sides:
    """The sentences' embeddings with the adapter off, under `base`, and on, under `aligned`."""
    encode = partial(embed, base, sentences, layer=layer, progress="embedding", readout=readout)
    with adapter_disabled(base.model):
        before = encode()
    return {"base": dict(zip(sentences, before)), "aligned": dict(zip(sentences, encode()))}


def measure_sts(
    base: BaseModel, tasks: Sequence[StsTask], readout: str = "prompteol", layer: int = -1
) -> tuple[list[dict], dict, Sides]:
    """A report's `sts` and `scatter`, and the embeddings behind them.

    `sts` has for each task Spearman's ρ × 100 of both sides, the 95 % interval of the change, and `p` of the paired
    bootstrap test that aligned beats base. `scatter` has the cosines of the last task. Raises `SempaError` as
    `score_sts` does.
    """
    sides = embed_sides(base, distinct_sentences(pair for task in tasks for pair in task.pairs), readout, layer)
    table = []
    for task in tasks:
        before, after = (score_sts(task, pair_cosines(sides[side], task.pairs)) for side in ("base", "aligned"))
        change = compare(after.score, before.score, bootstrap_scores(after), bootstrap_scores(before))
        scores = {"task": task.name, "pairs": len(task.pairs), "base": before.score, "aligned": after.score}
        table.append({**scores, "change_interval": change["interval"], "p": change["p"]})
    cosines = {"base": before.cosines.tolist(), "aligned": after.cosines.tolist()}
    return table, {"task": task.name, "gold": task.gold.tolist(), **cosines}, sides


def measure_preference(base: BaseModel, preferences: Sequence[Preference], row_tokens: int, beta: float) -> dict:
    """How often the model prefers the chosen sentence to the rejected one, on triplets it was not trained on.

    `base_accuracy` and `aligned_accuracy` compare log π(y⁺|x) with log π(y⁻|x); `reward_accuracy` and `reward_margin`
    (nats) compare the implicit rewards β log π/π_ref.
    """
    with bar(2 * len(preferences), "held-out triplets", "triplet") as progress:
        with adapter_disabled(base.model):
            reference = response_logprobs(base.model, preferences, row_tokens, progress)
        policy = response_logprobs(base.model, preferences, row_tokens, progress)
    # Of a ranking, its best and its worst.
    base_margins, margins = (logprobs[:, 0] - logprobs[:, -1] for logprobs in (reference, policy))
    reward_margins = beta * (margins - base_margins)
    accuracies = {"base": base_margins, "aligned": margins, "reward": reward_margins}
    return {
        "triplets": len(preferences),
        **{f"{name}_accuracy": (own > 0).double().mean().item() for name, own in accuracies.items()},
        "reward_margin": reward_margins.mean().item(),
    }


def measure_geometry(task: StsTask, sides: Sides) -> dict:
    """One entry of a report's `geometry`: `all_measures` of each side's embeddings of the task's sentences."""
    sentences = distinct_sentences(task.pairs)
    positives = positive_pairs(task.pairs, sentences)
    measured = {}
    for side, vectors in sides.items():
        measured[side] = all_measures(np.stack([vectors[sentence] for sentence in sentences]), positives)
    return {"task": task.name, "sentences": len(sentences), "positives": len(positives), **measured}
