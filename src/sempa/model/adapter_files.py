"""Adapter folders in PEFT's layout: written atomically, read with every name, shape and setting checked."""

import reprlib
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sempa.errors import SempaError
from sempa.io.files import read_json, write_atomic, write_json
from sempa.io.tensors import read_tensors, write_tensors
from sempa.model.lora import (
    PEFT_PREFIX,
    LoraLinear,
    is_plain_linear,
    linear_sizes,
    lora_layers,
    lora_parameters,
    remove_adapter,
)

WEIGHTS_FILE, CONFIG_FILE, CARD_FILE = "adapter_model.safetensors", "adapter_config.json", "README.md"
# Beside PEFT's files: how the embedding that the adapter was trained for is read.
READOUT_FILE = "readout.json"
_NUMBERS = (int, float)
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
_CARD = """\
# LoRA adapter of SemPA

Base model: `{base}`. sempa knows it by this name, on any machine:

```python
Embedder("{base}", adapter="ADAPTER").encode(["A man plays a guitar."])  # from sempa; ADAPTER is this folder
```

PEFT and llama.cpp's converter take the base as a folder, which `sempa export --base ADAPTER BASE` writes:

```python
PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("BASE"), "ADAPTER")
```
"""


def save_adapter(model: nn.Module, folder: Path, base_name: str, readout: str = "") -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` in PEFT's layout, each atomically.

    `base_name` is the base's portable name (`sempa.model.resolve.portable_name`). With `readout`, the readout that the
    adapter was trained at, also `readout.json` and a README.md that says how to use the adapter.
    """
    layers = lora_layers(model)
    first = next(iter(layers.values()))
    # Weights first: a folder with a config is then always a whole adapter.
    write_tensors(folder / WEIGHTS_FILE, lora_parameters(model))
    if readout:
        write_json(folder / READOUT_FILE, {"readout": readout})
        write_atomic(folder / CARD_FILE, _CARD.format(base=base_name))
    rank = first.lora_A.shape[0]
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": first.scale * rank,
        "lora_dropout": first.dropout,
        "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
        "fan_in_fan_out": any(isinstance(layer.base, Conv1D) for layer in layers.values()),
        "bias": "none",
        "inference_mode": True,
    }
    write_json(folder / CONFIG_FILE, config)


def adapter_folder(path: Path) -> Path:
    """The adapter in `path`, which is a run folder or an adapter folder itself.

    Raises `SempaError` when it is neither.
    """
    for folder in (path / "adapter", path):
        if (folder / CONFIG_FILE).is_file():
            return folder
    raise SempaError(f"adapter {str(path)!r}: holds no {CONFIG_FILE}, neither itself nor in its folder `adapter`")


def adapter_readout(folder: Path) -> str:
    """The readout that the adapter or merged model in `folder` was trained at; `prompteol` where nothing is said.

    Raises `SempaError` when its file cannot be read.
    """
    if not (folder / READOUT_FILE).exists():
        return "prompteol"
    try:
        return str(read_json(folder / READOUT_FILE)["readout"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SempaError(f'{folder / READOUT_FILE}: cannot be read, expected {{"readout": NAME}}') from error


def load_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Add the adapter saved in `folder` (by sempa or by PEFT's plain LoRA) to a bare base model.

    Raises `SempaError` when a file is missing or damaged, the config asks for more than plain LoRA on linear layers,
    or the tensors do not fit the model; warns of an adapter that changes nothing.
    """
    config, tensors = read_adapter(folder)
    names = {name[len(PEFT_PREFIX) :].rsplit(".", 2)[0] for name in tensors}
    linears: dict[str, nn.Module] = {}
    for name in sorted(names):
        try:
            linear = model.get_submodule(name)
        except AttributeError:
            linear = None
        if linear is None or not is_plain_linear(linear):
            raise SempaError(f"{folder / WEIGHTS_FILE}: the base model has no linear layer {name!r}")
        if linear is model.get_output_embeddings():
            raise SempaError(f"{folder / WEIGHTS_FILE}: adapts the head {name!r}, expected layers of the blocks alone")
        # Before anything of the size that a strange file names is allocated.
        inputs, outputs = linear_sizes(linear)
        for letter, shape in (("A", (config["r"], inputs)), ("B", (outputs, config["r"]))):
            full = f"{PEFT_PREFIX}{name}.lora_{letter}.weight"
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


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...], source: Path) -> None:
    if tuple(tensor.shape) != tuple(expected):
        raise SempaError(f"{source}: {name} has shape {tuple(tensor.shape)}, expected {tuple(expected)}")


def _check_tensors(tensors: dict[str, Tensor], rank: int, place: Path) -> None:
    if not tensors:
        raise SempaError(f"{place}: holds no tensor")
    ranks = {".lora_A.weight": 0, ".lora_B.weight": 1}
    for name, tensor in tensors.items():
        end = name[-len(".lora_A.weight") :]
        if not (name.startswith(PEFT_PREFIX) and end in ranks):
            raise SempaError(f"{place}: unexpected tensor {name!r}")
        shape = tuple(tensor.shape)
        if len(shape) != 2 or shape[ranks[end]] != rank:
            raise SempaError(f"{place}: {name} has shape {shape}, expected rank {rank} as in {CONFIG_FILE}")
        if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            raise SempaError(f"{place}: {name} holds {tensor.dtype}, expected floating-point numbers")
        if not tensor.isfinite().all():
            raise SempaError(f"{place}: {name} holds numbers that are not finite")
