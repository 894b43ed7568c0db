"""Named tensors in a safetensors file."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sempa.errors import SempaError
from sempa.io.files import write_atomic


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors` atomically; equal tensors give equal bytes. Any reader of safetensors can open the file.

    Raises `SempaError` when the disk is full or the folder cannot be written.
    """
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, save(contiguous, metadata={"format": "pt"}))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; raises `SempaError` when it cannot be read or is not whole."""
    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise SempaError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
