"""Contrastive fine-tuning of the embedding: closer to its own paraphrase than to all others."""

import torch
from torch import Tensor

from sempa.losses.directions import directions, own_precision
from sempa.losses.infonce import infonce_loss, positive_first


def embedding_infonce_loss(
    anchors: Tensor, positives: Tensor, hard_negatives: Tensor | None = None, temperature: float = 0.05
) -> Tensor:
    """Pick an anchor's own positive among all positives and all hard negatives of the batch, by cosine.

    ℓ_i = −log [e^{cos(x_i, x_i⁺)/τ} / Σ_j (e^{cos(x_i, x_j⁺)/τ} + Σ_k e^{cos(x_i, x_jk⁻)/τ})]

    Gao et al. 2021 (SimCSE, arXiv 2104.08821), Eq. 5; on PromptEOL embeddings it is the contrastive fine-tuning of
    Jiang et al. 2023 (arXiv 2307.16645), the baseline of preference alignment.

    Args:
        anchors: `[n, D]` embeddings of the sentences, any floating dtype; computed in float32 or better.
        positives: `[n, D]` of their entailments, row by row.
        hard_negatives: `[n, D]` of their contradictions, or `[n, k, D]` for k ≥ 0 of them each, or None.
        temperature: τ > 0.

    Returns:
        `[n]` nats.

    Raises:
        ValueError: shapes that do not fit, a vector without a direction, or a temperature that is not positive.
    """
    negatives = anchors[:0] if hard_negatives is None else hard_negatives
    fits = negatives.ndim in (2, 3) and negatives.shape[-1:] == anchors.shape[-1:]
    if anchors.shape != positives.shape or not fits or (hard_negatives is not None and len(negatives) != len(anchors)):
        found = [tuple(t.shape) for t in (anchors, positives, hard_negatives) if t is not None]
        raise ValueError(
            "embedding_infonce_loss needs anchors and positives [n, D] and hard negatives [n, D] or [n, k, D], "
            f"found {' and '.join(map(str, found))}"
        )
    named = {"anchors": anchors, "positives": positives, "hard negatives": negatives.flatten(0, -2)}
    queries, *candidates = (directions("embedding_infonce_loss", name, value) for name, value in named.items())
    with own_precision(queries):
        cosines = queries @ torch.cat(candidates).T
    return infonce_loss(positive_first(cosines), temperature)
