"""Sparse codes of the embedding: k vocabulary tokens should rebuild it, and little should lie outside them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sempa.kernels import TokenDirections, decode, sparse_code, token_directions
from sempa.losses.directions import directions, own_precision


def spod_loss(embedding: Tensor, head: Tensor | TokenDirections, k: int) -> tuple[Tensor, Tensor]:
    """Reconstruction error of the k-sparse vocabulary code, and the fraction of squared coefficients outside it.

    reconstruction = 1 − cos(ĥ, h),  ĥ = Σ_{v in code} a_v e_v
    sparsity = Σ_{v not in code} a_v² / Σ_v a_v²,   a_v = max(0, ⟨h, e_v⟩), code = the k largest

    Sparse codes over key tokens beside a preference objective, "SPOD"; e_v is the direction of token v's centred output
    embedding (see `sempa.kernels.sparse_code`). Reconstruction is 0 when the key tokens sum to the embedding's
    direction, sparsity when no other coefficient is positive. As a cosine has no scale, the code needs none: there is
    no factor to learn. The gradient of both goes through the chosen values and h; that of the second pushes the
    unchosen tokens down as well.

    Args:
        embedding: `[n, D]` hidden states after the final norm, any floating dtype; computed in float32 or better.
        head: `[V, D]` output embeddings, frozen; or their `token_directions`, computed once for many batches.
        k: tokens per code, 1 ≤ k ≤ V.

    Returns:
        reconstruction `[n]` in [0, 1] and sparsity `[n]` in [0, 1); 1 and 0 where no coefficient is positive.

    Raises:
        ValueError: an embedding without a direction, shapes that do not fit, or k outside 1 to V.
    """
    unit = directions("spod_loss", "embeddings", embedding)
    with own_precision(unit):
        tokens = head if isinstance(head, TokenDirections) else token_directions(head)
        values, indices, rest = sparse_code(unit, tokens, k)
        reconstruction = 1 - F.cosine_similarity(decode(values, indices, tokens), unit)
    # Where no coefficient is positive, nothing is left out.
    whole = (rest + values.square().sum(1)).clamp_min(torch.finfo(rest.dtype).tiny)
    return reconstruction, rest / whole
