"""A sparse code of a hidden state over the vocabulary: the few tokens it points at most, and how much.

For an embedding h and output embeddings u_v with mean ū, the code and what it stands for are

    a_v = max(0, ⟨h, e_v⟩),  e_v = (u_v − ū) / ‖u_v − ū‖      code = the k largest a_v      ĥ = Σ_{v in code} a_v e_v

With h before the LM head, ⟨h, u_v − ū⟩ is token v's logit above the average one: the code lists the "key tokens" that
the sentence is about to be called. Directions of length 1, as in matching pursuit (Mallat & Zhang 1993), keep tokens
with long output embeddings, mostly rare ones, from entering every code. Everything runs over the vocabulary a chunk
of rows at a time.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Numbers of one chunk, be they scores or the output embeddings of codes.
CHUNK_ELEMENTS = 1 << 23


class TokenDirections(NamedTuple):
    """The vocabulary's directions e_v = scale_v (head_v − mean): head `[V, D]`, mean `[D]`, scale `[V]`.

    Mean and scale are float32 or better. A token whose output embedding is the mean itself has scale 0, no direction.
    """

    head: Tensor
    mean: Tensor
    scale: Tensor


class SparseCode(NamedTuple):
    """Codes of n embeddings: `values` `[n, k]` ≥ 0 of the tokens `indices` `[n, k]`, and what they leave out.

    `rest` `[n]` is the energy Σ a_v² of all tokens that are not in the code; the code's own is Σ `values`².
    """

    values: Tensor
    indices: Tensor
    rest: Tensor


def token_directions(head: Tensor) -> TokenDirections:
    """Mean and lengths of output embeddings `[V, D]`, any floating dtype; raises `ValueError` for another shape."""
    if head.ndim != 2 or not head.is_floating_point():
        raise ValueError(f"token_directions needs a floating head [V, D], found {head.dtype} {tuple(head.shape)}")
    head = head.detach()
    mean = head.mean(0, dtype=torch.promote_types(head.dtype, torch.float32))
    chunks = head.split(max(1, CHUNK_ELEMENTS // head.shape[1]))
    lengths = torch.cat([(rows - mean).norm(dim=1) for rows in chunks])
    return TokenDirections(head, mean, torch.where(lengths > 0, 1 / lengths, 0))


def sparse_code(embedding: Tensor, tokens: TokenDirections, k: int) -> SparseCode:
    """The k tokens whose directions have the largest inner products with each embedding.

    The choice of tokens is a step function without a gradient of its own: the gradient goes straight through it to the
    chosen values, ∂a_v/∂h = e_v where a_v > 0. The rest's, 2 Σ a_v e_v over the tokens that were not chosen, is
    finished in the forward pass.

    Args:
        embedding: `[n, D]` hidden states after the final norm, any floating dtype.
        tokens: the vocabulary's directions. Tokens are chosen by products in the head's dtype, as in the model's own
            head; values are products in float32 or better.
        k: tokens per code, 1 ≤ k ≤ V.

    Returns:
        values and rest in float32 (float64 for float64 embeddings), differentiable once in `embedding`; int64 indices.

    Raises:
        ValueError: shapes that do not fit, or k outside 1 to V.
    """
    vocabulary, width = tokens.head.shape
    if embedding.ndim != 2 or embedding.shape[1] != width or not embedding.is_floating_point():
        raise ValueError(
            f"sparse_code needs floating embeddings [n, {width}], found {embedding.dtype} {tuple(embedding.shape)}"
        )
    if not 1 <= k <= vocabulary:
        raise ValueError(f"sparse_code needs k from 1 to the vocabulary's {vocabulary}, found {k}")
    embedding = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
    indices, rest = _Choose.apply(embedding, tokens, k)
    products = [torch.einsum("nd,nkd->nk", h, u) for h, u in _with_output_embeddings(embedding, indices, tokens)]
    above_average = torch.cat(products) - (embedding @ tokens.mean.to(embedding.dtype))[:, None]
    return SparseCode((above_average * tokens.scale.to(embedding.dtype)[indices]).relu(), indices, rest)


def decode(values: Tensor, indices: Tensor, tokens: TokenDirections) -> Tensor:
    """ĥ = Σ_j values_j e_j, the embeddings `[n, D]` that codes `[n, k]` stand for, up to a positive factor.

    Differentiable in `values`, whose dtype it has. Raises `ValueError` for shapes that do not fit.
    """
    if values.shape != indices.shape or values.ndim != 2:
        raise ValueError(f"decode needs values and indices [n, k], found {tuple(values.shape)} {tuple(indices.shape)}")
    weights = values * tokens.scale.to(values.dtype)[indices]
    sums = [torch.einsum("nk,nkd->nd", w, u) for w, u in _with_output_embeddings(weights, indices, tokens)]
    return torch.cat(sums) - weights.sum(1, keepdim=True) * tokens.mean.to(values.dtype)


class _Choose(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, embedding: Tensor, tokens: TokenDirections, k: int
    ) -> tuple[Tensor, Tensor]:
        head, scale = tokens.head, tokens.scale.to(embedding.dtype)
        indices = torch.empty(len(embedding), k, dtype=torch.int64, device=embedding.device)
        rest = embedding.new_empty(len(embedding))
        direction = torch.empty_like(embedding) if ctx.needs_input_grad[0] else None
        chunk_rows = max(1, CHUNK_ELEMENTS // len(head))
        for start in range(0, len(embedding), chunk_rows):
            rows = slice(start, start + chunk_rows)
            scores = (embedding[rows].to(head.dtype) @ head.T).to(embedding.dtype)
            scores.sub_(scores.mean(1, keepdim=True)).mul_(scale)
            indices[rows] = scores.topk(k, 1).indices
            scores.relu_().scatter_(1, indices[rows], 0)
            rest[rows] = torch.linalg.vecdot(scores, scores)
            if direction is not None:
                # Σ (w_v − mean w) u_v = Σ w_v (u_v − ū): centring the weights centres the output embeddings.
                weights = scores.mul_(scale).sub_(scores.mean(1, keepdim=True))
                direction[rows] = 2 * (weights.to(head.dtype) @ head)
        ctx.save_for_backward(direction)
        ctx.mark_non_differentiable(indices)
        return indices, rest

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, _: Tensor, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (direction,) = ctx.saved_tensors
        return direction * upstream[:, None], None, None


def _with_output_embeddings(x: Tensor, indices: Tensor, tokens: TokenDirections) -> Iterator[tuple[Tensor, Tensor]]:
    """Chunks of the rows of `x` `[n, …]`, each with its codes' output embeddings `[rows, k, D]` in the same dtype."""
    chunk_rows = max(1, CHUNK_ELEMENTS // (indices.shape[1] * tokens.head.shape[1]))
    for rows, chosen in zip(x.split(chunk_rows), indices.split(chunk_rows), strict=True):
        yield rows, tokens.head[chosen].to(x.dtype)
