"""Named tensors in a safetensors file that carries its own checksum: a flipped bit is found, not loaded."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from sempa.errors import SempaError
from sempa.io.files import write_atomic

_CHECKSUM, _METADATA = "sempa_sha256", "__metadata__"


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors` atomically; equal tensors give equal bytes. Any reader of safetensors can open the file.

    Raises `SempaError` when the disk is full or the folder cannot be written.
    """
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    header, body = _split(data)
    # Written here, because safetensors gives several metadata entries another order in every process.
    header[_METADATA] = {"format": "pt", _CHECKSUM: _digest(header, body)}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    write_atomic(path, b"".join((len(text).to_bytes(8, "little"), text, body)))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, checked where it carries a checksum (those of other tools do not).

    Raises `SempaError` when the file cannot be read, is not safetensors, or does not match its checksum.
    """
    try:
        data = path.read_bytes()
        tensors = load(data)
    except (OSError, SafetensorError) as error:
        raise SempaError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    header, body = _split(data)
    expected = header.get(_METADATA, {}).get(_CHECKSUM)
    if expected not in (None, _digest(header, body)):
        raise SempaError(f"{path}: is damaged, its content does not match the checksum it was written with")
    return tensors


def _split(data: bytes) -> tuple[dict, memoryview]:
    """The header and the bytes of the tensors: 8 bytes of length, JSON, data."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), memoryview(data)[end:]


def _digest(header: dict, body: memoryview) -> str:
    layout = {name: entry for name, entry in header.items() if name != _METADATA}
    digest = hashlib.sha256(json.dumps(layout, sort_keys=True).encode("utf-8", "surrogatepass"))
    digest.update(body)
    return digest.hexdigest()
