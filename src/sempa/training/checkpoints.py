"""Checkpoints that are whole or absent, and hold all that the next step depends on."""

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from sempa.errors import SempaError
from sempa.io.files import read_json, remove_folder, remove_leftovers, replace_folder, write_json
from sempa.io.tensors import read_tensors, write_tensors
from sempa.model.adapter_files import WEIGHTS_FILE, read_adapter, save_adapter, set_lora
from sempa.model.lora import lora_parameters

OPTIMIZER_FILE, STATE_FILE = "optimizer.safetensors", "state.json"
_KEEP = 2


def save_checkpoint(
    run: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict, base_name: str
) -> None:
    """Write `checkpoints/step-…` (adapter, optimiser and state) as a whole folder.

    Then all but the latest two are dropped, and what killed processes left half-written in the run. Raises `SempaError`
    when the disk is full or read-only; earlier checkpoints are untouched then.
    """

    def write(folder: Path) -> None:
        save_adapter(model, folder, base_name)
        moments = {
            f"{name}/{key}": value
            for name, parameter in lora_parameters(model).items()
            for key, value in optimizer.state[parameter].items()
        }
        write_tensors(folder / OPTIMIZER_FILE, moments)
        write_json(folder / STATE_FILE, {"step": step, **state})

    folder = run / "checkpoints" / f"step-{step:06d}"
    replace_folder(folder, write)
    for old in checkpoint_folders(run)[:-_KEEP]:
        remove_folder(old)
    for place in (run, run / "adapter", folder.parent):
        remove_leftovers(place)


def load_checkpoint(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Restore adapter and optimiser from the latest checkpoint and return its state (`{}` when there is none).

    Raises `SempaError` when it is damaged, or belongs to another model.
    """
    folders = checkpoint_folders(run)
    if not folders:
        return {}
    try:
        adapter, moments, state = read_checkpoint(folders[-1])
    except SempaError as error:
        raise SempaError(f"{error}; remove {folders[-1]} to go on from the checkpoint before") from error
    parameters = lora_parameters(model)
    set_lora(model, adapter, folders[-1] / WEIGHTS_FILE)
    keys = ("step", "exp_avg", "exp_avg_sq")
    saved = {
        number: {key: moments[f"{name}/{key}"] for key in keys}
        for number, name in enumerate(parameters)
        # A parameter that has had no gradient yet has no moments.
        if f"{name}/step" in moments
    }
    optimizer.load_state_dict({**optimizer.state_dict(), "state": saved})
    return state


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict]:
    """A checkpoint's adapter, optimiser moments and state; raises `SempaError` where a file is missing or damaged."""
    try:
        state = read_json(folder / STATE_FILE)
    except (OSError, ValueError) as error:
        raise SempaError(f"checkpoint {folder}: {STATE_FILE} is missing or damaged") from error
    return read_adapter(folder)[1], read_tensors(folder / OPTIMIZER_FILE), state


def has_checkpoint(run: Path) -> bool:
    """Whether `run` holds a checkpoint to resume from."""
    return bool(checkpoint_folders(run))


def checkpoint_folders(run: Path) -> list[Path]:
    """The folders `checkpoints/step-…` of a run, damaged ones included, in the order of their steps."""
    folders = [folder for folder in (run / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", folder.name)]
    return sorted(folders, key=lambda folder: int(folder.name.removeprefix("step-")))
