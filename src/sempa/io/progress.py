"""Progress on standard error: a bar on a terminal, plain lines in a log."""

import os
import sys

from tqdm import tqdm

# Seconds between two lines of a log.
_EVERY = 60.0


class _Log:
    """What tqdm would draw over its last drawing, as a line of its own."""

    def write(self, text: str) -> None:
        if line := text.strip():
            print(line, file=sys.stderr)


def bar(total: int, what: str, unit: str) -> tqdm:
    """A bar with rate and time left; in a log a line a minute. Nothing without `what`; rank 0 alone shows any."""
    drawn = sys.stderr.isatty() or "ipykernel" in sys.modules  # a notebook's cell redraws a line, too
    log = {} if drawn else {"mininterval": _EVERY, "maxinterval": _EVERY, "delay": _EVERY, "file": _Log()}
    silent = not what or os.environ.get("RANK", "0") != "0"
    return tqdm(total=total, desc=what, unit=unit, disable=silent, **log)
