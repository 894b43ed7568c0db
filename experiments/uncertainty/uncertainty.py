"""How sure is the model of its answer? Sample several and compare what they mean, or predict the result in one pass.

python experiments/uncertainty/uncertainty.py ask "What is the capital of Mongolia?"
python experiments/uncertainty/uncertainty.py fit prompts.txt map.json
python experiments/uncertainty/uncertainty.py ask --map map.json "Who wrote Hamlet?"
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from amortised import amortise, load_map, save_map
from semantic_uncertainty import uncertainties

from sempa import SempaError
from sempa.cli import Parser
from sempa.commands.common import add_model_arguments, add_readout_arguments, at_least, load_embedder
from sempa.data.sentences import read_sentences
from sempa.evaluation.statistics import spearman
from sempa.io.files import check_output
from sempa.io.streams import exit_code
from sempa.report.render import text_table


def main(argv: Sequence[str] | None = None) -> None:
    """Run one of the two commands."""
    parser = Parser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    asking = commands.add_parser("ask", help="print sampled answers to a prompt and three scores of uncertainty")
    asking.add_argument("prompt", help="what the user says, in quotes")
    asking.add_argument("--map", type=Path, help="sample nothing: predict the semantic score with this fitted map")
    asking.set_defaults(run=ask)
    fitting = commands.add_parser("fit", help="fit a map that predicts the semantic score without sampling")
    fitting.add_argument("prompts", type=Path, help="prompts like those to be asked: one a line, or a field of a table")
    fitting.add_argument("map", type=Path, help="JSON file to write")
    fitting.add_argument("--field", help="column or field that holds the prompt (default text)")
    fitting.set_defaults(run=fit)
    for command in (asking, fitting):
        add_model_arguments(command)
        add_readout_arguments(command)
        command.add_argument("--answers", type=int, default=10, help="to sample, 2 or more (default %(default)s)")
        command.add_argument("--max-new-tokens", type=int, default=64, help="longest answer (default %(default)s)")
        command.add_argument("--temperature", type=float, default=1.0, help="above 0 (default %(default)s)")
        command.add_argument("--seed", type=at_least(0), default=0, help="of the samples (default %(default)s)")
    arguments = parser.parse_args(argv)
    arguments.run(arguments)


def ask(arguments: argparse.Namespace) -> None:
    """Print the answers and their three scores, or the predicted score alone."""
    if arguments.map:
        fitted = load_map(arguments.map)
        if arguments.readout not in (None, fitted.readout):
            raise SempaError(f"readout: found {arguments.readout}, expected {fitted.readout}, as the map was fitted")
        print(f"{fitted.predict(load_embedder(arguments).base, [arguments.prompt])[0]:.4f}")
        return
    (found,) = uncertainties(load_embedder(arguments), [arguments.prompt], arguments.answers, **_sampling(arguments))
    for answer in found.answers:
        print(" ".join(answer.split()))
    rows = [
        ["semantic (1 - mean cosine)", f"{found.semantic:.4f}"],
        ["length-normalised (nats per token)", f"{found.length_normalised:.4f}"],
        ["predictive entropy (nats per answer)", f"{found.entropy:.4f}"],
    ]
    print("\n" + text_table("Uncertainty", ["score", "value"], rows))


def fit(arguments: argparse.Namespace) -> None:
    """Fit a map, write it, and print how well each prompt is predicted from the others."""
    prompts = [prompt for _, prompt in read_sentences(arguments.prompts, arguments.field)]
    check_output(arguments.map, arguments.prompts)
    fitted, sampled, predicted = amortise(load_embedder(arguments), prompts, arguments.answers, **_sampling(arguments))
    save_map(arguments.map, fitted)
    rank = spearman(predicted, sampled)
    print(
        f"{len(prompts):,} prompts, uncertainty {sampled.min():.4f} to {sampled.max():.4f}, mean {sampled.mean():.4f}"
    )
    print(f"predicted from the others against sampled: Spearman's rho x 100 = {rank:.1f}")
    print(f"map: {arguments.map}")


def _sampling(arguments: argparse.Namespace) -> dict:
    return {name: getattr(arguments, name) for name in ("max_new_tokens", "temperature", "seed")}


if __name__ == "__main__":
    sys.exit(exit_code("uncertainty.py", main))
