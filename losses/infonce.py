"""InfoNCE: tell the positive from K negatives, the objective of contrastive learning."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sempa.losses.scores import check_scores


def infonce_loss(scores: Tensor, temperature: float, *, mask: Tensor | None = None) -> Tensor:
    """Cross-entropy of picking the positive (column 0) among K + 1 candidates at an explicit temperature.

    ℓ = −log [ exp(s_0/τ) / Σ_j exp(s_j/τ) ] = log(1 + Σ_{j ≥ 1} exp((s_j − s_0)/τ))

    van den Oord et al. 2018 (arXiv 1807.03748), Eq. 4. Computed in the second form, which neither overflows nor loses
    the small losses of easy rows.

    Args:
        scores: `[batch, K + 1]` similarities or log-ratios, the positive first. For in-batch negatives see
            `positive_first`.
        temperature: τ > 0.
        mask: `[batch, K + 1]` boolean, true where a candidate is present; the positive must be.

    Returns:
        `[batch]` nats, in the scores' dtype. Without a negative the loss is 0.

    Raises:
        ValueError: wrong shapes, scores that are not finite, a masked positive, or a temperature that is not positive.
    """
    mask = check_scores("infonce_loss", scores, mask)
    if not 0 < temperature < float("inf"):
        raise ValueError(f"infonce_loss needs a finite temperature > 0, found {temperature}")
    if not mask[:, 0].all():
        raise ValueError(f"infonce_loss needs every positive, it is masked in row {int((~mask[:, 0]).nonzero()[0])}")
    positive, negatives = scores[:, :1], scores[:, 1:]
    # The lowest finite number, not −∞: a row without negatives then has loss 0 and gradient 0 instead of NaN.
    lowest = torch.finfo(scores.dtype).min
    margins = ((negatives - positive) / temperature).masked_fill(~mask[:, 1:], lowest).clamp_min(lowest)
    return -F.logsigmoid(-margins.logsumexp(1))


def positive_first(scores: Tensor) -> Tensor:
    """Arrange in-batch scores for `infonce_loss`: row i's positive, which stands in column i, goes to column 0.

    Args:
        scores: `[batch, candidates]` with candidates ≥ batch; columns from `batch` on are further, explicit negatives.

    Returns:
        `[batch, candidates]`, the other columns in their old order.

    Raises:
        ValueError: fewer candidates than rows.
    """
    if scores.ndim != 2 or scores.shape[1] < scores.shape[0]:
        raise ValueError(f"positive_first needs scores [batch, candidates >= batch], found {tuple(scores.shape)}")
    columns = torch.arange(scores.shape[1], device=scores.device).expand(len(scores), -1)
    rows = torch.arange(len(scores), device=scores.device)[:, None]
    # Columns before i move up by one, column i to the front, those behind stay.
    source = torch.where(columns == 0, rows, torch.where(columns <= rows, columns - 1, columns))
    return scores.gather(1, source)
