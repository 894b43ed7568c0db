"""`sempa evaluate`: similarity benchmarks and what is left of the language model."""

import argparse
from pathlib import Path

from sempa.commands.common import add_model_arguments, add_readout_arguments, load_embedder


def add(commands: "argparse._SubParsersAction") -> None:
    """Describe the command's arguments."""
    parser = commands.add_parser(
        "evaluate",
        help="score similarity benchmarks and retention of a base model and its adapter",
        description="Spearman's rho x 100 on similarity benchmarks, and perplexity and KL on unseen text, with the "
        "adapter off and on.",
    )
    add_model_arguments(parser)
    add_readout_arguments(parser)
    parser.add_argument("--sts", metavar="PATH", help="SentEval STS12-16, STS-B or SICK folder, or a scored-pairs file")
    parser.add_argument(
        "--splits", default="dev,trial,test", help="splits of STS-B and SICK to score (default %(default)s)"
    )
    parser.add_argument(
        "--builtin-pairs", type=int, default=600, help="pairs of the built-in set (default %(default)s)"
    )
    parser.add_argument("--gsm8k", default="", metavar="FILE", help="GSM8K file (JSON lines) for perplexity")
    parser.add_argument(
        "--text", action="append", default=[], type=Path, metavar="FILE", help="texts of your own (see sempa retention)"
    )
    parser.add_argument("--no-retention", action="store_true", help="score similarity only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure with the adapter off and on, and print the table."""
    from sempa.evaluation.measure import builtin_task, gsm8k_sample, measure_generation, measure_sts
    from sempa.evaluation.sts import left_out, read_sts
    from sempa.io.files import write_json
    from sempa.report.run_report import terminal_table

    tasks = [builtin_task(arguments.builtin_pairs)] if arguments.builtin_pairs else []
    if arguments.sts:
        tasks += read_sts(arguments.sts, arguments.splits.split(","))
    notes = left_out(tasks)
    for note in notes:
        print(note)
    problems = gsm8k_sample(arguments.gsm8k)
    embedder = load_embedder(arguments)
    base = embedder.base
    report: dict[str, object] = {
        "model": arguments.model,
        "adapter": str(arguments.adapter or ""),
        "notes": notes,
    }
    if tasks:
        report["sts"], *_ = measure_sts(base, tasks, embedder.readout, embedder.layer)
    if not arguments.no_retention:
        report["retention"], _ = measure_generation(base, problems, 0, arguments.text)
    print(terminal_table(report))
    if arguments.json:
        write_json(arguments.json, report)
