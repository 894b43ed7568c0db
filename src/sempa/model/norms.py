"""A model's RMS normalisations replaced by sempa's own, wherever both say the same to the last bit."""

import torch
from torch import Tensor, nn

from sempa.kernels import rms_norm


class RmsNorm(nn.Module):
    """`sempa.kernels.rms_norm` with the weight of the layer it replaces."""

    def __init__(self, weight: nn.Parameter, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = weight, epsilon

    def forward(self, x: Tensor) -> Tensor:
        """`[…, D]` → `[…, D]`."""
        return rms_norm(x, self.weight, self.epsilon)


@torch.no_grad()
def replace_norms(model: nn.Module) -> int:
    """Replace what calls itself an RMS norm and gives the same output on random input; returns how many.

    Architectures differ in what they multiply with (Gemma: 1 + w) and where they round: the output decides, not a name.
    """
    replaced = 0
    generator = torch.Generator().manual_seed(0)
    for name, module in list(model.named_modules()):
        weight, epsilon = getattr(module, "weight", None), getattr(module, "variance_epsilon", None)
        if not type(module).__name__.endswith("RMSNorm") or weight is None or epsilon is None or weight.ndim != 1:
            continue
        probe = torch.randn(4, len(weight), generator=generator).to(weight)
        ours = RmsNorm(weight, epsilon)
        if torch.equal(ours(probe), module(probe)):
            model.set_submodule(name, ours)
            replaced += 1
    return replaced
