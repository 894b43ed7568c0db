"""Check the theory: each statement's equation, the largest error found, and the wrong variants that it rejects."""

import argparse
import json
import sys
import textwrap
from collections.abc import Sequence

from sempa.cli import Parser
from sempa.commands.common import at_least
from sempa.errors import SempaError
from sempa.io.files import check_output, finite, user_path, write_json
from sempa.io.streams import exit_code

_WIDTH = 100


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    parser = Parser(
        prog="python -m sempa.verify_theory",
        description="Check by computation that sentence-level DPO under a Plackett-Luce model is contrastive learning: "
        "every statement in float64 on random instances, beside slightly wrong variants (controls) that must fail.",
        epilog="Exit code: 0 when every statement holds and every control is rejected, 1 when one does not, 2 for bad "
        "input. The proofs are in docs/theory.md.",
    )
    parser.add_argument("--statement", action="append", metavar="NAME", help="check this statement only; repeatable")
    parser.add_argument("--list", action="store_true", help="print the names and equations, check nothing")
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed of the instances (default %(default)s)")
    parser.add_argument("--trials", type=at_least(1), default=64, help="instances per size (default %(default)s)")
    parser.add_argument("--model", help="also check finite K with this model: smollm2-135m, a folder, .gguf or hub id")
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="print JSON instead, or write it to FILE")
    parser.add_argument("--plot", type=user_path, metavar="DIR", help="also draw four pictures (PNG) into this folder")
    return exit_code("verify_theory", lambda: _run(parser.parse_args(argv)))


def _run(arguments: argparse.Namespace) -> int:
    from sempa.theory.statement import verify

    if arguments.json not in (None, "-"):
        check_output(user_path(arguments.json))
    if arguments.plot is not None:
        check_output(arguments.plot, folder=True)
    statements = _statements(arguments)
    if arguments.list:
        print("\n".join(f"{statement.name}: {statement.equation}" for statement in statements))
        return 0
    verdicts = []
    for statement in statements:
        verdicts.append(verify(statement, arguments.seed, arguments.trials))
        if arguments.json != "-":
            print(_block(verdicts[-1]), end="\n\n", flush=True)
    passed = all(verdict.passed for verdict in verdicts)
    report = {"passed": passed, **{name: getattr(arguments, name) for name in ("seed", "trials", "model")}}
    report |= {"statements": [verdict.as_dict() for verdict in verdicts]}
    if arguments.json == "-":
        print(json.dumps(finite(report), indent=2, ensure_ascii=False))
    else:
        if arguments.json is not None:
            write_json(user_path(arguments.json), report)
        rejected = [one for verdict in verdicts for one in verdict.controls_rejected.values()]
        print(f"{sum(verdict.worst.holds for verdict in verdicts)} of {len(verdicts)} statements hold; ", end="")
        print(f"{sum(rejected)} of {len(rejected)} wrong variants were rejected by the same checks")
    if arguments.plot is not None:
        from sempa.theory.pictures import draw_all

        for path in draw_all(arguments.plot, arguments.seed):
            print(f"picture: {path}", file=sys.stderr)
    return 0 if passed else 1


def _statements(arguments: argparse.Namespace) -> list:
    """The statements that are wanted, those on the model too where one is given."""
    from sempa.theory import ALL

    statements = list(ALL)
    if arguments.model:
        from sempa.model.base import load_base
        from sempa.theory.on_model import model_statements, score_candidates

        statements += model_statements(score_candidates(load_base(arguments.model, "float32", "cpu"), arguments.seed))
    names = [statement.name for statement in statements]
    wanted = arguments.statement or names
    if unknown := [name for name in wanted if name not in names]:
        raise SempaError(f"--statement: found {unknown[0]!r}, see --list; the model- statements need --model")
    return [statement for statement in statements if statement.name in wanted]


def _block(verdict: object) -> str:
    """One statement as some lines of at most 100 columns."""
    statement, worst = verdict.statement, verdict.worst
    word = "holds" if verdict.passed else "NO POWER" if worst.holds else "FAILS"
    sign = "≤" if worst.holds else "not ≤"
    lines = [
        statement.equation,
        f"error {worst.error:.2g} {sign} {worst.tolerance:.2g}, the nearest of {verdict.measurements}",
        f"tolerance: {statement.tolerance}",
    ]
    for heading, wanted in (("rejected", True), ("NOT REJECTED", False)):
        if controls := [what for what, rejected in verdict.controls_rejected.items() if rejected is wanted]:
            lines.append(f"{heading}: " + " · ".join(controls))
    wrap = textwrap.TextWrapper(_WIDTH, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join([f"{statement.name:<{_WIDTH - 8}}{word:>8}", *map(wrap.fill, lines)])


if __name__ == "__main__":
    sys.exit(main())
