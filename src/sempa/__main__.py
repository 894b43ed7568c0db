"""The command line as a process of its own: `sempa`, or `python -m sempa`."""

import signal
import sys

from sempa.cli import main


def run() -> int:
    """Run the command line and return its exit code; SIGTERM ends it as Ctrl-C does, without half-written files."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return main()


if __name__ == "__main__":
    sys.exit(run())
