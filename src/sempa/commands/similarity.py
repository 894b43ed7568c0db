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
    vectors = load_embedder(arguments).encode([arguments.first, *arguments.others], normalize=True).astype("float64")
    for other, vector in zip(arguments.others, vectors[1:], strict=True):
        cosine = float(vectors[0] @ vector)
        print(f"{cosine:.4f}" if len(arguments.others) == 1 else f"{cosine:.4f}  {other}")
