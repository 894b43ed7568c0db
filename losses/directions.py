"""Checked directions of embeddings, the input of every loss on them: a cosine ignores length."""

import contextlib

import torch
import torch.nn.functional as F
from torch import Tensor


def directions(loss: str, name: str, embeddings: Tensor) -> Tensor:
    """Embeddings `[n, D]` divided by their lengths, float32 (float64 for float64 inputs).

    `loss` and `name` are the caller's and its argument's, for the message. Raises `ValueError` for another shape, an
    integer dtype, and a vector that is zero or not finite: it has no direction.
    """
    if embeddings.ndim != 2 or not embeddings.is_floating_point():
        raise ValueError(f"{loss} needs floating {name} [n, D], found {embeddings.dtype} {tuple(embeddings.shape)}")
    if embeddings.dtype != torch.float64:
        embeddings = embeddings.float()
    lengths = embeddings.detach().norm(dim=1)
    wrong = (~((lengths > 0) & lengths.isfinite())).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(f"{loss} needs {name} with a direction, found one of length {lengths[row]:g} in row {row}")
    return F.normalize(embeddings, dim=1, eps=0)


def own_precision(x: Tensor) -> contextlib.AbstractContextManager:
    """Inside, products keep the dtype of `x`, even under `torch.autocast`: cosines of 8 bits are too coarse."""
    device = x.device.type
    # The meta device knows no autocast, and would raise where it is asked for it.
    known = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if known else contextlib.nullcontext()
