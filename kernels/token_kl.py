"""KL divergence of next-token distributions, straight from hidden states, without the [tokens, vocabulary] logits.

For the hidden states h of a policy and h' of its frozen reference, and the output embeddings U = (u_v) of both,

    KL(p' ‖ p) = Σ_v p'_v (log p'_v − log p_v)      p = softmax(U h + b),  p' = softmax(U h' + b)
    ∂ KL / ∂h  = Σ_v (p_v − p'_v) u_v

As in `token_logprobs`, the gradient needs nothing from later in the graph except one scalar per token: it is finished
while a chunk's probabilities are at hand, and the backward pass only scales it.
"""

import torch
from torch import Tensor

from sempa.kernels.token_logprobs import _accumulator

# Logits of one chunk, in elements, of policy and reference together.
CHUNK_ELEMENTS = 1 << 23


def token_kl(
    hidden: Tensor,
    reference_hidden: Tensor,
    weight: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    chunk_rows: int | None = None,
) -> Tensor:
    """KL(reference ‖ policy) of the next token at each position, under softmax(softcap(hidden · weightᵀ + bias)).

    This is the forward divergence: it grows without bound where the policy no longer says what the reference does.

    Args:
        hidden: `[N, D]` the policy's hidden states after the final norm; any floating dtype.
        reference_hidden: `[N, D]` those of the reference, of the same dtype and device, without gradient.
        weight: `[V, D]` output embeddings of both, frozen.
        bias: `[V]` of the head, if it has one, finite and frozen.
        softcap: Gemma-2 final soft-capping c, logits → c · tanh(logits / c).
        chunk_rows: positions whose logits are held at one time; by default as many as make `CHUNK_ELEMENTS` logits of
            policy and reference together.

    Returns:
        `[N]` nats, float32 (float64 for float64 inputs), differentiable once in `hidden`. Equal hidden states give
        exactly 0 and no gradient. The logits are products in the inputs' dtype, as in the model's own head; all that
        follows is float32 or better.

    Raises:
        ValueError: wrong shapes or dtypes, or a gradient asked for of anything but `hidden`.
    """
    _check(hidden, reference_hidden, weight, bias, softcap, chunk_rows)
    if chunk_rows is None:
        chunk_rows = max(1, CHUNK_ELEMENTS // (2 * weight.shape[0]))
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
        rows, size = hidden.shape[0], (min(chunk_rows, hidden.shape[0]), weight.shape[0])
        divergence = hidden.new_empty(rows, dtype=_accumulator(hidden.dtype))
        direction = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # Every chunk writes into the same memory: on a CPU, fresh pages cost more than what is computed in them.
        buffers = [divergence.new_empty(size) for _ in range(3)]
        product = None if hidden.dtype == divergence.dtype else hidden.new_empty(size)
        slope = None if softcap is None or direction is None else divergence.new_empty(size)
        for start in range(0, rows, chunk_rows):
            chunk = slice(start, start + chunk_rows)
            count = min(chunk_rows, rows - start)
            policy, reference, ratio = (buffer[:count] for buffer in buffers)
            raw = None if product is None else product[:count]
            for logits, states in ((policy, hidden), (reference, reference_hidden)):
                _write_logits(logits, states[chunk], weight, bias, softcap, raw)
            if slope is not None:
                # ∂ (c tanh(z / c)) / ∂z = 1 − tanh²(z / c)
                torch.div(policy, softcap, out=slope[:count]).square_().neg_().add_(1)
            for logits in (policy, reference):
                torch.log_softmax(logits, 1, out=logits)
            torch.sub(reference, policy, out=ratio)
            reference.exp_()
            residual = policy.exp_().sub_(reference)
            # Σ (p − p') is 0 but for rounding. With it the terms are p'(r − 1 + e^−r), r = log p'/p, flat at r = 0: a
            # normaliser's error, which moves all r alike, drops out where policy and reference are near.
            divergence[chunk] = ratio.mul_(reference).sum(1).add_(residual.sum(1))
            if direction is not None:
                if slope is not None:
                    residual.mul_(slope[:count])
                torch.mm(residual if raw is None else raw.copy_(residual), weight, out=direction[chunk])
        ctx.save_for_backward(direction)
        return divergence.clamp_(min=0)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (direction,) = ctx.saved_tensors
        return (direction * upstream[:, None]).to(direction.dtype), None, None, None, None, None


def _write_logits(
    logits: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, product: Tensor | None
) -> None:
    """Fill `logits` `[rows, V]`, by way of `product` where the hidden states' dtype is another."""
    if product is None:
        torch.mm(hidden, weight.T, out=logits)
    else:
        logits.copy_(torch.mm(hidden, weight.T, out=product))
    if bias is not None:
        logits += bias
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)


def _check(
    hidden: Tensor,
    reference_hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    chunk_rows: int | None,
) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"token_kl needs hidden [N, D] and weight [V, D], found {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if reference_hidden.shape != hidden.shape:
        raise ValueError(
            f"token_kl needs reference_hidden of shape {tuple(hidden.shape)}, found {tuple(reference_hidden.shape)}"
        )
    dtypes = {tensor.dtype for tensor in (hidden, reference_hidden, weight)}
    if len(dtypes) > 1 or not hidden.is_floating_point():
        raise ValueError(f"token_kl needs tensors of one floating dtype, found {', '.join(sorted(map(str, dtypes)))}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"token_kl needs bias of shape ({weight.shape[0]},), found {tuple(bias.shape)}")
    if softcap is not None and not 0 < softcap < float("inf"):
        raise ValueError(f"token_kl needs softcap > 0, found {softcap}")
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"token_kl needs chunk_rows >= 1, found {chunk_rows}")
    constants = {"reference_hidden": reference_hidden, "weight": weight, "bias": bias}
    for name, tensor in constants.items():
        if torch.is_grad_enabled() and tensor is not None and tensor.requires_grad:
            raise ValueError(f"token_kl differentiates in hidden alone, but {name} requires a gradient: detach it")
