"""Adapter folders in PEFT's layout: written atomically, read with every name, shape and setting checked."""

import math
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sempa.errors import SempaError
from sempa.io.files import read_json, read_tensors, write_atomic, write_json, write_tensors
from sempa.model.lora import PEFT_PREFIX, LoraLinear, block_linears, lora_layers, lora_parameters
from sempa.model.resolve import find_file

WEIGHTS_FILE, CONFIG_FILE = "adapter_model.safetensors", "adapter_config.json"
READOUT_FILE = "readout.json"
# PEFT's settings that leave y = W x + (α / r) B A x as it is. Some ways to draw the first weights are not among them
# (PiSSA, OLoRA, CorDA, LoftQ): with these PEFT rewrites the base's weights each time it loads the adapter.
_PLAIN_SETTINGS = {
    *("peft_type", "peft_version", "task_type", "auto_mapping", "base_model_name_or_path", "revision"),
    *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("inference_mode", "fan_in_fan_out", "eva_config", "megatron_core", "qalora_group_size", "runtime_config"),
    "ensure_weight_tying",
}
_PLAIN_VALUES = {"bias": ("none",), "init_lora_weights": (True, "gaussian", "eva", "orthogonal")}


def save_adapter(model: nn.Module, folder: Path, base_name: str, readout: str = "prompteol") -> None:
    """Write `adapter_model.safetensors` and `adapter_config.json` in PEFT's layout, each atomically.

    Beside them stand `readout.json`, the readout that the adapter was trained at, and a README.md that says how to use
    the adapter. `base_name` is the base's, as `sempa.model.resolve.portable_name` gives it.
    """
    layers = lora_layers(model)
    first = next(iter(layers.values()))
    # Weights first: a folder with a config is then always a whole adapter.
    write_tensors(folder / WEIGHTS_FILE, lora_parameters(model))
    write_json(folder / READOUT_FILE, {"readout": readout})
    card = Path(__file__).with_name("adapter_card.md").read_text(encoding="utf-8")
    write_atomic(folder / "README.md", card.format(base=base_name))
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
    """The adapter in `path`, a run folder or an adapter folder itself; raises `SempaError` when it is neither."""
    for folder in (path / "adapter", path):
        if (folder / CONFIG_FILE).is_file():
            return folder if folder.name else folder.absolute()  # `.` has neither a name nor a parent
    raise SempaError(f"adapter {str(path)!r}: holds no {CONFIG_FILE}, neither itself nor in its folder `adapter`")


def adapter_readout(source: str | Path) -> str:
    """The readout that an adapter (a folder) or a merged model (a folder or a hub id) was trained with.

    `prompteol` without a `readout.json`; raises `SempaError` when that file is damaged.
    """
    path = find_file(source, READOUT_FILE)
    try:
        return str(read_json(Path(path))["readout"]) if path else "prompteol"
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SempaError(f"{path}: expected a JSON object with the key `readout`") from error


def load_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Add the adapter saved in `folder` (by sempa or by PEFT's plain LoRA) to a bare base model.

    Raises `SempaError` when a file is missing or damaged, the config asks for more than plain LoRA on linear layers of
    the blocks, or the tensors do not fit the model.
    """
    config, tensors = read_adapter(folder)
    linears = block_linears(model)
    names = {name.removeprefix(PEFT_PREFIX).rsplit(".", 2)[0] for name in tensors}
    if unknown := sorted(names - linears.keys()):
        raise SempaError(f"{folder / WEIGHTS_FILE}: the base model's blocks have no linear layer {unknown[0]!r}")
    for name in names:
        model.set_submodule(name, LoraLinear(linears[name], config["r"], config["lora_alpha"]))
    set_lora(model, tensors, folder / WEIGHTS_FILE)


def read_adapter(folder: Path) -> tuple[dict, dict[str, Tensor]]:
    """An adapter folder's config and tensors; raises `SempaError` when they are damaged or more than plain LoRA."""
    place = folder / CONFIG_FILE
    try:
        config, tensors = dict(read_json(place)), read_tensors(folder / WEIGHTS_FILE)
        ranks = {tensor.shape[0] for name, tensor in tensors.items() if ".lora_A." in name}
    except (OSError, ValueError, LookupError, TypeError, SempaError) as error:
        expected = f"expected {CONFIG_FILE} and {WEIGHTS_FILE}"
        raise SempaError(f"adapter {str(folder)!r}: cannot be read ({error}); {expected}") from error
    if config.get("peft_type") != "LORA":
        raise SempaError(f"{place}: peft_type is not LORA")
    for key, value in config.items():
        if value and key not in _PLAIN_SETTINGS and value not in _PLAIN_VALUES.get(key, ()):
            raise SempaError(f"{place}: {key} is {value!r}, but only plain LoRA can be loaded")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not (isinstance(alpha, int | float) and 0 < alpha < math.inf):
        raise SempaError(f"{place}: expected lora_alpha above 0")
    if list(ranks) != [rank] or not isinstance(rank, int) or rank < 1:
        raise SempaError(f"{place}: r is {rank!r}, but the tensors have rank {', '.join(map(str, sorted(ranks)))}")
    for name, tensor in tensors.items():
        if not tensor.float().isfinite().all():
            raise SempaError(f"{folder / WEIGHTS_FILE}: {name} holds numbers that are not finite")
    return config, tensors


def set_lora(model: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Copy saved tensors into the adapter; raises `SempaError` when names or shapes differ."""
    parameters = lora_parameters(model)
    if parameters.keys() != tensors.keys():
        odd = min(parameters.keys() ^ tensors.keys())
        raise SempaError(f"{source}: adapter and model differ in their layers, first in {odd!r}")
    with torch.no_grad():
        for name, parameter in parameters.items():
            found, expected = tuple(tensors[name].shape), tuple(parameter.shape)
            if found != expected:
                raise SempaError(f"{source}: {name} has shape {found}, expected {expected}")
            parameter.copy_(tensors[name])
