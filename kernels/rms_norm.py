"""RMS normalisation with its gradient written out: three passes over the activations where autograd takes ten.

n = x / √(mean x² + ε)        y = w ⊙ n
∂ℓ/∂x = (g − n · mean(g ⊙ n)) / √(mean x² + ε)      with g = w ⊙ ∂ℓ/∂y
"""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Scale `[…, D]` to unit root mean square, then by `weight` `[D]` (Zhang & Sennrich 2019, arXiv 1910.07467, Eq. 4).

    The mean is taken in float32 or better and the normalised values are rounded to the input's dtype before the weight,
    as the language models that use it do. Differentiable once, in both.
    """
    return _RmsNorm.apply(x, weight, epsilon)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        scale = wide.pow(2).mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        normed = (wide * scale).to(x.dtype)
        ctx.save_for_backward(normed, weight, scale)
        return weight * normed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, upstream: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None]:
        normed, weight, scale = ctx.saved_tensors
        weight_grad = (upstream * normed).flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, weight_grad, None
        wide = normed.to(scale.dtype)
        grad = (upstream * weight).to(scale.dtype)
        along = (grad * wide).mean(-1, keepdim=True)
        return grad.addcmul_(wide, along, value=-1).mul_(scale).to(normed.dtype), weight_grad, None
