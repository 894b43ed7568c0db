"""Log-probabilities of given tokens, straight from hidden states, without the [tokens, vocabulary] logits.

For hidden state h, output embeddings U = (u_v) and target y, the log-probability and its gradients are

    log p_y = ⟨h, u_y⟩ + b_y − log Σ_v exp(⟨h, u_v⟩ + b_v)
    ∂ log p_y / ∂h   = u_y − Σ_v p_v u_v
    ∂ log p_y / ∂u_v = (1[v = y] − p_v) h

The hidden gradient needs nothing from later in the graph except one scalar per token. So while a chunk's
probabilities are at hand in the forward pass, the direction u_y − Σ p_v u_v is finished too, and the backward pass
only scales it: two matrix products in all when the head is frozen, and no recomputation of the logits.
"""

import math

import torch
from torch import Tensor

# Logits of one chunk, in elements. Large enough for efficient matrix products, small enough to stay near the cache.
CHUNK_ELEMENTS = 1 << 23


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    chunk_rows: int | None = None,
) -> Tensor:
    """Log-probability of each target token under softmax(softcap(hidden · weightᵀ + bias)).

    Args:
        hidden: `[N, D]` hidden states after the final norm; any floating dtype.
        weight: `[V, D]` output embeddings, same dtype and device.
        targets: `[N]` int64 token ids in `[0, V)`.
        bias: `[V]` of the head, if it has one.
        softcap: Gemma-2 final soft-capping c, logits → c · tanh(logits / c).
        chunk_rows: rows of logits held at one time; by default as many as make `CHUNK_ELEMENTS` logits.

    Returns:
        `[N]` log-probabilities in nats, float32 (float64 for float64 inputs), differentiable once in `hidden`, `weight`
        and `bias`. The logits are products in the inputs' dtype, so those of bfloat16 inputs are rounded to bfloat16,
        as in the model's own head; all that follows, bias, normaliser and sums, is float32 or better.

    Raises:
        ValueError: wrong shapes, dtypes or a target outside the vocabulary.
    """
    _check(hidden, weight, targets, bias, softcap, chunk_rows)
    if chunk_rows is None:
        chunk_rows = max(1, CHUNK_ELEMENTS // weight.shape[0])
    return _TokenLogprobs.apply(hidden, weight, targets, bias, softcap, chunk_rows)


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        bias: Tensor | None,
        softcap: float | None,
        chunk_rows: int,
    ) -> Tensor:
        rows = hidden.shape[0]
        logprobs = hidden.new_empty(rows, dtype=_accumulator(hidden.dtype))
        log_normaliser = torch.empty_like(logprobs)
        direction = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for start in range(0, rows, chunk_rows):
            chunk = slice(start, start + chunk_rows)
            logits = _logits(hidden[chunk], weight, bias, softcap)
            target = logits.gather(1, targets[chunk, None])
            log_normaliser[chunk] = logits.logsumexp(1)
            logprobs[chunk] = target[:, 0] - log_normaliser[chunk]
            if direction is not None:
                residual = _residual(logits, log_normaliser[chunk], targets[chunk], softcap)
                torch.mm(residual.to(weight.dtype), weight, out=direction[chunk])
        ctx.softcap, ctx.chunk_rows = softcap, chunk_rows
        head_needs_grad = ctx.needs_input_grad[1] or ctx.needs_input_grad[3]
        # A frozen head needs only the direction; a trained one recomputes its logits chunk by chunk.
        kept = (hidden, weight, targets, bias, log_normaliser) if head_needs_grad else (None,) * 5
        ctx.save_for_backward(direction, *kept)
        return logprobs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        direction, hidden, weight, targets, bias, log_normaliser = ctx.saved_tensors
        hidden_grad = weight_grad = bias_grad = None
        if direction is not None:
            hidden_grad = (direction * upstream[:, None]).to(direction.dtype)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[3]:
            weight_grad = torch.zeros_like(weight, dtype=_accumulator(weight.dtype))
            bias_grad = weight_grad.new_zeros(weight.shape[0])
            for start in range(0, hidden.shape[0], ctx.chunk_rows):
                chunk = slice(start, start + ctx.chunk_rows)
                logits = _logits(hidden[chunk], weight, bias, ctx.softcap)
                residual = _residual(logits, log_normaliser[chunk], targets[chunk], ctx.softcap)
                residual *= upstream[chunk, None]
                bias_grad += residual.sum(0)
                weight_grad.addmm_(residual.T, hidden[chunk].to(residual.dtype))
            weight_grad = weight_grad.to(weight.dtype) if ctx.needs_input_grad[1] else None
            bias_grad = bias_grad.to(bias.dtype) if ctx.needs_input_grad[3] else None
        return hidden_grad, weight_grad, None, bias_grad, None, None


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    """`[rows, V]` logits of one chunk in the accumulator's dtype."""
    logits = (hidden @ weight.T).to(_accumulator(hidden.dtype))
    if bias is not None:
        logits += bias
    if softcap is not None:
        logits.div_(softcap).tanh_().mul_(softcap)
    return logits


def _residual(logits: Tensor, log_normaliser: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    """∂ log p_y / ∂(raw logits) = (1[v = y] − p_v) · (1 − (logit / c)²), reusing the logits' memory where it can."""
    slope = None if softcap is None else 1 - (logits / softcap) ** 2
    residual = logits.sub_(log_normaliser[:, None]).exp_().neg_()
    residual.scatter_add_(1, targets[:, None], torch.ones_like(targets[:, None], dtype=residual.dtype))
    return residual if slope is None else residual.mul_(slope)


def _check(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    chunk_rows: int | None,
) -> None:
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            "token_logprobs needs hidden [N, D] and weight [V, D], "
            f"found {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        raise ValueError(
            f"token_logprobs needs int64 targets of shape ({hidden.shape[0]},), "
            f"found {targets.dtype} {tuple(targets.shape)}"
        )
    if not hidden.is_floating_point() or hidden.dtype != weight.dtype:
        raise ValueError(
            f"token_logprobs needs hidden and weight of one floating dtype, found {hidden.dtype} and {weight.dtype}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"token_logprobs needs bias of shape ({weight.shape[0]},), found {tuple(bias.shape)}")
    if softcap is not None and not (softcap > 0 and math.isfinite(softcap)):
        raise ValueError(f"token_logprobs needs softcap > 0, found {softcap}")
    if chunk_rows is not None and chunk_rows < 1:
        raise ValueError(f"token_logprobs needs chunk_rows >= 1, found {chunk_rows}")
    if len(targets) and (int(targets.min()) < 0 or int(targets.max()) >= weight.shape[0]):
        raise ValueError(
            f"token_logprobs needs targets in [0, {weight.shape[0]}), "
            f"found {int(targets.min())} to {int(targets.max())}"
        )
