"""A program's streams, which outlast their reader and show any text, and its exit code."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import TextIO

from sempa.errors import SempaError


class LastingStream:
    """A text stream that drops its text once writing fails; `error` then holds the reason, unless its reader left.

    Characters that its encoding lacks (an ASCII or Windows terminal) are escaped with a backslash.
    """

    def __init__(self, stream: TextIO | None) -> None:
        # Python has no stream where the descriptor was closed from the start.
        self.stream = stream or os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
        self.error: OSError | None = None
        if hasattr(self.stream, "reconfigure"):
            self.stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Write `text` if anybody reads it."""
        with self._lasting():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what was written."""
        with self._lasting():
            self.stream.flush()

    @contextlib.contextmanager
    def _lasting(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                self.error = error
            # What is still in the stream's buffer has to go somewhere, too, or every later flush would fail.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


def exit_code(program: str, run: Callable[[], int | None]) -> int:
    """Run a program and return its exit code: its own, else 0; after a line of error, 2 or, for Ctrl-C, 130.

    2 stands for bad input, and for too little memory on a GPU.

    Meanwhile `sys.stdout` and `sys.stderr` are `LastingStream`s.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(LastingStream, before)
    try:
        code = run() or 0
        sys.stdout.flush()
        if sys.stdout.error is not None:
            raise SempaError(f"standard output cannot be written: {sys.stdout.error.strerror}")
        return code
    # `OSError`: a path that is too long or forbidden, wherever in the code it is first touched.
    except (SempaError, OSError) as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        # Torch's own, by its name: a command's help should not wait for torch.
        if type(error).__name__ != "OutOfMemoryError":
            raise
        advice = "less at once needs less: a smaller --batch-size; to train, row_tokens or checkpoint_activations=true"
        print(f"{program}: {SempaError(str(error))}; {advice}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"{program}: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return 130
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
