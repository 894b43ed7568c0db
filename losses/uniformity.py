"""Uniformity: how evenly the embeddings' directions fill the sphere."""

import math

import torch
from torch import Tensor

from sempa.losses.directions import directions, own_precision


def uniformity_loss(embeddings: Tensor, t: float = 2.0) -> Tensor:
    """Logarithm of the mean Gaussian potential between all pairs of directions.

    ℓ = log [ 2 / (n (n − 1)) Σ_{i<j} e^{−t ‖x_i − x_j‖²} ],   ‖x_i − x_j‖² = 2 − 2 cos(x_i, x_j)

    Wang & Isola 2020 (arXiv 2005.10242), § 4.1, where t = 2 is the usual choice. From 0, all directions equal, down to
    −2t n/(n − 1), the corners of a regular simplex: about −2t for many directions.

    Args:
        embeddings: `[n, D]`, n ≥ 2, any floating dtype; computed in float32 or better.
        t: sharpness of the potential, t > 0.

    Returns:
        a scalar, nats.

    Raises:
        ValueError: fewer than two embeddings, a vector without a direction, or t that is not positive.
    """
    unit = directions("uniformity_loss", "embeddings", embeddings)
    if len(unit) < 2 or not 0 < t < float("inf"):
        raise ValueError(f"uniformity_loss needs at least 2 embeddings and t > 0, found {len(unit)} and {t}")
    first, second = torch.triu_indices(len(unit), len(unit), 1, device=unit.device)
    with own_precision(unit):
        cosines = (unit @ unit.T)[first, second]
    return (-2 * t * (1 - cosines)).logsumexp(0) - math.log(len(cosines))
