"""Semantic uncertainty: a model that answers a prompt in several ways, with several meanings, does not know the answer.

Grewal et al. 2024, *Improving Uncertainty Quantification in Large Language Models via Semantic Embeddings* (arXiv
2410.22685): of n answers to one prompt with embeddings e_i,

    U = 1 − 2 / (n (n − 1)) · Σ_{i<j} cos(e_i, e_j)

The paper embeds with a separate sentence encoder. Here the model that answers embeds its answers, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sempa import Embedder, SempaError
from sempa.evaluation.geometry import mean_cosine
from sempa.model.sampling import Sample, sample


@dataclass(frozen=True)
class Uncertainty:
    """Three scores of n sampled answers; each is higher the less sure the model is.

    `semantic`: 1 − the mean cosine over all pairs of answers, between 0 (all alike) and n/(n − 1).
    `length_normalised`: −1/n Σ log π(a_i|x) / |a_i|, nats per token.
    `entropy`: −1/n Σ log π(a_i|x), nats per answer, an estimate of the predictive entropy (Malinin & Gales 2021, arXiv
    2002.07650). π is the model's distribution at temperature 1.
    """

    answers: tuple[str, ...]
    semantic: float
    length_normalised: float
    entropy: float


def uncertainties(
    embedder: Embedder,
    prompts: Sequence[str],
    n: int = 10,
    *,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[Uncertainty]:
    """Sample `n` answers to each prompt from the model of `embedder`, embed them and score them.

    A prompt is what a user says; it is put through the chat template. An answer ends at an end-of-turn token or after
    `max_new_tokens`. Raises `SempaError` for fewer than two answers, a temperature that is not above 0, and what
    `sempa.model.sampling.sample` refuses.
    """
    if n < 2:
        raise SempaError(f"n: found {n}, expected at least 2 answers to compare")
    if not temperature > 0:
        raise SempaError(f"temperature: found {temperature}, expected more than 0, as greedy answers are all the same")
    drawn = sample(embedder.base, prompts, n, max_new_tokens, temperature, seed=seed)
    # Each text is embedded once. An empty answer is embedded as the full stop that ends every other one's prompt.
    texts = list(dict.fromkeys(answer.text or "." for answers in drawn for answer in answers))
    vectors = dict(zip(texts, embedder.encode(texts), strict=True))
    return [score_answers(answers, np.stack([vectors[answer.text or "."] for answer in answers])) for answers in drawn]


def score_answers(answers: Sequence[Sample], embeddings: np.ndarray) -> Uncertainty:
    """The scores of the answers to one prompt, from their embeddings `[n, D]`; computed in float64."""
    logprobs = [answer.logprobs.double().sum().item() for answer in answers]
    per_token = [total / len(answer.tokens) for total, answer in zip(logprobs, answers, strict=True)]
    return Uncertainty(
        tuple(answer.text for answer in answers),
        # Equal vectors score 0, not a rounding error below it.
        max(1 - mean_cosine(embeddings), 0.0),
        -float(np.mean(per_token)),
        -float(np.mean(logprobs)),
    )
