"""`sempa amortise`: fit the map that foresees a prompt's uncertainty after one pass."""

import argparse
from pathlib import Path

from sempa.commands.common import add_draw_arguments, add_model_arguments, add_readout_arguments, load_embedder


def add(commands: "argparse._SubParsersAction") -> None:
    """Describe the command's arguments."""
    parser = commands.add_parser(
        "amortise",
        help="fit a map that foresees the model's uncertainty without drawing answers",
        description="Draw answers to every prompt of a file, measure how much they disagree, and fit a linear map from "
        "the model's state before it answers to that. Prints how well each prompt is foreseen from all the others.",
        epilog='Then: sempa uncertainty --one-pass MAP "a prompt"',
    )
    add_model_arguments(parser)
    add_readout_arguments(parser)
    parser.add_argument("prompts", type=Path, help="prompts like those to be asked: one a line, or a field of a table")
    parser.add_argument("map", type=Path, help="JSON file to write")
    parser.add_argument("--field", default="text", help="column or field that holds the prompt (default %(default)s)")
    add_draw_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Fit the map, write it, and print what it is worth."""
    from sempa.amortised import amortise, save_amortised
    from sempa.embedding.corpus import read_sentences
    from sempa.errors import SempaError
    from sempa.evaluation.statistics import spearman

    prompts = list(read_sentences(arguments.prompts, arguments.field))
    if arguments.map.is_dir():
        raise SempaError(f"{arguments.map}: is a folder, expected a file to write the map to")
    fitted, sampled, foreseen = amortise(
        load_embedder(arguments),
        prompts,
        arguments.answers,
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        seed=arguments.seed,
    )
    save_amortised(arguments.map, fitted)
    rank = spearman(foreseen, sampled)
    print(
        f"{len(prompts):,} prompts, uncertainty {sampled.min():.4f} to {sampled.max():.4f}, mean {sampled.mean():.4f}"
    )
    print(f"foreseen from all the others: Spearman's rho x 100 with what was sampled {rank:.1f}")
    print(f"map: {arguments.map}")
