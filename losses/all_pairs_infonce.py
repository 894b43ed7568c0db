"""InfoNCE among all texts of the batch, in both directions: no embedding of the forward pass goes unused."""

import torch
from torch import Tensor

from sempa.losses.directions import directions, own_precision
from sempa.losses.infonce import infonce_loss, positive_first


def all_pairs_infonce_loss(
    anchors: Tensor,
    positives: Tensor,
    hard_negatives: Tensor,
    temperature: float = 0.05,
    texts: Tensor | None = None,
) -> Tensor:
    """Pick an anchor's positive, and a positive's anchor, among all other texts of the batch, by cosine.

    ℓ_i = ½ [ h(x_i, x_i⁺) + h(x_i⁺, x_i) ],   h(q, p) = −log [e^{cos(q, p)/τ} / Σ_{t ∈ B∖{q}} e^{cos(q, t)/τ}]

    with B the 3n anchors, positives and hard negatives. `embedding_infonce_loss` has the first half only, without the
    other anchors among the candidates. Chen et al. 2020 (SimCLR, arXiv 2002.05709), Eq. 1, with hard negatives as
    further candidates; Li et al. 2023 (GTE, arXiv 2308.03281), Eq. 3, put the four kinds of pairs into one sum.

    Args:
        anchors: `[n, D]` embeddings of the sentences, any floating dtype; computed in float32 or better.
        positives: `[n, D]` of their entailments, row by row.
        hard_negatives: `[n, D]` of their contradictions.
        temperature: τ > 0.
        texts: `[3n]` integers, equal where two of anchors, positives, hard negatives (in this order) are the same text.
            A text equal to q or to p is no negative of theirs. None: all differ.

    Returns:
        `[n]` nats.

    Raises:
        ValueError: shapes that do not fit, a vector without a direction, or a temperature that is not positive.
    """
    found = [tuple(t.shape) for t in (anchors, positives, hard_negatives)]
    if len(set(found)) > 1 or (texts is not None and texts.shape != (3 * len(anchors),)):
        asked = "three times [n, D]" + ("" if texts is None else " and texts [3n]")
        found += [] if texts is None else [tuple(texts.shape)]
        raise ValueError(f"all_pairs_infonce_loss needs {asked}, found {' and '.join(map(str, found))}")
    named = {"anchors": anchors, "positives": positives, "hard negatives": hard_negatives}
    x, near, far = (directions("all_pairs_infonce_loss", name, value) for name, value in named.items())
    n = len(x)
    if texts is None:
        texts = torch.arange(3 * n, device=x.device)
    own, partner, rest = texts[:n], texts[n : 2 * n], texts[2 * n :]
    # Queries are anchors, then positives; candidates begin with their partners, in the same order.
    with own_precision(x):
        scores = torch.cat([x, near]) @ torch.cat([near, x, far]).T
    candidates = torch.cat([partner, own, rest])
    queries, answers = texts[: 2 * n, None], candidates[: 2 * n, None]
    present = (candidates != queries) & (candidates != answers)
    present.fill_diagonal_(True)
    losses = infonce_loss(positive_first(scores), temperature, mask=positive_first(present))
    return losses.view(2, n).mean(0)
