"""Online preferences: the policy's own paraphrases, sampled while it trains, and a judge that says which is better.

Online IPO samples from the policy; IPO-MD from the geometric mixture of policy and reference, π^{1−λ} π_ref^λ
(Calandriello et al. 2024, arXiv 2403.08635). The reference's own embeddings judge by default: no outside model.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from sempa.batching.prompts import Preference
from sempa.config import Config
from sempa.embedding.embedder import embed
from sempa.errors import SempaError
from sempa.model.base import BaseModel
from sempa.model.lora import adapter_disabled
from sempa.model.sampling import Sample, sample
from sempa.training.processes import ALONE, World, broadcast_numbers

Judge = Callable[[Sequence[str], Sequence[Sequence[str]]], np.ndarray]
"""Sentences and for each its candidate paraphrases → scores `[sentences, candidates]`, higher is better."""


def similarity_judge(base: BaseModel) -> Judge:
    """Score a paraphrase by the cosine of its embedding and the sentence's, both by the frozen base."""

    def judge(sentences: Sequence[str], candidates: Sequence[Sequence[str]]) -> np.ndarray:
        texts = [*sentences, *(text for few in candidates for text in few)]
        with adapter_disabled(base.model):
            vectors = embed(base, texts)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        answers = vectors[len(sentences) :].reshape(len(sentences), -1, vectors.shape[1])
        return np.einsum("nd,nkd->nk", vectors[: len(sentences)], answers)

    return judge


def sample_preferences(
    config: Config,
    base: BaseModel,
    preferences: Sequence[Preference],
    judge: Judge,
    step: int,
    world: World = ALONE,
) -> list[Preference]:
    """Two fresh paraphrases of each preference's sentence, the judge's choice first.

    Where both are the same, one is empty or the judge is undecided, there is nothing to prefer: the sentence is left
    out. The draws depend on the config's seed and the step alone; of several processes the first one's judge decides.
    Raises `SempaError` for scores of another shape, or that are no numbers.
    """
    share = config.reference_share if config.objective == "ipo-md" else 0.0
    prompts = [preference.prompt for preference in preferences]
    seed = config.seed * 1_000_003 + step
    drawn = sample(base, prompts, 2, config.online_tokens, seed=seed, reference_share=share)
    leads = np.zeros(len(preferences))
    if world.evaluates:
        differ = [i for i, (one, two) in enumerate(drawn) if one.text != two.text and one.text and two.text]
        leads[differ] = _leads(judge, [preferences[i].sentence for i in differ], [drawn[i] for i in differ])
    made = []
    for preference, pair, lead in zip(
        preferences, drawn, broadcast_numbers(leads.tolist(), world, base.model.device), strict=True
    ):
        if lead:
            best, worst = pair if lead > 0 else pair[::-1]
            closing = int(best.ended and len(best.tokens) > 1)
            made.append(replace(preference, responses=(best.tokens, worst.tokens), closing=closing))
    return made


def _leads(judge: Judge, sentences: list[str], pairs: list[list[Sample]]) -> np.ndarray:
    """By how much the judge prefers the first of each pair, `[n]`."""
    if not pairs:
        return np.zeros(0)
    scores = np.asarray(judge(sentences, [[answer.text for answer in pair] for pair in pairs]), dtype=float)
    expected = (len(pairs), 2)
    if scores.shape == expected and np.isfinite(scores).all():
        return scores[:, 0] - scores[:, 1]
    wrong = "that are not finite" if scores.shape == expected else f"of shape {scores.shape}"
    raise SempaError(f"judge: found scores {wrong}, expected finite ones of shape {expected}")
