"""The command line as a process of its own: `sempa`, or `python -m sempa`."""

import signal
import sys

from sempa.cli import main


def run() -> int:
    """The exit code of the command line, which SIGTERM ends as Ctrl-C does: nothing half-written stays behind."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return main()


if __name__ == "__main__":
    sys.exit(run())
