"""`sempa uncertainty`: how sure the model is of its answer."""

import argparse

from sempa.commands.common import add_model_arguments, add_readout_arguments, load_embedder, seed_number


def add(commands: "argparse._SubParsersAction") -> None:
    """Describe the command's arguments."""
    parser = commands.add_parser(
        "uncertainty",
        help="measure how unsure the model is of its answer to a prompt",
        description="Draw several answers to a prompt and compare what they mean: 0 when all agree. Beside it the "
        "same of the hidden states that drew them, the nats per token, and the nats per answer.",
    )
    add_model_arguments(parser)
    add_readout_arguments(parser)
    parser.add_argument("prompt", help="what the user says, in quotes")
    parser.add_argument("--answers", type=int, default=10, help="answers to draw, 2 or more (default %(default)s)")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="longest answer (default %(default)s)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the draws, above 0 (default %(default)s)")
    parser.add_argument(
        "--seed", type=seed_number, default=0, help="another one draws other answers (default %(default)s)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the answers and the four scores."""
    from sempa.page import text_table
    from sempa.semantic_uncertainty import uncertainty

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
        ["amortised (1 - mean cosine)", f"{found.amortised:.4f}"],
        ["length-normalised (nats per token)", f"{found.length_normalised:.4f}"],
        ["predictive entropy (nats per answer)", f"{found.entropy:.4f}"],
    ]
    print("\n" + text_table("Uncertainty", ["score", "value"], rows))
