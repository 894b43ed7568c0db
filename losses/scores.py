"""Checks for every loss over scored candidates: at least one candidate in a row, and finite scores."""

import torch
from torch import Tensor


def check_scores(loss: str, scores: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mask of present candidates (all, when none is given) after checking scores and mask.

    Args:
        loss: the caller's name, for the message.
        scores: `[batch, K + 1]`, floating.
        mask: `[batch, K + 1]` boolean, true where a candidate is present.

    Raises:
        ValueError: wrong shape or dtype, an empty or wholly masked candidate set, a present score that is not finite.
    """
    if scores.ndim != 2 or scores.shape[1] == 0 or not scores.is_floating_point():
        raise ValueError(
            f"{loss} needs floating scores [batch, K + 1] with at least one candidate, "
            f"found {scores.dtype} {tuple(scores.shape)}"
        )
    if mask is None:
        mask = torch.ones_like(scores, dtype=torch.bool)
    if mask.shape != scores.shape or mask.dtype != torch.bool:
        raise ValueError(
            f"{loss} needs a boolean mask of shape {tuple(scores.shape)}, found {mask.dtype} {tuple(mask.shape)}"
        )
    empty = ~mask.any(1)
    if empty.any():
        raise ValueError(f"{loss} needs a candidate in every row, all are masked in row {int(empty.nonzero()[0])}")
    wrong = (mask & ~scores.isfinite()).nonzero()
    if len(wrong):
        row, column = wrong[0].tolist()
        raise ValueError(
            f"{loss} needs finite scores, found {scores[row, column].item()} in row {row}, column {column}"
        )
    return mask
