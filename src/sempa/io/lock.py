"""A lock on a folder that one process writes: the system drops it when that process ends, however it ends."""

import contextlib
import datetime
import fcntl
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from sempa.errors import SempaError
from sempa.io.files import explain_os_errors


@contextlib.contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Inside, no other process holds the lock of `folder`, which is made if it is missing.

    Raises `SempaError` that names the holder when there is one, or why the folder cannot be written. Where the file
    system has no locks, there is none to take.
    """
    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        # Without a buffer, which could not be written out on a full disk; a link would have its target emptied.
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        stream = os.fdopen(descriptor, "ab+", buffering=0)
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().decode().strip() or "another process"
            raise SempaError(f"{folder}: {holder} is writing here; wait for it, or give another folder") from None
        except OSError:  # the file system has no locks
            pass
        now = datetime.datetime.now().isoformat(sep=" ", timespec="seconds")
        with explain_os_errors(folder):
            stream.truncate(0)
            stream.write(f"process {os.getpid()} on {platform.node()}, since {now},\n".encode())
        # The file stays: whoever comes next locks this very one.
        yield
