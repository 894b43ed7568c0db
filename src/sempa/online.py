"""Online preferences: the policy's own paraphrases, sampled while it trains, and a judge that says which is better.

Online IPO samples from the policy; IPO-MD from the geometric mixture of policy and reference, π^{1−λ} π_ref^λ
(Calandriello et al. 2024, arXiv 2403.08635). The reference's own embeddings judge by default: no outside model.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from sempa.config import Config
from sempa.embedder import embed
from sempa.lora import adapter_disabled
from sempa.models import BaseModel
from sempa.prompts import Preference
from sempa.sampling import sample

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
    config: Config, base: BaseModel, preferences: Sequence[Preference], judge: Judge, step: int
) -> list[Preference]:
    """Two fresh paraphrases of each preference's sentence, the judge's choice first.

    Where both are the same, one is empty or the judge is undecided, there is nothing to prefer: the sentence is left
    out. The draws depend on the config's seed and the step alone.
    """
    share = config.reference_share if config.objective == "ipo-md" else 0.0
    prompts = [preference.prompt for preference in preferences]
    seed = config.seed * 1_000_003 + step
    drawn = sample(base, prompts, 2, config.online_tokens, seed=seed, reference_share=share)
    pairs = [
        (preference, pair)
        for preference, pair in zip(preferences, drawn, strict=True)
        if pair[0].text != pair[1].text and all(answer.text for answer in pair)
    ]
    if not pairs:
        return []
    scores = judge([p.sentence for p, _ in pairs], [[answer.text for answer in pair] for _, pair in pairs])
    made = []
    for (preference, pair), (first, second) in zip(pairs, scores, strict=True):
        if first != second:
            best, worst = pair if first > second else pair[::-1]
            closing = int(best.ended and len(best.tokens) > 1)
            made.append(replace(preference, responses=(best.tokens, worst.tokens), closing=closing))
    return made
