"""Files and folders that are whole or absent: write under a temporary name, fsync, rename."""

import atexit
import contextlib
import functools
import hashlib
import json
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from sempa.errors import SempaError
from sempa.io.rows import column_files

if TYPE_CHECKING:
    # A command's help imports this module, and should not wait for torch.
    from torch import Tensor


@contextlib.contextmanager
def explain_os_errors(path: Path, action: str = "written") -> Iterator[None]:
    """Turn a full disk, a forbidden folder or a text that is not UTF-8 into a `SempaError` that names the path."""
    try:
        yield
    except (OSError, SafetensorError, UnicodeEncodeError) as error:
        raise SempaError(f"{path}: cannot be {action}: {getattr(error, 'strerror', None) or error}") from error


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` so that a crash leaves the old file or the new one, never half of either.

    Raises `SempaError` when the disk is full or the folder cannot be written; `path` then still holds its old content.
    """
    with explain_os_errors(path):
        path = path.resolve()  # a link stays, and its target is written
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary(path)
        try:
            temporary.write_bytes(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)
            fsync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary folder beside `folder`, then fsync its files and rename it to `folder`.

    Raises `SempaError` as `write_atomic` does, and when there is a folder with content of that name by then.
    """
    with explain_os_errors(folder):
        temporary = _temporary(folder)
        try:
            temporary.mkdir(parents=True)
            readable = temporary.stat().st_mode & 0o666
            write(temporary)
            for path in filter(Path.is_file, temporary.rglob("*")):
                # safetensors lets nobody but the owner read what it writes, whatever the umask says.
                path.chmod(readable)
                fsync(path)
            temporary.replace(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the files that killed processes left half-written in `folder`; nobody else may be writing files there."""
    for leftover in folder.glob(f".*.{'[0-9a-f]' * 16}.tmp"):
        if leftover.is_file():
            leftover.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically; NaN and infinity become null."""
    write_atomic(path, json.dumps(finite(value), indent=2, ensure_ascii=False) + "\n")


def finite(value: object) -> object:
    """The value with every NaN and infinity in it replaced by None, since JSON has neither."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> object:
    """The value of a JSON file; raises `OSError`, or `ValueError` for what is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"]) -> None:
    """Write `tensors` to a safetensors file, atomically; equal tensors give equal bytes."""
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomic(path, save(contiguous, metadata={"format": "pt"}))


def read_tensors(path: Path) -> dict[str, "Tensor"]:
    """The tensors of a safetensors file; raises `SempaError` when it cannot be read or is not whole."""
    from safetensors.torch import load

    with explain_os_errors(path, "read"):
        return load(path.read_bytes())


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, 64 hexadecimal digits, read block by block."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def fingerprint(*parts: object) -> str:
    """Sixteen hexadecimal digits that change when any of `parts` (by its `repr`) changes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part!r}\0".encode())
    return digest.hexdigest()[:16]


def user_path(path: str | Path) -> Path:
    """The path with a leading `~` replaced by the home folder, as a shell does where it sees one."""
    return Path(os.path.expanduser(path))  # noqa: PTH111, which raises for a user who is not there


def check_output(path: Path, *inputs: Path, folder: bool = False) -> None:
    """Raise `SempaError` unless a file, or a `folder`, can be written at `path`: before the work, not after it.

    A file must not be one of `inputs` or a file of an input folder, even by another name: it would be overwritten.
    """
    if path.exists() and not (path.is_dir() if folder else path.is_file()):
        raise SempaError(f"{path}: is not a {'folder' if folder else 'regular file'}, so it cannot be the output")
    files = (file for source in inputs for file in column_files(source) or source.rglob("*"))
    if path.is_file() and any(file.exists() and path.samefile(file) for file in files):
        raise SempaError(f"{path}: is the input itself, which would be lost; give another name for the output")
    place = path.absolute() if folder else path.absolute().parent
    while not place.exists():
        place = place.parent
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        raise SempaError(f"{path}: cannot be written, because {place} is not a folder you can write to")


def cache_folder() -> Path:
    """The user's cache folder: `$SEMPA_CACHE`, else `$XDG_CACHE_HOME/sempa`, else `~/.cache/sempa`.

    For a user without a home it is a temporary folder that ends with the process.
    """
    if explicit := os.environ.get("SEMPA_CACHE"):
        return user_path(explicit)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sempa"
    except RuntimeError:
        return temporary_folder()


@functools.cache
def temporary_folder() -> Path:
    """A private folder that is removed when the process ends."""
    folder = tempfile.TemporaryDirectory(prefix="sempa-")
    atexit.register(folder.cleanup)
    return Path(folder.name)


def fsync(path: Path) -> None:
    """Force a file's content to the disk, where no power cut can take it."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name[:50]}.{secrets.token_hex(8)}.tmp")  # a name has 255 bytes at most
