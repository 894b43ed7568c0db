"""Files that are whole or absent: write to a temporary name, fsync, rename."""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from sempa.errors import SempaError


@contextlib.contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a read-only folder or a missing permission into a `SempaError` that names the path."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise SempaError(
                f"{path}: the disk is full; free some space and resume, nothing finished was lost"
            ) from error
        raise SempaError(f"{path}: cannot be written: {error.strerror or error}") from error
    except SafetensorError as error:
        # safetensors wraps the operating system's error, a full disk included, in its own.
        raise SempaError(f"{path}: cannot be written: {error}") from error


def replace_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then fsync it and rename it to `path`.

    Raises `SempaError` when the disk is full or the folder cannot be written; `path` then still holds its old content.
    """
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            write(temporary)
            fsync(temporary)
            temporary.replace(path)
            fsync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write `content` to `path` so that a crash leaves the old file or the new one, never half of either."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    replace_atomically(path, lambda temporary: temporary.write_bytes(data))


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def fingerprint(*parts: object) -> str:
    """Sixteen hexadecimal digits that change when any of `parts` (by its `repr`) changes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(repr(part).encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def cache_folder() -> Path:
    """The user's cache folder: `$SEMPA_CACHE`, else `$XDG_CACHE_HOME/sempa`, else `~/.cache/sempa`."""
    if explicit := os.environ.get("SEMPA_CACHE"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sempa"


def fsync(path: Path) -> None:
    """Force a file or a folder entry to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
