"""Low-rank adapters on every linear layer of the decoder blocks: one model is policy and reference at once.

y = W x + (α / r) · B A x, with W frozen, A `[r, in]` and B `[out, r]` trained (Hu et al. 2021, arXiv 2106.09685).
B starts at zero, so the policy starts as the reference; switching the second term off gives the reference back.
"""

import contextlib
import contextvars
import hashlib
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sempa.errors import SempaError
from sempa.model.layers import blocks

_EXPERT_NAMES = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
# PEFT wraps the model twice, hence its prefix.
PEFT_PREFIX = "base_model.model."
# The adapters' switches are context variables, so that other threads may run the policy at the same time.
_disabled: contextvars.ContextVar[bool] = contextvars.ContextVar("adapter_disabled", default=False)
_dropout: contextvars.ContextVar[bool] = contextvars.ContextVar("adapter_dropout", default=False)


class LoraLinear(nn.Module):
    """A frozen linear layer plus its low-rank update; A and B are float32, the product runs in the input's dtype."""

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base = base
        # GPT-2's Conv1D keeps its weight transposed, `[in, out]`.
        inputs, outputs = base.weight.shape if isinstance(base, Conv1D) else base.weight.shape[::-1]
        options = {"dtype": torch.float32, "device": base.weight.device}
        self.lora_A = nn.Parameter(torch.empty(rank, inputs, **options))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank, **options))
        self.scale = alpha / rank
        self.dropout = dropout

    # Some blocks ask a linear layer for its weight's dtype (Hunyuan's router).
    weight = property(lambda self: self.base.weight)

    def forward(self, x: Tensor) -> Tensor:
        """`[…, in]` → `[…, out]`."""
        y = self.base(x)
        if _disabled.get():
            return y
        if _dropout.get() and self.dropout:
            x = F.dropout(x, self.dropout)
        low = F.linear(x, self.lora_A.to(x.dtype))
        up = (self.lora_B * self.scale).to(x.dtype)
        # y + low @ up.T in one pass over y, which is large where low is thin.
        return torch.addmm(y.flatten(0, -2), low.flatten(0, -2), up.T).view_as(y)


def add_lora(model: PreTrainedModel, rank: int, alpha: float, dropout: float = 0.0, seed: int = 0) -> None:
    """Wrap every linear layer of the decoder blocks, whatever the architecture calls it, but never the LM head.

    A is drawn as in PEFT (uniform, Kaiming with a = √5) from `seed`, B is zero. Raises `SempaError` if none is there.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, linear in block_linears(model).items():
        wrapped = LoraLinear(linear, rank, alpha, dropout)
        bound = 1 / math.sqrt(wrapped.lora_A.shape[1])
        with torch.no_grad():
            wrapped.lora_A.copy_(torch.empty(wrapped.lora_A.shape).uniform_(-bound, bound, generator=generator))
        model.set_submodule(name, wrapped)
    if not lora_layers(model):
        raise SempaError(f"{type(model).__name__}: found no plain linear layers in the blocks, which LoRA adapts")


def lora_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters by PEFT's names, in a fixed order."""
    return {
        f"{PEFT_PREFIX}{name}.{letter}.weight": getattr(layer, letter)
        for name, layer in lora_layers(model).items()
        for letter in ("lora_A", "lora_B")
    }


def adapter_fingerprint(model: nn.Module) -> str:
    """A short digest of the adapter that `model` holds, its scale included; "" where there is none."""
    digest, layers = hashlib.sha256(), lora_layers(model)
    for name, layer in layers.items():
        digest.update(f"{name} {layer.scale}".encode())
        for weight in (layer.lora_A, layer.lora_B):
            digest.update(weight.detach().cpu().numpy().tobytes())
    return digest.hexdigest()[:16] if layers else ""


def adapter_disabled(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Inside, and in this thread, all adapters are off, other models' too: `model` is the frozen reference."""
    return _switched_on(_disabled)


def adapter_dropout(model: nn.Module) -> contextlib.AbstractContextManager[None]:
    """Inside, all adapters' dropout is active; a base's own never is: policy and reference share one base."""
    return _switched_on(_dropout)


@contextlib.contextmanager
def _switched_on(switch: contextvars.ContextVar[bool]) -> Iterator[None]:
    before = switch.set(True)
    try:
        yield
    finally:
        switch.reset(before)


@contextlib.contextmanager
def interpolated(model: nn.Module, fraction: float) -> Iterator[None]:
    """Inside, the weights are W + fraction · (α / r) B A; an adapter saved there holds the smaller α."""
    layers = list(lora_layers(model).values())
    before = [layer.scale for layer in layers]
    try:
        for layer in layers:
            layer.scale *= fraction
        yield
    finally:
        for layer, scale in zip(layers, before, strict=True):
            layer.scale = scale


def remove_adapter(model: nn.Module) -> None:
    """Take the adapter off again; the base's own linear layers are back, for another adapter or none."""
    for name, layer in lora_layers(model).items():
        model.set_submodule(name, layer.base)


def merge_adapter(model: nn.Module, dtype: torch.dtype) -> None:
    """Add the adapter to the base's weights for good, W + (α / r) B A in float32, then rounded to `dtype`: one model.

    The layers are plain linear ones afterwards; the caller brings the other parameters to `dtype`.
    """
    with torch.no_grad():
        for layer in lora_layers(model).values():
            update = layer.scale * (layer.lora_B @ layer.lora_A)
            merged = layer.base.weight.float() + (update.T if isinstance(layer.base, Conv1D) else update)
            layer.base.weight = nn.Parameter(merged.to(dtype), requires_grad=False)
    remove_adapter(model)


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """The layers with an adapter, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def block_linears(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear layers of the decoder blocks, by name.

    Experts that are fused into one tensor are no linear layers and stay as they are; beside them, layers of the names
    that PEFT takes for experts stay too, or PEFT would not find them again. Raises `SempaError` for a model with an
    adapter.
    """
    if lora_layers(model):
        raise SempaError(f"{type(model).__name__}: holds an adapter already; `remove_adapter` takes it off")
    inside = set(blocks(model).modules())
    mixture = any(parameter.dim() == 3 and "expert" in name for name, parameter in model.named_parameters())
    return {
        name: module
        for name, module in model.named_modules()
        # Routers of some mixtures of experts inherit from a linear layer, and do more.
        if module in inside and type(module).forward in (nn.Linear.forward, Conv1D.forward)
        if not (mixture and name.rpartition(".")[2] in _EXPERT_NAMES)
    }
