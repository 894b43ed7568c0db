"""How sure a model is of an answer: several are drawn, and the less they mean the same, the less it knows.

Grewal et al. 2024, *Improving Uncertainty Quantification in Large Language Models via Semantic Embeddings* (arXiv
2410.22685): of n answers to one prompt with embeddings e_i,

    U = 1 − 2 / (n (n − 1)) · Σ_{i<j} cos(e_i, e_j)

Here the model that answers embeds its answers, too. `sempa.amortised` foresees U after one pass over the prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sempa.embedding.embedder import Embedder, embed
from sempa.errors import SempaError
from sempa.evaluation.geometry import mean_cosine
from sempa.model.resolve import DEFAULT_MODEL
from sempa.model.sampling import Sample, sample


@dataclass(frozen=True)
class Uncertainty:
    """What n sampled answers say about how sure the model is; each score is higher the less sure it is.

    `semantic`: 1 − the mean cosine of all pairs of answers' sentence embeddings, from 0 (all alike) to n/(n − 1) at
    most. `length_normalised`: −1/n Σ log π(a_i|x) / |a_i|, nats per token; `entropy`: the predictive entropy's estimate
    −1/n Σ log π(a_i|x), nats per answer (Malinin & Gales 2021, arXiv 2002.07650). Both take π as it is, before
    temperature.
    """

    answers: tuple[str, ...]
    semantic: float
    length_normalised: float
    entropy: float


def uncertainty(
    prompt: str,
    n: int = 10,
    embedder: Embedder | None = None,
    *,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
) -> Uncertainty:
    """How unsure the model of `embedder` is of its answer to `prompt`, by `n` answers drawn and compared.

    Args:
        prompt: what a user says, put through the chat template.
        n: answers to draw, at least 2.
        embedder: the model that answers, and how it embeds; by default the embedded model, loaded on first use.
        max_new_tokens: longest answer; an end-of-turn token ends it before.
        temperature: above 0.
        seed: fixes the draws.

    Raises:
        SempaError: fewer than two answers, a temperature that is not above 0, or what `sampling.sample` refuses.
    """
    return uncertainties(
        embedder or _default_embedder(),
        [prompt],
        n,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
    )[0]


def uncertainties(
    embedder: Embedder,
    prompts: Sequence[str],
    n: int = 10,
    *,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[Uncertainty]:
    """`uncertainty` of each of many prompts, whose answers grow side by side."""
    if n < 2:
        raise SempaError(f"n: found {n}, expected at least 2 answers, for one has nothing to be compared with")
    if not temperature > 0:
        raise SempaError(f"temperature: found {temperature}, expected more than 0, for greedy answers are all the same")
    drawn = sample(embedder.base, prompts, n, max_new_tokens, temperature, seed=seed)
    # Equal answers are embedded once. One without a word becomes the full stop that ends every other's prompt.
    texts = list(dict.fromkeys(one.text or "." for few in drawn for one in few))
    vectors = embed(embedder.base, texts, layer=embedder.layer, readout=embedder.readout)
    row = dict(zip(texts, vectors, strict=True))
    return [score_answers(few, np.stack([row[one.text or "."] for one in few])) for few in drawn]


def score_answers(answers: Sequence[Sample], embeddings: np.ndarray) -> Uncertainty:
    """The scores of answers that are drawn and embedded `[n, D]` already; computed in float64."""
    logprobs = [one.logprobs.double().sum().item() for one in answers]
    per_token = [total / len(one.tokens) for total, one in zip(logprobs, answers, strict=True)]
    return Uncertainty(
        tuple(one.text for one in answers),
        # Equal vectors disagree by nothing, not by a rounding below it; what is no number stays none.
        max(1 - mean_cosine(embeddings), 0.0),
        -float(np.mean(per_token)),
        -float(np.mean(logprobs)),
    )


@lru_cache(maxsize=1)
def _default_embedder() -> Embedder:
    return Embedder(DEFAULT_MODEL)
