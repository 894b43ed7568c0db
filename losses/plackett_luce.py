"""Plackett–Luce: choose the best candidate, take it away, choose the best of the rest, and so on."""

import torch
from torch import Tensor

from sempa.losses.scores import check_scores


def plackett_luce_loss(
    scores: Tensor, *, top: int | None = None, ranks: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Negative log-likelihood of a ranking of K + 1 candidates, or of its first `top` places.

    ℓ = Σ_{k < top} [ log Σ_{j ≥ k} exp(s_j) − s_k ]   with s_0 the best candidate's score

    Plackett 1975 and Luce 1959; with the implicit rewards s_j = β log π(y_j|x)/π_ref(y_j|x) it is DPO's ranking form
    (Rafailov et al. 2023, arXiv 2305.18290, appendix A.3), and with K = 1 the DPO loss itself. A common offset of the
    scores costs no precision.

    Args:
        scores: `[batch, K + 1]` candidates in preference order, best first, unless `ranks` says otherwise.
        top: places of the ranking that count; 1 is the choice of the best alone, the default is all of them.
        ranks: `[batch, K + 1]` integers, smaller is better, for candidates in any order.
        mask: `[batch, K + 1]` boolean, true where a candidate is present; by default everywhere.

    Returns:
        `[batch]` nats, in the scores' dtype. A single candidate costs nothing.

    Raises:
        ValueError: wrong shapes, scores that are not finite, a row without candidates, `top` below 1, or two candidates
            tied for a place that counts (the model gives ties no probability).
    """
    mask = check_scores("plackett_luce_loss", scores, mask)
    if top is not None and top < 1:
        raise ValueError(f"plackett_luce_loss needs top >= 1, found {top}")
    places = scores.shape[1] if top is None else min(top, scores.shape[1])
    if ranks is None:
        ranks = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    elif ranks.shape != scores.shape or ranks.is_floating_point():
        raise ValueError(
            f"plackett_luce_loss needs integer ranks of shape {tuple(scores.shape)}, "
            f"found {ranks.dtype} {tuple(ranks.shape)}"
        )

    # Best first, absent candidates last.
    order = ranks.long().masked_fill(~mask, torch.iinfo(torch.int64).max).argsort(dim=1, stable=True)
    scores, ranks, present = (x.gather(1, order) for x in (scores, ranks, mask))
    _refuse_ties(ranks, present, places)

    # [batch, places, K + 1]: when place k is filled, the candidates from k on are still there.
    there = torch.ones(places, scores.shape[1], dtype=torch.bool, device=scores.device).triu() & present[:, None]
    candidates = scores[:, None].masked_fill(~there, -torch.inf)
    # A place that no candidate is left to fill counts nothing.
    candidates = candidates.masked_fill(~present[:, :places, None], 0)
    choices = candidates.log_softmax(2).diagonal(dim1=1, dim2=2)  # [batch, places]
    return -choices.masked_fill(~present[:, :places], 0).sum(1)


def _refuse_ties(ranks: Tensor, present: Tensor, places: int) -> None:
    tied = ((ranks[:, 1:] == ranks[:, :-1]) & present[:, 1:])[:, :places].nonzero()
    if len(tied):
        row, place = tied[0].tolist()
        raise ValueError(
            f"plackett_luce_loss needs distinct ranks, found rank {int(ranks[row, place])} twice in row {row}"
        )
