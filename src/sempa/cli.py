"""The command line: parses, runs one command, and turns errors into a sentence and an exit code."""

import argparse
import sys
import warnings
from collections.abc import Sequence

from sempa import __version__
from sempa.commands import (
    embed,
    evaluate,
    export,
    generate,
    lm_eval,
    serve,
    similarity,
    table,
    train,
)
from sempa.errors import SempaError
from sempa.io.streams import lasting_streams

COMMANDS = (
    train,
    *(embed, similarity),
    *(evaluate, table, lm_eval),
    *(generate, serve, export),
)
_EPILOGUE = """\
Bad input ends with one sentence and exit code 2; Ctrl-C while training saves a checkpoint and exits with code 130.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for bad input, 130 for an interrupt."""
    with lasting_streams() as output:
        code = _run(argv)
        output.flush()
        if output.error is not None and not code:
            print(f"sempa: standard output cannot be written: {output.error.strerror}", file=sys.stderr)
            return 2
        return code


def _run(argv: Sequence[str] | None) -> int:
    parser = _parser()
    try:
        arguments = parser.parse_args(argv)
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            arguments.run(arguments)
    except SempaError as error:
        print(f"sempa: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"sempa: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return 130
    return 0


def _show_warning(message: Warning | str, category: type[Warning], *_place: object) -> None:
    """A warning as one line; warnings that libraries address to developers are left out."""
    if issubclass(category, UserWarning):
        print(f"sempa: warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sempa",
        description="SemPA: sentence-level preference alignment makes a chat LLM a sentence encoder that still talks.",
        epilog=_EPILOGUE,
    )
    parser.add_argument("--version", action="version", version=f"sempa {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser
