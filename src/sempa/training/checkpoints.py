"""Checkpoints that are whole or absent, hold all that the next step depends on, and show when a disk damaged them."""

import re
import sys
from pathlib import Path

import torch
from torch import nn

from sempa.errors import SempaError
from sempa.io.files import read_json, remove_folder, remove_leftovers, replace_folder, sha256, write_json
from sempa.io.tensors import read_tensors, write_tensors
from sempa.model.adapter_files import CONFIG_FILE, WEIGHTS_FILE, read_adapter, save_adapter, set_lora
from sempa.model.lora import lora_parameters

OPTIMIZER_FILE, STATE_FILE, MANIFEST_FILE = "optimizer.safetensors", "state.json", "manifest.json"
FILES = (CONFIG_FILE, WEIGHTS_FILE, OPTIMIZER_FILE, STATE_FILE)
_KEEP = 2


def save_checkpoint(
    run: Path, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict, base_name: str
) -> None:
    """Write `checkpoints/step-…` (adapter, optimiser, state, and a manifest of their checksums) as a whole folder.

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
        write_json(folder / MANIFEST_FILE, {"sha256": {name: sha256(folder / name) for name in FILES}})

    folder = run / "checkpoints" / f"step-{step:06d}"
    replace_folder(folder, write)
    for old in checkpoint_folders(run)[:-_KEEP]:
        remove_folder(old)
    for place in (run, run / "adapter", folder.parent):
        remove_leftovers(place)


def load_checkpoint(run: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Restore adapter and optimiser from the latest whole checkpoint and return its state (`{}` when there is none).

    A damaged checkpoint is reported on standard error, and the one before it is taken: the steps between are run again,
    to the same bits. Raises `SempaError` when all are damaged, or the checkpoint belongs to another model.
    """
    folders = checkpoint_folders(run)
    for folder in reversed(folders):
        try:
            check_checkpoint(folder)
        except SempaError as error:
            print(f"warning: {error}; going back to the checkpoint before", file=sys.stderr, flush=True)
            continue
        return _restore(folder, model, optimizer)
    if folders:
        raise SempaError(
            f"{run / 'checkpoints'}: every checkpoint is damaged (the latest is {folders[-1].name}); "
            "remove this folder to train from the start"
        )
    return {}


def check_checkpoint(folder: Path) -> None:
    """Compare every file of a checkpoint with its checksum; raises `SempaError` that names the first damaged file."""
    try:
        expected = read_json(folder / MANIFEST_FILE)["sha256"]
        # Only these names are opened, whatever else a damaged manifest may list.
        expected = {name: expected[name] for name in FILES}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SempaError(f"checkpoint {folder}: {MANIFEST_FILE} is missing or damaged") from error
    for name, digest in expected.items():
        try:
            found = sha256(folder / name)
        except OSError as error:
            raise SempaError(f"checkpoint {folder}: {name} cannot be read: {error.strerror or error}") from error
        if found != digest:
            raise SempaError(
                f"checkpoint {folder}: {name} is damaged, it does not match its checksum in {MANIFEST_FILE}"
            )


def has_checkpoint(run: Path) -> bool:
    """Whether `run` holds a checkpoint to resume from."""
    return bool(checkpoint_folders(run))


def checkpoint_folders(run: Path) -> list[Path]:
    """The folders `checkpoints/step-…` of a run, damaged ones included, in the order of their steps."""
    steps = {
        folder: int(match.group(1))
        for folder in (run / "checkpoints").glob("step-*")
        if (match := re.fullmatch(r"step-(\d+)", folder.name))
    }
    return sorted(steps, key=steps.get)


def _restore(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    _, adapter = read_adapter(folder)
    set_lora(model, adapter, folder / WEIGHTS_FILE)
    try:
        state = read_json(folder / STATE_FILE)
        saved = read_tensors(folder / OPTIMIZER_FILE)
        for name, parameter in lora_parameters(model).items():
            # One that has had no gradient yet has no moments.
            if f"{name}/step" not in saved:
                continue
            moments = {key: saved[f"{name}/{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            # AdamW keeps its step count on the CPU, its moments beside the parameter.
            optimizer.state[parameter] = {
                key: value if key == "step" else value.to(parameter.device) for key, value in moments.items()
            }
    except (OSError, ValueError, KeyError) as error:
        raise SempaError(f"checkpoint {folder}: cannot be used ({error}); it is of another version of sempa") from error
    return state
