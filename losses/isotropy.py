"""Isotropy: how evenly the embeddings' variance is spread over the dimensions they could use."""

import math

import torch
from torch import Tensor

from sempa.losses.directions import directions, own_precision


def isotropy_loss(embeddings: Tensor) -> Tensor:
    """Logarithm of the ratio of available dimensions to those that the batch's variance fills.

    ℓ = log (d · tr C² / (tr C)²)   with C the covariance of the directions and d = min(D, n − 1)

    (tr C)² / tr C² = (Σ λ)² / Σ λ² is the participation ratio of the spectrum, the number of dimensions in use. It is
    what the IsoScore of Rudman et al. 2022 (arXiv 2108.07344, algorithm 1) comes to once its steps are put together,
    (ratio − 1)/(D − 1). Rudman & Eickhoff 2023 (arXiv 2305.19358) regularise with a variant, IsoScore*, which they
    lower. The logarithm keeps the gradient alive where n is far below D and the score near 0; no eigenvalue is needed.

    Args:
        embeddings: `[n, D]`, n ≥ 3, any floating dtype; computed in float32 or better.

    Returns:
        a scalar ≥ 0 in nats; 0 when d dimensions share the variance evenly, log d when one has it all.

    Raises:
        ValueError: fewer than three embeddings, a vector without a direction, or directions that are all the same.
    """
    unit = directions("isotropy_loss", "embeddings", embeddings)
    if len(unit) < 3:
        raise ValueError(f"isotropy_loss needs at least 3 embeddings, found {len(unit)}")
    centred = unit - unit.mean(0)
    # The spectra of centred · centredᵀ and of its transpose product are the same: the smaller will do.
    with own_precision(unit):
        scatter = centred @ centred.T if len(unit) <= unit.shape[1] else centred.T @ centred
    variance = scatter.trace()
    # Equal directions leave the rounding of their mean.
    if not variance > len(unit) * (8 * torch.finfo(unit.dtype).eps) ** 2:
        raise ValueError(f"isotropy_loss needs embeddings that differ, found {len(unit)} of one direction")
    dimensions = min(unit.shape[1], len(unit) - 1)
    return scatter.square().sum().log() - 2 * variance.log() + math.log(dimensions)
