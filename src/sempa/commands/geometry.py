"""`sempa geometry`: how the embeddings fill their space, before and after alignment."""

import argparse

from sempa.commands.common import add_model_arguments, add_readout_arguments, add_task_arguments, load_embedder
from sempa.io.files import check_output, user_path


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
    add_task_arguments(parser)
    parser.add_argument("--json", type=user_path, metavar="FILE", help="also write the figures to this file")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Measure every task, and print the tables."""
    from sempa.data.examples import distinct_sentences
    from sempa.data.sts import read_sts
    from sempa.evaluation.measure import builtin_task, embed_sides, measure_geometry
    from sempa.io.files import write_json
    from sempa.report.run_report import terminal_table

    if arguments.json:
        check_output(arguments.json)
    if arguments.sts:
        tasks = read_sts(arguments.sts, arguments.splits.split(","))
    else:
        tasks = [builtin_task(arguments.builtin_pairs)]
    embedder = load_embedder(arguments)
    readout, layer = embedder.readout, embedder.layer
    sentences = distinct_sentences(pair for task in tasks for pair in task.pairs)
    sides = embed_sides(embedder.base, sentences, readout, layer, aligned=arguments.adapter is not None)
    report = {
        "model": arguments.model,
        "adapter": str(arguments.adapter or ""),
        "readout": readout,
        "layer": layer,
        "notes": [note for task in tasks for note in task.notes],
        "geometry": [measure_geometry(task, sides) for task in tasks],
    }
    print(terminal_table(report))
    if arguments.json:
        write_json(arguments.json, report)
