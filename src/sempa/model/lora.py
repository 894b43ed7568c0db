"""Low-rank adapters on every linear layer of the decoder blocks: one model is policy and reference at once.

y = W x + (α / r) · B A x, with W frozen, A `[r, in]` and B `[out, r]` trained (Hu et al. 2021, arXiv 2106.09685).
B starts at zero, so the policy starts as the reference; switching the second term off gives the reference back.
"""

import contextlib
import contextvars
import hashlib
import math
import reprlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sempa.errors import SempaError
from sempa.io.files import read_json, write_json
from sempa.io.tensors import read_tensors, write_tensors
from sempa.kernels import in_autocast_dtype

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
_NUMBERS = (int, float)
_EXPERT_NAMES = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
# The settings of PEFT's that leave y = W x + (α / r) B A x as it is. Some ways to draw the first weights are not among
# them (PiSSA, OLoRA, CorDA, LoftQ): PEFT rewrites the base's weights with them, each time it loads the adapter.
_PLAIN_SETTINGS = {
    *(
        "peft_type",
        "peft_version",
        "task_type",
        "auto_mapping",
        "base_model_name_or_path",
        "revision",
        "inference_mode",
    ),
    *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("fan_in_fan_out", "eva_config", "megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying"),
}
_PLAIN_VALUES = {"bias": ("none",), "init_lora_weights": (True, "gaussian", "eva", "orthogonal")}
# PEFT wraps the model twice, hence its prefix.
_PEFT_PREFIX = "base_model.model."
# Whether the adapters are off: a context variable, so that other threads may run the policy at the same time.
_disabled: contextvars.ContextVar[bool] = contextvars.ContextVar("adapter_disabled", default=False)


class LoraLinear(nn.Module):
    """A frozen linear layer plus its low-rank update; A and B are float32, the product runs in the input's dtype."""

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.base = base
        inputs, outputs = _sizes(base)
        options = {"dtype": torch.float32, "device": base.weight.device}
        self.lora_A = nn.Parameter(torch.empty(rank, inputs, **options))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank, **options))
        self.scale = alpha / rank
        self.dropout = dropout
        self.dropout_active = False

    def forward(self, x: Tensor) -> Tensor:
        """`[…, in]` → `[…, out]`."""
        if _disabled.get():
            return self.base(x)
        rows = in_autocast_dtype(x.flatten(0, -2))
        dropped = F.dropout(rows, self.dropout) if self.dropout_active and self.dropout else None
        weight = self.base.weight.T if isinstance(self.base, Conv1D) else self.base.weight
        weight, bias = (None if w is None else in_autocast_dtype(w) for w in (weight, self.base.bias))
        y = _LoraProduct.apply(rows, dropped, weight, bias, self.lora_A, self.lora_B, self.scale)
        return y.view(*x.shape[:-1], -1)


class _LoraProduct(torch.autograd.Function):
    """y = x Wᵀ + b + s (x̃ Aᵀ) Bᵀ and its gradients, with the thin products added into the large ones in place.

    Backward takes one large product, the gradient of x: W is frozen.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: Tensor,
        dropped: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        lora_A: Tensor,
        lora_B: Tensor,
        scale: float,
    ) -> Tensor:
        seen = x if dropped is None else dropped
        A, B = lora_A.to(x.dtype), (lora_B * scale).to(x.dtype)
        low = seen @ A.T
        ctx.save_for_backward(seen, low, weight, A, B)
        ctx.scale, ctx.has_dropout, ctx.adapter_dtype = scale, dropped is not None, lora_A.dtype
        return F.linear(x, weight, bias).addmm_(low, B.T)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, upstream: Tensor) -> tuple[Tensor | None, ...]:
        seen, low, weight, A, B = ctx.saved_tensors
        low_grad = upstream @ B
        x_grad = upstream @ weight if ctx.needs_input_grad[0] else None
        dropped_grad = None
        if ctx.has_dropout:
            dropped_grad = low_grad @ A if ctx.needs_input_grad[1] else None
        elif x_grad is not None:
            x_grad.addmm_(low_grad, A)
        # The adapter's own gradients leave in float32, the dtype of its weights.
        A_grad = (low_grad.T @ seen).to(ctx.adapter_dtype)
        B_grad = (upstream.T @ low).to(ctx.adapter_dtype) * ctx.scale
        return x_grad, dropped_grad, None, None, A_grad, B_grad, None


def add_lora(model: PreTrainedModel, rank: int, alpha: float, dropout: float = 0.0, seed: int = 0) -> None:
    """Wrap every linear layer of the decoder blocks, whatever the architecture calls it, but never the LM head.

    A is drawn as in PEFT (uniform, Kaiming with a = √5) from `seed`, B is zero. Raises `SempaError` if the model has no
    linear layer inside its blocks.
    """
    targets = block_linears(model)
    if not targets:
        raise SempaError(f"model {model.name_or_path!r}: no linear layer found in its decoder blocks")
    generator = torch.Generator().manual_seed(seed)
    for name, linear in targets.items():
        wrapped = LoraLinear(linear, rank, alpha, dropout)
        bound = 1 / math.sqrt(wrapped.lora_A.shape[1])
        with torch.no_grad():
            start = torch.empty(wrapped.lora_A.shape).uniform_(-bound, bound, generator=generator)
            wrapped.lora_A.copy_(start)
        model.set_submodule(name, wrapped)


def lora_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's parameters by PEFT's names, in a fixed order."""
    return {
        f"{_PEFT_PREFIX}{name}.{letter}.weight": getattr(layer, letter)
        for name, layer in _lora_layers(model).items()
        for letter in ("lora_A", "lora_B")
    }


def adapter_fingerprint(model: nn.Module) -> str:
    """A short digest of the adapter that `model` holds, its scale included; "" where there is none."""
    adapter, layers = hashlib.sha256(), _lora_layers(model)
    for name, layer in layers.items():
        adapter.update(f"{name} {layer.scale}".encode())
        for weight in (layer.lora_A, layer.lora_B):
            adapter.update(weight.detach().cpu().numpy().tobytes())
    return adapter.hexdigest()[:16] if layers else ""


@contextlib.contextmanager
def adapter_disabled(model: nn.Module) -> Iterator[None]:
    """Inside, and in this thread alone, `model` is the frozen reference; outside it is the policy again."""
    before = _disabled.set(True)
    try:
        yield
    finally:
        _disabled.reset(before)


@contextlib.contextmanager
def adapter_dropout(model: nn.Module) -> Iterator[None]:
    """Inside, the adapter's dropout is active; the base's own never is, so that policy and reference share one base."""
    layers = _lora_layers(model).values()
    for layer in layers:
        layer.dropout_active = True
    try:
        yield
    finally:
        for layer in layers:
            layer.dropout_active = False


@contextlib.contextmanager
def interpolated(model: nn.Module, fraction: float) -> Iterator[None]:
    """Inside, the weights lie between base and policy: W + fraction · (α / r) B A.

    Part of the update keeps more of the language model than it costs in similarity (WiSE-FT, Wortsman et al. 2022,
    arXiv 2109.01903). An adapter saved inside holds the smaller α.
    """
    layers = list(_lora_layers(model).values())
    before = [layer.scale for layer in layers]
    try:
        for layer in layers:
            layer.scale *= fraction
        yield
    finally:
        for layer, scale in zip(layers, before, strict=True):
            layer.scale = scale


def save_adapter(model: nn.Module, folder: Path, base_source: str) -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` in PEFT's layout, each atomically."""
    layers = _lora_layers(model)
    first = next(iter(layers.values()))
    # Weights first: a folder with a config is then always a whole adapter.
    write_tensors(folder / WEIGHTS_FILE, lora_parameters(model))
    rank = first.lora_A.shape[0]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_source,
        "r": rank,
        "lora_alpha": first.scale * rank,
        "lora_dropout": first.dropout,
        "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
        "fan_in_fan_out": any(isinstance(layer.base, Conv1D) for layer in layers.values()),
        "bias": "none",
        "inference_mode": True,
    }
    write_json(folder / CONFIG_FILE, config)


def load_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Add the adapter saved in `folder` (by sempa or by PEFT's plain LoRA) to a bare base model.

    Raises `SempaError` when a file is missing or damaged, the config asks for more than plain LoRA on linear layers,
    or the tensors do not fit the model; warns of an adapter that changes nothing.
    """
    config, tensors = read_adapter(folder)
    names = {name[len(_PEFT_PREFIX) :].rsplit(".", 2)[0] for name in tensors}
    linears: dict[str, nn.Module] = {}
    for name in sorted(names):
        try:
            linear = model.get_submodule(name)
        except AttributeError:
            linear = None
        if linear is None or not _is_plain(linear):
            raise SempaError(f"{folder / WEIGHTS_FILE}: the base model has no linear layer {name!r}")
        if linear is model.get_output_embeddings():
            raise SempaError(f"{folder / WEIGHTS_FILE}: adapts the head {name!r}, expected layers of the blocks alone")
        # Before anything of the size that a strange file names is allocated.
        inputs, outputs = _sizes(linear)
        for letter, shape in (("A", (config["r"], inputs)), ("B", (outputs, config["r"]))):
            full = f"{_PEFT_PREFIX}{name}.lora_{letter}.weight"
            if full in tensors:
                _check_shape(full, tensors[full], shape, folder / WEIGHTS_FILE)
        linears[name] = linear
    # The model is left alone until all fits.
    for name, linear in linears.items():
        wrapped = LoraLinear(linear, config["r"], config["lora_alpha"], config.get("lora_dropout", 0.0))
        model.set_submodule(name, wrapped)
    try:
        set_lora(model, tensors, folder / WEIGHTS_FILE)
    except SempaError:
        remove_adapter(model)
        raise
    if not any(tensor.any() for name, tensor in tensors.items() if ".lora_B." in name):
        warnings.warn(
            f"{folder}: this adapter changes nothing, its every lora_B is zero: was it trained?", stacklevel=2
        )


def remove_adapter(model: nn.Module) -> None:
    """Take the adapter off again; the base's own linear layers are back, for another adapter or none."""
    for name, layer in _lora_layers(model).items():
        model.set_submodule(name, layer.base)


def merge_adapter(model: nn.Module, dtype: torch.dtype) -> None:
    """Add the adapter to the base's weights for good, W + (α / r) B A in float32, then rounded to `dtype`: one model.

    The layers are plain linear ones afterwards; the caller brings the other parameters to `dtype`.
    """
    with torch.no_grad():
        for layer in _lora_layers(model).values():
            update = layer.scale * (layer.lora_B @ layer.lora_A)
            merged = layer.base.weight.float() + (update.T if isinstance(layer.base, Conv1D) else update)
            layer.base.weight = nn.Parameter(merged.to(dtype), requires_grad=False)
    remove_adapter(model)


def set_lora(model: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Copy saved tensors into the adapter; raises `SempaError` when names or shapes differ."""
    parameters = lora_parameters(model)
    if parameters.keys() != tensors.keys():
        odd = sorted(parameters.keys() ^ tensors.keys())[0]
        raise SempaError(f"{source}: adapter and model differ in their layers, first in {odd!r}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            _check_shape(name, tensors[name], parameter.shape, source)
            parameter.copy_(tensors[name])


def read_adapter(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    """The config and the tensors of an adapter folder.

    Raises `SempaError` when they cannot be read, are damaged, or ask for more than plain LoRA.
    """
    try:
        config = read_json(folder / CONFIG_FILE)
        tensors = read_tensors(folder / WEIGHTS_FILE)
    except (OSError, ValueError, SempaError) as error:
        raise SempaError(
            f"adapter {str(folder)!r}: cannot be read ({error}); expected {CONFIG_FILE} and {WEIGHTS_FILE}"
        ) from error
    place = folder / CONFIG_FILE
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise SempaError(f"{place}: peft_type is not LORA")
    for key, value in config.items():
        if value and key not in _PLAIN_SETTINGS and value not in _PLAIN_VALUES.get(key, ()):
            raise SempaError(f"{place}: {key} is {reprlib.repr(value)}, but only plain LoRA can be loaded")
    if not isinstance(config.get("base_model_name_or_path", ""), str | None):
        raise SempaError(f"{place}: base_model_name_or_path is not text")
    rank, alpha, dropout = config.get("r"), config.get("lora_alpha"), config.get("lora_dropout", 0.0)
    for key, value, fits, expected in (
        ("r", rank, type(rank) is int and rank > 0, "a positive number"),
        ("lora_alpha", alpha, type(alpha) in _NUMBERS and 0 < alpha <= sys.float_info.max, "a positive number"),
        ("lora_dropout", dropout, type(dropout) in _NUMBERS and 0 <= dropout < 1, "a share from 0 to below 1"),
    ):
        if not fits:
            raise SempaError(f"{place}: {key} is {reprlib.repr(value)}, expected {expected}")
    _check_tensors(tensors, rank, folder / WEIGHTS_FILE)
    return config, tensors


def _is_plain(module: nn.Module) -> bool:
    """Whether it is a linear layer that does nothing else: routers of some mixtures of experts inherit from one."""
    return type(module).forward in (nn.Linear.forward, Conv1D.forward)


def _sizes(linear: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer; GPT-2's Conv1D keeps its weight transposed, `[in, out]`."""
    return tuple(linear.weight.shape if isinstance(linear, Conv1D) else linear.weight.shape[::-1])


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...], source: Path) -> None:
    if tuple(tensor.shape) != tuple(expected):
        raise SempaError(f"{source}: {name} has shape {tuple(tensor.shape)}, expected {tuple(expected)}")


def _check_tensors(tensors: dict[str, Tensor], rank: int, place: Path) -> None:
    if not tensors:
        raise SempaError(f"{place}: holds no tensor")
    ranks = {".lora_A.weight": 0, ".lora_B.weight": 1}
    for name, tensor in tensors.items():
        end = name[-len(".lora_A.weight") :]
        if not (name.startswith(_PEFT_PREFIX) and end in ranks):
            raise SempaError(f"{place}: unexpected tensor {name!r}")
        shape = tuple(tensor.shape)
        if len(shape) != 2 or shape[ranks[end]] != rank:
            raise SempaError(f"{place}: {name} has shape {shape}, expected rank {rank} as in {CONFIG_FILE}")
        if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise SempaError(f"{place}: {name} holds {tensor.dtype}, expected floating-point numbers")
        if not tensor.isfinite().all():
            raise SempaError(f"{place}: {name} holds numbers that are not finite")


def _lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def block_linears(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Linear layers below the module list that holds one entry per decoder block.

    Experts that are fused into one tensor are no linear layers and stay as they are; beside them, layers of the names
    that PEFT takes for experts stay too, or PEFT would not find them again.
    """
    depth = model.config.get_text_config().num_hidden_layers
    stacks = [n for n, m in model.named_modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    mixture = any(parameter.dim() == 3 and "expert" in name for name, parameter in model.named_parameters())
    return {
        name: module
        for name, module in model.named_modules()
        if _is_plain(module)
        and any(name.startswith(f"{stack}.") for stack in stacks)
        and not (mixture and name.rpartition(".")[2] in _EXPERT_NAMES)
        and module is not model.get_output_embeddings()
    }
