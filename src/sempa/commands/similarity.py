"""Print the cosine similarity (-1 to 1) of the first sentence to each of the others."""

import argparse

from sempa.commands.common import add_model_arguments, add_readout_arguments, load_embedder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    add_model_arguments(parser)
    add_readout_arguments(parser)
    parser.add_argument("first", help="a sentence, in quotes")
    parser.add_argument("others", nargs="+", metavar="other", help="one or more sentences to compare it with")


def run(arguments: argparse.Namespace) -> None:
    """Print one cosine per other sentence."""
    embedder = load_embedder(arguments)
    vectors = embedder.encode([arguments.first, *arguments.others])
    for other, cosine in zip(arguments.others, embedder.similarity(vectors[0], vectors[1:])[0], strict=True):
        print(f"{cosine:.4f}" if len(arguments.others) == 1 else f"{cosine:.4f}  {other}")
