"""A sparse code of a hidden state over the vocabulary: the few output embeddings it points at most, and how much.

For an embedding h and output embeddings u_v with mean ū, the code and what it stands for are

    a_v = max(0, ⟨h, u_v − ū⟩)      code = the k largest a_v      ĥ = Σ_{v in code} a_v (u_v − ū)

With h before the LM head, ⟨h, u_v − ū⟩ is token v's logit above the average one: the code lists the "key tokens" that
the sentence is about to be called. Everything runs over the vocabulary a chunk of rows at a time.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

# Numbers of one chunk, be they scores or the output embeddings of codes.
CHUNK_ELEMENTS = 1 << 23


class SparseCode(NamedTuple):
    """Codes of n embeddings: `values` `[n, k]` ≥ 0 of the tokens `indices` `[n, k]`, and what they leave out.

    `rest` `[n]` is the energy Σ a_v² of all tokens that are not in the code; the code's own is Σ `values`².
    """

    values: Tensor
    indices: Tensor
    rest: Tensor


def sparse_code(embedding: Tensor, head: Tensor, k: int, *, chunk_rows: int | None = None) -> SparseCode:
    """The k tokens whose centred output embeddings have the largest inner products with each embedding.

    The choice of tokens is a step function without a gradient of its own: the gradient goes straight through it to the
    chosen values, ∂a_v/∂h = u_v − ū where a_v > 0. The rest's, 2 Σ a_v (u_v − ū) over the tokens that were not chosen,
    is finished in the forward pass.

    Args:
        embedding: `[n, D]` hidden states after the final norm, any floating dtype.
        head: `[V, D]` output embeddings, frozen. Tokens are chosen by products in its dtype, as in the model's own
            head; values are products in float32 or better.
        k: tokens per code, 1 ≤ k ≤ V.
        chunk_rows: rows whose scores are held at one time; by default as many as make `CHUNK_ELEMENTS` scores.

    Returns:
        values and rest in float32 (float64 for float64 embeddings), differentiable once in `embedding`; int64 indices.

    Raises:
        ValueError: shapes that do not fit, k outside 1 to V, or a head that requires a gradient.
    """
    _check(embedding, head, k, chunk_rows)
    embedding = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
    indices, rest = _Choose.apply(embedding, head, k, chunk_rows or max(1, CHUNK_ELEMENTS // len(head)))
    chosen = [torch.einsum("nd,nkd->nk", embedding[rows], u) for rows, u in _chosen_rows(indices, head, embedding)]
    average = embedding @ _mean_row(head, embedding)
    return SparseCode((torch.cat(chosen) - average[:, None]).relu(), indices, rest)


def decode(values: Tensor, indices: Tensor, head: Tensor) -> Tensor:
    """ĥ = Σ_j values_j (u_j − ū), the embeddings `[n, D]` that codes `[n, k]` stand for, up to a positive factor.

    Differentiable in `values`, whose dtype it has. Raises `ValueError` for shapes that do not fit.
    """
    if values.shape != indices.shape:
        raise ValueError(f"decode needs values and indices [n, k], found {tuple(values.shape)} {tuple(indices.shape)}")
    sums = [torch.einsum("nk,nkd->nd", values[rows], u) for rows, u in _chosen_rows(indices, head, values)]
    return torch.cat(sums) - values.sum(1, keepdim=True) * _mean_row(head, values)


class _Choose(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, embedding: Tensor, head: Tensor, k: int, chunk_rows: int
    ) -> tuple[Tensor, Tensor]:
        indices = torch.empty(len(embedding), k, dtype=torch.int64, device=embedding.device)
        rest = embedding.new_empty(len(embedding))
        direction = torch.empty_like(embedding) if ctx.needs_input_grad[0] else None
        for rows in _chunks(len(embedding), chunk_rows):
            scores = (embedding[rows].to(head.dtype) @ head.T).to(embedding.dtype)
            scores -= scores.mean(1, keepdim=True)
            indices[rows] = scores.topk(k, 1).indices
            scores.relu_().scatter_(1, indices[rows], 0)
            rest[rows] = torch.linalg.vecdot(scores, scores)
            if direction is not None:
                # Less their mean, the scores weigh u_v as they would weigh u_v − ū.
                scores -= scores.mean(1, keepdim=True)
                direction[rows] = 2 * (scores.to(head.dtype) @ head)
        ctx.save_for_backward(direction)
        ctx.mark_non_differentiable(indices)
        return indices, rest

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, _: Tensor, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (direction,) = ctx.saved_tensors
        return direction * upstream[:, None], None, None, None


def _chosen_rows(indices: Tensor, head: Tensor, like: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slices of codes with their tokens' output embeddings `[rows, k, D]`, at least one (empty) slice."""
    for rows in _chunks(len(indices), max(1, CHUNK_ELEMENTS // (indices.shape[1] * head.shape[1]))):
        yield rows, head[indices[rows]].to(like.dtype)


def _chunks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, max(1, count), size))


def _mean_row(head: Tensor, like: Tensor) -> Tensor:
    return head.mean(0, dtype=like.dtype)


def _check(embedding: Tensor, head: Tensor, k: int, chunk_rows: int | None) -> None:
    if embedding.ndim != 2 or head.ndim != 2 or embedding.shape[1] != head.shape[1]:
        raise ValueError(
            "sparse_code needs embedding [n, D] and head [V, D], "
            f"found {tuple(embedding.shape)} and {tuple(head.shape)}"
        )
    if not (embedding.is_floating_point() and head.is_floating_point()):
        raise ValueError(f"sparse_code needs floating tensors, found {embedding.dtype} and {head.dtype}")
    if not 1 <= k <= len(head):
        raise ValueError(f"sparse_code needs k from 1 to the vocabulary's {len(head)}, found {k}")
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"sparse_code needs chunk_rows >= 1, found {chunk_rows}")
    if torch.is_grad_enabled() and head.requires_grad:
        raise ValueError("sparse_code differentiates in embedding alone, but head requires a gradient: detach it")
