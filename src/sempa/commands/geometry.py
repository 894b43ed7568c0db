"""`sempa geometry`: how the embeddings fill their space, before and after alignment."""

import argparse
from pathlib import Path

from sempa.commands.common import add_model_arguments, add_readout_arguments, load_embedder


def add(commands: "argparse._SubParsersAction") -> None:
    """Describe the command's arguments."""
    parser = commands.add_parser(
        "geometry",
        help="measure alignment, uniformity, isotropy and hubness of the embeddings",
        description="Alignment, uniformity, isotropy, effective rank and hubness of the embeddings of similarity "
        "benchmarks, with the adapter off and on.",
    )
    add_model_arguments(parser)
    add_readout_arguments(parser)
    parser.add_argument(
        "--sts",
        metavar="PATH",
        help="SentEval STS12-16, STS-B or SICK folder, or a scored-pairs file (default: built-in pairs)",
    )
    parser.add_argument("--splits", default="dev,trial,test", help="splits of STS-B and SICK (default %(default)s)")
    parser.add_argument(
        "--builtin-pairs", type=int, default=600, help="pairs of the built-in set (default %(default)s)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="also write geometry.json and geometry.html there"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure every task, print the tables, and write the page."""
    from sempa.evaluation.compare_spaces import measure_tasks
    from sempa.evaluation.measure import builtin_task
    from sempa.evaluation.sts import left_out, read_sts
    from sempa.report.geometry import space_tables, write_space
    from sempa.report.html import text_table

    if arguments.sts:
        tasks = read_sts(arguments.sts, arguments.splits.split(","))
    else:
        tasks = [builtin_task(arguments.builtin_pairs)]
    embedder = load_embedder(arguments)
    aligned = arguments.adapter is not None
    report = {"model": arguments.model, "adapter": str(arguments.adapter or "")}
    report |= {"readout": embedder.readout, "layer": embedder.layer, "notes": left_out(tasks)}
    report |= measure_tasks(embedder.base, tasks, embedder.readout, embedder.layer, aligned)
    print("\n\n".join(text_table(*table) for table in space_tables(report)))
    for note in report["notes"]:
        print(note)
    if arguments.output:
        write_space(arguments.output, report)
        print(f"{arguments.output / 'geometry.html'}   {arguments.output / 'geometry.json'}")
