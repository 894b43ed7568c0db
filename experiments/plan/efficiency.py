"""How much of a device's arithmetic a training step uses: measured on a few blocks of the model's own width."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from shapes import empty_model, example_row, explain_failures, model_config

from sempa.config import Config
from sempa.model.base import faster_dtype, pick_device
from sempa.model.forward import row_states
from sempa.model.lora import add_lora, block_linears, lora_parameters

# Blocks that run: what a token costs is the same in each, and a large model's few fit where the whole does not.
_BLOCKS = 2
# Measured rounds, and the seconds after which one is enough.
_ROUNDS, _PATIENCE = 5, 20.0


@dataclass(frozen=True)
class Efficiency:
    """`fraction` of the rate of bare matrix products, `products` FLOP/s, that forward and backward of a row reach."""

    fraction: float
    products: float
    device: str
    dtype: str


def measure_efficiency(config: Config) -> Efficiency:
    """Time one packed row's forward and backward through blocks of the config's model, with random weights and LoRA.

    In turn with it runs a bare product of as many states and a block's largest matrix; medians of several rounds, warm.
    The fraction is the row's rate of operations, (4P + 6L) per token as `make_plan` counts them, over the product's.

    Raises `SempaError` as `make_plan` does.
    """
    device = pick_device(config.device or None)
    dtype = getattr(torch, faster_dtype(device) if config.dtype == "auto" else config.dtype)
    shape = model_config(config.model)
    text = shape.get_text_config()
    text.num_hidden_layers = depth = min(_BLOCKS, text.num_hidden_layers)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:depth]
    model = empty_model(shape, dtype, device)
    linears = block_linears(model)
    blocks = sum(linear.weight.numel() for linear in linears.values())
    widest = max(linears.values(), key=lambda linear: linear.weight.numel()).weight
    add_lora(model, config.lora_rank, config.lora_alpha)
    adapter = sum(parameter.numel() for parameter in lora_parameters(model).values())
    row = example_row(config.row_tokens)
    states = torch.randn(len(row.tokens), widest.shape[1], device=device, dtype=dtype)

    def step() -> None:
        row_states(model, row).sum().backward()

    def product() -> None:
        states @ widest.T

    with explain_failures(config.model):
        step_seconds, product_seconds = _alternate(step, product, device)
    products = 2 * states.numel() * widest.shape[0] / product_seconds
    reached = len(row.tokens) * (4 * blocks + 6 * adapter) / step_seconds
    # Above 1 the product was disturbed more than the row.
    return Efficiency(min(1.0, reached / products), products, _name(device), str(dtype).removeprefix("torch."))


def describe_efficiency(measured: Efficiency) -> str:
    """The measurement as a line of the plan."""
    return (
        f"efficiency        {measured.fraction:.0%} of the rate of bare matrix products, which is "
        f"{measured.products / 1e12:.3g} TFLOP/s here ({measured.device}, {measured.dtype})"
    )


def _alternate(step: Callable[[], None], product: Callable[[], None], device: torch.device) -> tuple[float, float]:
    """Median seconds of either; the first round only loads and starts what the others find ready."""
    seconds: dict[Callable, list[float]] = {step: [], product: []}
    started = _now(device)
    for number in range(_ROUNDS + 1):
        for run, taken in seconds.items():
            began = _now(device)
            run()
            if number:
                taken.append(_now(device) - began)
        if number and _now(device) - started > _PATIENCE:
            break
    return tuple(statistics.median(taken) for taken in seconds.values())


def _now(device: torch.device) -> float:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
    return time.perf_counter()


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type
