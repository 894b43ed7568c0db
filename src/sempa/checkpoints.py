"""Checkpoints that are whole or absent, and hold all that the next step depends on."""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from sempa.errors import SempaError
from sempa.files import explain_os_errors, fsync, write_json
from sempa.lora import WEIGHTS_FILE, lora_parameters, read_adapter, save_adapter, set_lora

OPTIMIZER_FILE, STATE_FILE = "optimizer.safetensors", "state.json"
_KEEP = 2


def save_checkpoint(
    run: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict, base_source: str
) -> None:
    """Write `checkpoints/step-…` (adapter, optimiser, state) as a whole folder, then drop all but the latest two.

    Raises `SempaError` when the disk is full or read-only; earlier checkpoints are untouched then.
    """
    folder = run / "checkpoints" / f"step-{step:06d}"
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    with explain_os_errors(folder):
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            save_adapter(model, temporary, base_source)
            tensors = {
                f"{name}/{key}": value
                for name, parameter in lora_parameters(model).items()
                for key, value in optimizer.state[parameter].items()
            }
            save_file(tensors, temporary / OPTIMIZER_FILE)
            fsync(temporary / OPTIMIZER_FILE)
            write_json(temporary / STATE_FILE, {"step": step, **state})
            shutil.rmtree(folder, ignore_errors=True)
            temporary.replace(folder)
            fsync(folder.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    for old in _checkpoints(run)[:-_KEEP]:
        shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Restore adapter and optimiser from the latest checkpoint and return its state (`{}` when there is none).

    Raises `SempaError` when the checkpoint is damaged or belongs to another model.
    """
    folders = _checkpoints(run)
    if not folders:
        return {}
    folder = folders[-1]
    _, adapter = read_adapter(folder)
    set_lora(model, adapter, folder / WEIGHTS_FILE)
    try:
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        saved = load_file(folder / OPTIMIZER_FILE)
        for name, parameter in lora_parameters(model).items():
            moments = {key: saved[f"{name}/{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            # AdamW keeps its step count on the CPU, its moments beside the parameter.
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in moments.items()
            }
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise SempaError(
            f"checkpoint {folder}: cannot be read ({error}); delete it to resume from the one before"
        ) from error
    return state


def has_checkpoint(run: Path) -> bool:
    """Whether `run` holds a checkpoint to resume from."""
    return bool(_checkpoints(run))


def _checkpoints(run: Path) -> list[Path]:
    return sorted(folder for folder in (run / "checkpoints").glob("step-*") if (folder / STATE_FILE).is_file())
