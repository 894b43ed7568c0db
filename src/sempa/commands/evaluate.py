"""`sempa evaluate`: similarity benchmarks and language-model drift."""

import argparse

from sempa.commands.common import add_model_arguments, add_readout_arguments, add_task_arguments, load_embedder
from sempa.io.files import check_output, user_path


def add(commands: "argparse._SubParsersAction") -> None:
    """Describe the command's arguments."""
    parser = commands.add_parser(
        "evaluate",
        help="score similarity benchmarks and language-model drift of a base model and its adapter",
        description="Spearman's rho x 100 on similarity benchmarks, and perplexity and KL on unseen text, with the "
        "adapter off and on.",
    )
    add_model_arguments(parser)
    add_readout_arguments(parser)
    add_task_arguments(parser)
    parser.add_argument("--gsm8k", type=user_path, metavar="FILE", help="GSM8K file (JSON lines) for perplexity")
    parser.add_argument("--no-retention", action="store_true", help="score similarity only")
    parser.add_argument("--json", type=user_path, metavar="FILE", help="also write the figures to this file")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure with the adapter off and on, and print the tables."""
    from sempa.data.sts import read_sts
    from sempa.evaluation.drift import measure_drift
    from sempa.evaluation.eval_texts import report_texts
    from sempa.evaluation.measure import builtin_task, measure_sts
    from sempa.io.files import write_json
    from sempa.report.run_report import terminal_table

    if arguments.json:
        check_output(arguments.json)
    tasks = [builtin_task(arguments.builtin_pairs)] if arguments.builtin_pairs else []
    if arguments.sts:
        tasks += read_sts(arguments.sts, arguments.splits.split(","))
    texts = report_texts(arguments.gsm8k)
    embedder = load_embedder(arguments)
    report: dict[str, object] = {
        "model": arguments.model,
        "adapter": str(arguments.adapter or ""),
        "notes": [note for task in tasks for note in task.notes],
    }
    if tasks:
        report["sts"], *_ = measure_sts(embedder.base, tasks, embedder.readout, embedder.layer)
    if not arguments.no_retention:
        report["retention"] = measure_drift(embedder.base, texts)
    print(terminal_table(report))
    if arguments.json:
        write_json(arguments.json, report)
