"""Progress on standard error."""

import sys

from tqdm import tqdm


def bar(total: int, what: str, unit: str) -> tqdm:
    """A bar with rate and time left, drawn once a minute into a log and not at all where `what` is empty."""
    every = 0.1 if sys.stderr.isatty() else 60.0
    # `maxinterval` would draw more often than `mininterval` from a thread of tqdm's own.
    return tqdm(total=total, desc=what, unit=unit, disable=not what, mininterval=every, maxinterval=max(10.0, every))
