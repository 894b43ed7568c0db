"""Progress on standard error: a bar with rate and time left on a terminal, plain lines in a log."""

import contextlib
import sys
import time
from collections.abc import Iterator

from tqdm import tqdm

_MINUTE = 60.0


@contextlib.contextmanager
def bar(total: int, what: str, unit: str) -> Iterator[tqdm]:
    """A bar for work of some seconds or more; a log gets a line a minute, and one at its end, instead."""
    terminal = sys.stderr.isatty()
    began = time.perf_counter()
    kind, every = (tqdm, 0.1) if terminal else (_Lines, _MINUTE)
    # `maxinterval` would draw more often than `mininterval` from a thread of tqdm's own.
    options = {"mininterval": every, "maxinterval": max(10.0, every), "dynamic_ncols": terminal}
    with kind(total=total, desc=what, unit=unit, **options) as drawn:
        yield drawn
    if not terminal:
        print(f"{what}: {total:,} {unit}s in {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)


class _Lines(tqdm):
    """A bar that says in whole lines how far it is, once it is somewhere between its ends."""

    def display(self, *_: object, **__: object) -> bool:
        rate = self.n / max(self.format_dict["elapsed"], 1e-9)
        if 0 < self.n < self.total:
            left = (self.total - self.n) / rate / _MINUTE
            done = f"{self.desc}: {self.n:,} of {self.total:,} {self.unit}s"
            self.fp.write(f"{done}, {rate:.1f} a second, {left:.1f} minutes left\n")
            self.fp.flush()
        return True

    def close(self) -> None:
        # A bar that was never drawn leaves no line behind.
        self.delay = float("inf")
        super().close()
