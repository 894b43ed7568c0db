"""Log-probabilities of given tokens, straight from hidden states, without the [tokens, vocabulary] logits.

For hidden state h, output embeddings U = (u_v) and target y, the log-probability and its gradients are

    log p_y = ⟨h, u_y⟩ + b_y − log Σ_v exp(⟨h, u_v⟩ + b_v)
    ∂ log p_y / ∂h   = Σ_v r_v u_v        with the residual r_v = 1[v = y] − p_v
    ∂ log p_y / ∂u_v = r_v h

The hidden gradient needs nothing from later in the graph except one scalar per token. So while a chunk's residual is
at hand in the forward pass, the direction Σ_v r_v u_v is finished too, and the backward pass only scales it: two matrix
products in all when the head is frozen, and no recomputation of the logits. A trained head costs the third, rᵀ h: it
needs every token's upstream scalar, so the residuals wait for it as far as `KEPT_BYTES` go; the rest are recomputed.

Between the products, logits become residuals in place, a few rows at a time so that they stay in the cache, with one
exponential per logit: a power of two, which processors compute faster than eˣ.
"""

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

# Rows of logits held at one time: with fewer, the matrix products lose efficiency
# (`experiments/benchmarks/logprob_kernel.py --chunks`).
CHUNK_ROWS = 1024
# Logits that the passes between the products handle at one time: as float32 they stay in a processor's cache. On a GPU
# many short passes would cost more than its cache saves.
PASS_ELEMENTS, GPU_PASS_ELEMENTS = 1 << 19, 1 << 27
# Residuals that a trained head may keep from the forward to the backward pass.
KEPT_BYTES = 1 << 30
LOG2_E = math.log2(math.e)


def token_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    softcap: float | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> Tensor:
    """Log-probability of each target token under softmax(softcap(hidden · weightᵀ + bias)).

    Args:
        hidden: `[N, D]` hidden states after the final norm; any floating dtype.
        weight: `[V, D]` output embeddings, same dtype and device.
        targets: `[N]` int64 token ids in `[0, V)`.
        bias: `[V]` of the head, if it has one.
        softcap: Gemma-2 final soft-capping c, logits → c · tanh(logits / c).
        chunk_rows: the most rows of logits held at one time.

    Returns:
        `[N]` log-probabilities in nats, float32 (float64 for float64 inputs), differentiable once in `hidden`, `weight`
        and `bias`. The logits are products in the inputs' dtype (under `torch.autocast` in its dtype), so those of
        bfloat16 inputs are rounded to bfloat16, as in the model's own head; all that follows, bias, normaliser and
        sums, is float32 or better.

    Raises:
        ValueError: wrong shapes, dtypes or a target outside the vocabulary; a call under `torch.vmap`.
    """
    hidden, weight = (in_autocast_dtype(x) for x in (hidden, weight))
    check_head("token_logprobs", hidden, weight, bias, softcap, chunk_rows)
    if targets.shape != hidden.shape[:1] or targets.dtype != torch.int64:
        found = f"{targets.dtype} {tuple(targets.shape)}"
        raise ValueError(f"token_logprobs needs int64 targets of shape ({len(hidden)},), found {found}")
    head_needs_grad = torch.is_grad_enabled() and (weight.requires_grad or (bias is not None and bias.requires_grad))
    hidden_needs_grad = torch.is_grad_enabled() and hidden.requires_grad
    kept_rows = KEPT_BYTES // max(1, len(weight) * weight.element_size()) if head_needs_grad else 0
    return _TokenLogprobs.apply(hidden, weight, targets, bias, softcap, chunk_rows, hidden_needs_grad, kept_rows)[0]


class _TokenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        bias: Tensor | None,
        softcap: float | None,
        chunk_rows: int,
        hidden_needs_grad: bool,
        kept_rows: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities `[N]`, directions `[N, D]` (or empty) and the residuals `[≤ kept_rows, V]` of the first."""
        _check_range(targets, len(weight))
        chunks = even_chunks(len(hidden), chunk_rows)
        # All chunks write into the same memory: on a CPU, the first touch of a fresh page costs more than the passes.
        kept = [chunk for chunk in chunks if chunk.stop <= kept_rows]
        residuals = hidden.new_empty(kept[-1].stop if kept else 0, len(weight))
        scratch = hidden.new_empty(min(chunk_rows, len(hidden) - len(residuals)), len(weight))
        logprobs = hidden.new_empty(len(hidden), dtype=torch.promote_types(hidden.dtype, torch.float32))
        direction = hidden.new_empty(hidden.shape if hidden_needs_grad else 0)
        for chunk in chunks:
            logits = residuals[chunk] if chunk.stop <= len(residuals) else scratch[: chunk.stop - chunk.start]
            torch.mm(hidden[chunk], weight.T, out=logits)
            needs_residual = hidden_needs_grad or chunk.stop <= len(residuals)
            logprobs[chunk] = _log_and_residual_(logits, targets[chunk], bias, softcap, needs_residual)
            if hidden_needs_grad:
                torch.mm(logits, weight, out=direction[chunk])
        return logprobs, direction, residuals

    @staticmethod
    def setup_context(
        ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        hidden, weight, targets, bias, ctx.softcap, ctx.chunk_rows, *_ = inputs
        _, direction, residuals = output
        # `torch.func` allows only inputs and outputs to be saved: hence the two more outputs. Through these a second
        # differentiation arrives at `backward`, which refuses it.
        ctx.set_materialize_grads(False)
        head_needs_grad = ctx.needs_input_grad[1] or ctx.needs_input_grad[3]
        head = (hidden, weight, targets, bias) if head_needs_grad else (None,) * 4
        ctx.save_for_backward(direction, residuals, *head)

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, upstream: Tensor | None, *of_saved: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        # A compiler traces this with gradients for all outputs; it refuses a second differentiation itself.
        if not torch.compiler.is_compiling() and any(gradient is not None for gradient in of_saved):
            raise RuntimeError("token_logprobs can be differentiated once, not twice")
        if upstream is None:
            return (None,) * len(ctx.needs_input_grad)
        direction, residuals, hidden, weight, targets, bias = ctx.saved_tensors
        hidden_grad = weight_grad = bias_grad = None
        if ctx.needs_input_grad[0]:
            hidden_grad = (direction * upstream[:, None]).to(direction.dtype)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[3]:
            # The upstream scalars join the narrow factor of the product, not the residuals.
            scaled = (hidden * upstream[:, None]).to(hidden.dtype)
            scalars = upstream.to(hidden.dtype)[None]
            for rows, residual in _residuals(residuals, hidden, weight, targets, bias, ctx.softcap, ctx.chunk_rows):
                if ctx.needs_input_grad[1]:
                    weight_grad = _add(weight_grad, residual.T @ scaled[rows])
                if ctx.needs_input_grad[3]:
                    bias_grad = _add(bias_grad, (scalars[:, rows] @ residual)[0])
            weight_grad = None if weight_grad is None else weight_grad.to(weight.dtype)
            bias_grad = None if bias_grad is None else bias_grad.to(bias.dtype)
        return hidden_grad, weight_grad, None, bias_grad, None, None, None, None

    @staticmethod
    def vmap(info: object, in_dims: tuple, *inputs: object) -> None:
        raise ValueError(
            "token_logprobs does not work under torch.vmap: "
            "flatten hidden [B, N, D] to [B · N, D] and targets alike, and call it once"
        )


def even_chunks(rows: int, at_most: int) -> list[slice]:
    """Cut rows into as few chunks as possible, of nearly equal size: a short last one is an inefficient product."""
    count = -(-rows // at_most)
    edges = [rows * i // max(1, count) for i in range(count + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def rows_per_pass(logits: Tensor) -> int:
    """How many rows of logits the passes between the products handle at one time."""
    # A processor's tensors lie on device −1.
    elements = PASS_ELEMENTS if logits.get_device() < 0 else GPU_PASS_ELEMENTS
    return min(len(logits), max(1, elements // logits.shape[1]))


def _log_and_residual_(
    logits: Tensor, targets: Tensor, bias: Tensor | None, softcap: float | None, needs_residual: bool = True
) -> Tensor:
    """log p_y of a chunk; its raw logits turn, in place, into ∂ log p_y / ∂logits if `needs_residual`.

    With logits z, m = max z and Z = Σ 2^((z − m) log₂ e): log p_y = z_y − m − log Z, and the residual is
    (1[v = y] − p_v) · (1 − (z_v / softcap)²), rounded to the logits' dtype only at the end: 1 − p_y of a likely target
    keeps its digits in bfloat16 too.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    rows = rows_per_pass(logits)
    wide = logits.new_empty(0 if logits.dtype == dtype else rows, logits.shape[1], dtype=dtype)
    logprobs = []
    for raw, target in zip(logits.split(rows), targets[:, None].split(rows), strict=True):
        z = raw if raw.dtype == dtype else wide[: len(raw)].copy_(raw)
        slope = shift_logits_(z, bias, softcap)
        of_target = z.gather(1, target)
        exps = z.mul_(LOG2_E).exp2_()
        normaliser = exps.sum(1, keepdim=True)
        logprob = of_target - normaliser.log()
        logprobs.append(logprob[:, 0])
        if needs_residual:
            exps.mul_(-1 / normaliser).scatter_(1, target, -torch.expm1(logprob))
            if slope is not None:
                exps *= slope
            raw.copy_(exps)
    return torch.cat(logprobs)


def shift_logits_(z: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor | None:
    """Turn raw logits in place into z − max z, z with bias and soft cap; returns ∂z / ∂raw, None where it is 1."""
    slope = None
    if bias is not None:
        z += bias
    if softcap is not None:
        z.div_(softcap).tanh_()
        slope = 1 - z * z
        z *= softcap
    z -= z.amax(1, keepdim=True)
    return slope


def _residuals(
    kept: Tensor,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    chunk_rows: int,
) -> Iterator[tuple[slice, Tensor]]:
    """The kept residuals, then those of the rows after them, recomputed chunk by chunk."""
    done = len(kept)
    yield slice(0, done), kept
    scratch = kept.new_empty(min(chunk_rows, len(hidden) - done), len(weight))
    for chunk in even_chunks(len(hidden) - done, chunk_rows):
        rows = slice(done + chunk.start, done + chunk.stop)
        with torch.no_grad():
            logits = torch.mm(hidden[rows], weight.T, out=scratch[: rows.stop - rows.start])
            _log_and_residual_(logits, targets[rows], bias, softcap)
        yield rows, logits


def _add(total: Tensor | None, product: Tensor) -> Tensor:
    """Add a product up in the accumulator's dtype; a single one stays as it is."""
    return product if total is None else total.to(torch.promote_types(product.dtype, torch.float32)).add_(product)


def in_autocast_dtype(x: Tensor) -> Tensor:
    """`x` as a linear layer would take it: in the dtype of a surrounding `torch.autocast`, if there is one."""
    device = x.device.type
    # The meta device knows no autocast, and would raise where it is asked for it.
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device) or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(device))


def check_head(
    name: str, hidden: Tensor, weight: Tensor, bias: Tensor | None, softcap: float | None, chunk_rows: int
) -> None:
    """Raise `ValueError` for what `token_logprobs` and `token_kl`, the caller's `name`, both refuse."""
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"{name} needs hidden [N, D] and weight [V, D], found {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if not hidden.is_floating_point() or hidden.dtype != weight.dtype:
        found = f"{hidden.dtype} and {weight.dtype}"
        raise ValueError(f"{name} needs hidden and weight of one floating dtype, found {found}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{name} needs bias of shape ({weight.shape[0]},), found {tuple(bias.shape)}")
    if softcap is not None and not (softcap > 0 and math.isfinite(softcap)):
        raise ValueError(f"{name} needs softcap > 0, found {softcap}")
    if chunk_rows < 1:
        raise ValueError(f"{name} needs chunk_rows >= 1, found {chunk_rows}")


def _check_range(targets: Tensor, vocabulary: int) -> None:
    # A compiled graph cannot raise on values; there gather itself refuses them.
    if torch.compiler.is_compiling() or not len(targets):
        return
    least, most = int(targets.min()), int(targets.max())
    if least < 0 or most >= vocabulary:
        raise ValueError(f"token_logprobs needs targets in [0, {vocabulary}), found {least} to {most}")
