"""Checkpoints: one file each, whole or absent, with all that the next step depends on."""

import json
import zlib
from pathlib import Path

import torch
from torch import Tensor, nn

from sempa.errors import SempaError
from sempa.io.files import read_tensors, remove_leftovers, write_tensors
from sempa.model.adapter_files import set_lora
from sempa.model.lora import lora_parameters


def save_checkpoint(run: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Write adapter, optimiser and state to `checkpoints/step-….safetensors`.

    Then deletes all but the latest two, and half-written files that killed processes left in the run. Raises
    `SempaError` when the disk is full or read-only; earlier checkpoints are untouched then.
    """
    tensors: dict[str, Tensor] = dict(lora_parameters(model))
    for name, parameter in lora_parameters(model).items():
        tensors |= {f"{name}/{key}": value for key, value in optimizer.state[parameter].items()}
    # JSON as a tensor of bytes: what belongs together is in one file.
    tensors["state"] = torch.tensor(list(json.dumps({"step": step, **state}).encode()), dtype=torch.uint8)
    tensors["checksum"] = torch.tensor(_checksum(tensors))
    path = run / "checkpoints" / f"step-{step:06d}.safetensors"
    write_tensors(path, tensors)
    for old in checkpoint_files(run)[:-2]:
        old.unlink()
    for folder in (run, run / "adapter", path.parent):
        remove_leftovers(folder)


def load_checkpoint(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Restore adapter and optimiser from the latest checkpoint and return its state (`{}` when there is none).

    Raises `SempaError` when it is damaged, or belongs to another model.
    """
    files = checkpoint_files(run)
    if not files:
        return {}
    tensors, state = read_checkpoint(files[-1])
    set_lora(model, {name: tensor for name, tensor in tensors.items() if "/" not in name}, files[-1])
    saved = {
        number: {key: tensors[f"{name}/{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        for number, name in enumerate(lora_parameters(model))
    }
    optimizer.load_state_dict({**optimizer.state_dict(), "state": saved})
    return state


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict]:
    """A checkpoint's tensors (adapter and optimiser moments) and its state; raises `SempaError` for a damaged one."""
    try:
        tensors = read_tensors(path)
        if tensors.pop("checksum").item() != _checksum(tensors):
            raise ValueError("its checksum does not match")
        return tensors, json.loads(bytes(tensors.pop("state").tolist()))
    except (SempaError, KeyError, TypeError, ValueError) as error:
        raise SempaError(f"checkpoint {path} is damaged ({error}); remove it to resume from the one before") from error


def _checksum(tensors: dict[str, Tensor]) -> int:
    return zlib.crc32(b"".join(tensors[name].detach().cpu().numpy().tobytes() for name in sorted(tensors)))


def checkpoint_files(run: Path) -> list[Path]:
    """The files `checkpoints/step-….safetensors` of a run, damaged ones included, in the order of their steps."""
    # A copy that somebody made has more than a number in its name.
    files = {path.stem.removeprefix("step-"): path for path in (run / "checkpoints").glob("step-*.safetensors")}
    return [files[step] for step in sorted(filter(str.isdecimal, files), key=int)]
