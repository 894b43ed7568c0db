"""KL divergence of next-token distributions, straight from hidden states, without the [tokens, vocabulary] logits.

For the hidden states h of a policy and h' of its frozen reference, and the output embeddings U = (u_v) of both,

    KL(p' ‖ p) = Σ_v p'_v (log p'_v − log p_v)      p = softmax(U h + b),  p' = softmax(U h' + b)
    ∂ KL / ∂h  = Σ_v (p_v − p'_v) u_v

As in `token_logprobs`, the gradient needs nothing from later in the graph except one scalar per token: it is finished
while a chunk's probabilities are at hand, and the backward pass only scales it.
"""

import torch
from torch import Tensor

from sempa.kernels.token_logprobs import (
    CHUNK_ROWS,
    LOG2_E,
    check_head,
    even_chunks,
    in_autocast_dtype,
    rows_per_pass,
    shift_logits_,
)


def token_kl(
    hidden: Tensor,
    reference_hidden: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> Tensor:
    """KL(reference ‖ policy) of the next token at each position, under softmax(softcap(hidden · weightᵀ + bias)).

    This forward divergence grows without bound where the policy gives no probability to what the reference would say.

    Args:
        hidden: `[N, D]` the policy's hidden states after the final norm; any floating dtype.
        reference_hidden: `[N, D]` those of the reference, of the same dtype and device, without gradient.
        weight: `[V, D]` output embeddings of both, frozen.
        bias: `[V]` of the head, if it has one, finite and frozen.
        softcap: Gemma-2 final soft-capping c, logits → c · tanh(logits / c).
        chunk_rows: the most positions whose logits are held at one time.

    Returns:
        `[N]` nats, float32 (float64 for float64 inputs), differentiable once in `hidden`. Equal hidden states of one
        layout give exactly 0 and no gradient. The logits are products in the inputs' dtype (under `torch.autocast` in
        its dtype), as in the model's own head; all that follows is float32 or better.

    Raises:
        ValueError: wrong shapes or dtypes, or a gradient asked for of anything but `hidden`.
    """
    hidden, reference_hidden, weight = (in_autocast_dtype(x) for x in (hidden, reference_hidden, weight))
    check_head("token_kl", hidden, weight, bias, softcap, chunk_rows)
    if reference_hidden.shape != hidden.shape or reference_hidden.dtype != hidden.dtype:
        asked, found = (f"{tuple(h.shape)} {h.dtype}" for h in (hidden, reference_hidden))
        raise ValueError(f"token_kl needs reference_hidden like hidden {asked}, found {found}")
    for name, tensor in {"reference_hidden": reference_hidden, "weight": weight, "bias": bias}.items():
        if torch.is_grad_enabled() and tensor is not None and tensor.requires_grad:
            raise ValueError(f"token_kl differentiates in hidden alone, but {name} requires a gradient: detach it")
    if not torch.is_grad_enabled():
        hidden = hidden.detach()
    return _TokenKl.apply(hidden, reference_hidden, weight, bias, softcap, chunk_rows)


class _TokenKl(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden: Tensor,
        reference_hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        softcap: float | None,
        chunk_rows: int,
    ) -> Tensor:
        chunks = even_chunks(len(hidden), chunk_rows)
        # Every chunk writes into the same memory: on a CPU, fresh pages cost more than what is computed in them.
        scratch = min(chunk_rows, len(hidden)), len(weight)
        policy, reference = (hidden.new_empty(scratch) for _ in range(2))
        divergence = hidden.new_empty(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32))
        direction = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for chunk in chunks:
            rows = chunk.stop - chunk.start
            torch.mm(hidden[chunk], weight.T, out=policy[:rows])
            torch.mm(reference_hidden[chunk], weight.T, out=reference[:rows])
            divergence[chunk] = _divergence_and_residual_(policy[:rows], reference[:rows], bias, softcap)
            if direction is not None:
                torch.mm(policy[:rows], weight, out=direction[chunk])
        ctx.save_for_backward(direction)
        return divergence

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (direction,) = ctx.saved_tensors
        return (direction * upstream[:, None]).to(direction.dtype), None, None, None, None, None


def _divergence_and_residual_(policy: Tensor, reference: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    """KL of a chunk, `[rows]`; the policy's raw logits turn, in place, into ∂ KL / ∂logits.

    As in `token_logprobs`, a few rows at a time, so that they stay in the cache, and in powers of two.
    """
    rows = rows_per_pass(policy)
    block = policy.new_empty(3, rows, policy.shape[1], dtype=torch.promote_types(policy.dtype, torch.float32))
    divergences = []
    for raw, base in zip(policy.split(rows), reference.split(rows), strict=True):
        ours, theirs, ratio = block[:, : len(raw)]
        slope = shift_logits_(ours.copy_(raw), bias, softcap)
        shift_logits_(theirs.copy_(base), bias, softcap)
        block[:2, : len(raw)].mul_(LOG2_E)
        torch.sub(theirs, ours, out=ratio)
        ours, theirs = ours.exp2_(), theirs.exp2_()
        our_total, their_total = (powers.sum(1, keepdim=True) for powers in (ours, theirs))
        # Logarithm of a quotient, not difference of logarithms: near 1 it keeps its digits.
        ratio += (our_total / their_total).log2_()
        ours /= our_total
        theirs /= their_total
        difference = ours.sub_(theirs)
        # Σ (p − p') is 0 but for rounding. With it the terms are p'(r − 1 + e^−r), r = log p'/p, flat at r = 0: a
        # normaliser's error, which moves all r alike, drops out where policy and reference are near.
        divergence = ratio.mul_(theirs).sum(1) / LOG2_E + difference.sum(1)
        divergences.append(divergence.clamp_(min=0))
        raw.copy_(difference if slope is None else difference.mul_(slope))
    return torch.cat(divergences)
