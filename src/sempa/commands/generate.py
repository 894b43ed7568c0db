"""Answer a prompt through the chat template, with the adapter when one is given."""

import argparse

from sempa.commands.common import add_model_arguments, load_embedder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    add_model_arguments(parser)
    parser.add_argument("prompt", help="what the user says, in quotes")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="longest answer (default %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Print the greedy answer."""
    from sempa.evaluation.drift import generate

    print(generate(load_embedder(arguments).base, arguments.prompt, arguments.max_new_tokens))
