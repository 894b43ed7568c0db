"""Progress on standard error: a bar with rate and time left on a terminal, plain lines in a log."""

import contextlib
import sys
import time
from collections.abc import Iterator

from tqdm import tqdm


@contextlib.contextmanager
def bar(total: int, what: str, unit: str) -> Iterator[tqdm]:
    """A bar for work of some seconds or minutes; a log gets one line at its end instead."""
    terminal = sys.stderr.isatty()
    began = time.perf_counter()
    with tqdm(total=total, desc=what, unit=unit, dynamic_ncols=True, disable=not terminal) as drawn:
        yield drawn
    if not terminal:
        print(f"{what}: {total:,} {unit}s in {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
