"""`sempa uncertainty`: how sure the model is of its answer."""

import argparse
from pathlib import Path

from sempa.commands.common import add_draw_arguments, add_model_arguments, add_readout_arguments, load_embedder


def add(commands: "argparse._SubParsersAction") -> None:
    """Describe the command's arguments."""
    parser = commands.add_parser(
        "uncertainty",
        help="measure how unsure the model is of its answer to a prompt",
        description="Draw several answers to a prompt and compare what they mean: 0 when all agree. Beside it the "
        "nats per token, and the nats per answer.",
        epilog="sempa amortise fits a map that foresees the first after one pass over the prompt: --one-pass MAP.",
    )
    add_model_arguments(parser)
    add_readout_arguments(parser)
    parser.add_argument("prompt", help="what the user says, in quotes")
    add_draw_arguments(parser)
    parser.add_argument(
        "--one-pass",
        type=Path,
        metavar="MAP",
        help="draw no answer, foresee the first score by this map; drawing and readout are those it was fitted to",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the answers and the three scores, or the one that is foreseen."""
    from sempa.amortised import load_amortised
    from sempa.report.html import text_table
    from sempa.semantic_uncertainty import uncertainty

    if arguments.one_pass:
        fitted = load_amortised(arguments.one_pass)
        print(f"{fitted(load_embedder(arguments).base, [arguments.prompt])[0]:.4f}")
        return
    found = uncertainty(
        arguments.prompt,
        arguments.answers,
        load_embedder(arguments),
        max_new_tokens=arguments.max_new_tokens,
        temperature=arguments.temperature,
        seed=arguments.seed,
    )
    for answer in found.answers:
        print(" ".join(answer.split()))
    rows = [
        ["semantic (1 - mean cosine)", f"{found.semantic:.4f}"],
        ["length-normalised (nats per token)", f"{found.length_normalised:.4f}"],
        ["predictive entropy (nats per answer)", f"{found.entropy:.4f}"],
    ]
    print("\n" + text_table("Uncertainty", ["score", "value"], rows))
