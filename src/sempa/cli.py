"""The command line: parses, runs one command, and turns errors into a sentence and an exit code."""

import argparse
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

from sempa import __version__
from sempa.errors import SempaError
from sempa.io.streams import exit_code

# Each command is a module of `sempa.commands`, which is imported when the command is asked for.
COMMANDS = {
    "align": {"train": "align a model on triplets and report what changed"},
    "embed": {
        "embed": "embed the sentences of a file, or a corpus of any size",
        "similarity": "print the cosine of two or more sentences",
    },
    "evaluate": {
        "evaluate": "measure similarity, geometry and drift of an adapter",
        "table": "score readouts and adapters as in the paper's main table",
        "lm-eval": "run lm-evaluation-harness on a base model and its adapter",
    },
    "serve and export": {
        "generate": "let the model answer a prompt",
        "serve": "serve embeddings and chat over HTTP to OpenAI's clients",
        "export": "write an aligned model for vLLM, llama.cpp and other tools",
    },
}
_EPILOGUE = """\
sempa COMMAND --help explains a command. Bad input ends with one sentence and
exit code 2; Ctrl-C while training saves a checkpoint and exits with code 130.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for bad input, 130 for an interrupt."""
    return exit_code("sempa", lambda: _run(sys.argv[1:] if argv is None else argv))


def _run(argv: Sequence[str]) -> None:
    asked = next((word for word in argv if not word.startswith("-")), "")
    arguments = make_parser(only=asked).parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        arguments.run(arguments)


class Parser(argparse.ArgumentParser):
    """argparse with one sentence for wrong arguments."""

    def error(self, message: str) -> NoReturn:
        """Raise `SempaError` instead of printing the usage."""
        raise SempaError(f"{message} (see {self.prog} --help)")


def make_parser(only: str | None = None) -> argparse.ArgumentParser:
    """The parser of all commands; with `only`, just that command's module is imported and its arguments added."""
    lines = {group: "".join(f"  {name:12}{text}\n" for name, text in own.items()) for group, own in COMMANDS.items()}
    parser = Parser(
        prog="sempa",
        usage="sempa COMMAND ...",
        description="Sentence-level preference alignment: a chat LLM learns to embed and still chats.",
        epilog="\n".join([*(f"{group}:\n{own}" for group, own in lines.items()), _EPILOGUE]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"sempa {__version__}")
    # The help lists commands by task, in the epilogue; generators of shell completions read argparse's own list.
    listed = None if only is None else argparse.SUPPRESS
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", prog="sempa", help=listed)
    for name, text in (command for group in COMMANDS.values() for command in group.items()):
        subparser = subparsers.add_parser(name, help=text)
        if only in (None, name):
            module = import_module(f"sempa.commands.{name.replace('-', '_')}")
            subparser.description = module.__doc__
            subparser.set_defaults(run=module.run)
            module.add_arguments(subparser)
    return parser


def _show_warning(message: Warning | str, category: type[Warning], *_place: object) -> None:
    """Print a `UserWarning` as one line, and drop the kinds that libraries address to developers."""
    if issubclass(category, UserWarning):
        print(f"sempa: warning: {SempaError(str(message))}", file=sys.stderr)
