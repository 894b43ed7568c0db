"""The command line: parses, runs one command, and turns errors into a sentence and an exit code."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence

from sempa.commands import (
    embed,
    evaluate,
    export,
    generate,
    geometry,
    keytokens,
    lm_eval,
    retention,
    similarity,
    table,
    train,
)
from sempa.errors import SempaError

_EPILOGUE = """\
Bad input ends with one sentence and exit code 2; Ctrl-C while training saves a checkpoint and exits with code 130.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for bad input, 130 for an interrupt."""
    arguments = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            arguments.run(arguments)
    except SempaError as error:
        print(f"sempa: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"sempa: {str(interrupt) or 'interrupted'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe has left; Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return 0


def _show_warning(message: Warning | str, category: type[Warning], *_place: object) -> None:
    """A warning as one line; what libraries tell their developers is no business of the user's."""
    if issubclass(category, UserWarning):
        print(f"sempa: warning: {message}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sempa",
        description="SemPA: sentence-level preference alignment makes a chat LLM a sentence encoder that still talks.",
        epilog=_EPILOGUE,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (
        train,
        embed,
        similarity,
        evaluate,
        retention,
        lm_eval,
        table,
        geometry,
        keytokens,
        generate,
        export,
    ):
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
