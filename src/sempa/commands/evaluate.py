"""Spearman's rho x 100 on similarity benchmarks, the geometry of their embeddings, perplexity and KL(base || aligned)
on unseen text, and greedy answers, with the adapter off and on.
"""

import argparse

from sempa.commands.common import add_model_arguments, add_readout_arguments, add_task_arguments, load_embedder
from sempa.errors import SempaError
from sempa.io.files import check_output, user_path

_FORMATS = """\
A text file holds passages with blank lines between them, or JSON lines: {"text": ...} or {"question": ..., "answer":
...}. Of a question and its answer the answer's tokens count.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.epilog = _FORMATS
    add_model_arguments(parser)
    add_readout_arguments(parser)
    add_task_arguments(parser)
    parser.add_argument(
        "--geometry", action="store_true", help="also measure alignment, uniformity, isotropy and hubness of each task"
    )
    parser.add_argument(
        "--texts",
        nargs="+",
        type=user_path,
        default=[],
        metavar="FILE",
        help="texts for perplexity beside the built-in",
    )
    parser.add_argument("--gsm8k", type=user_path, metavar="FILE", help="GSM8K file (JSON lines) for perplexity")
    parser.add_argument("--no-retention", action="store_true", help="leave the language model out")
    parser.add_argument("--prompts", type=user_path, metavar="FILE", help="prompts to answer greedily, one a line")
    parser.add_argument("--max-new-tokens", type=int, default=64, help="longest answer (default %(default)s)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first of each file's texts and prompts")
    parser.add_argument("--json", type=user_path, metavar="FILE", help="also write the figures to this file")


def run(arguments: argparse.Namespace) -> None:
    """Measure with the adapter off and on, and print the tables."""
    from sempa.data.sts import read_sts
    from sempa.evaluation.drift import generate_side_by_side, measure_drift
    from sempa.evaluation.eval_texts import read_prompts, read_texts, report_texts
    from sempa.evaluation.measure import builtin_task, measure_geometry, measure_sts
    from sempa.io.files import write_json
    from sempa.report.run_report import terminal_table

    for name in ("limit", "max_new_tokens"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise SempaError(f"{name}: found {value}, expected at least 1")
    if arguments.json:
        check_output(arguments.json)
    tasks = [builtin_task(arguments.builtin_pairs)] if arguments.builtin_pairs else []
    if arguments.sts:
        tasks += read_sts(arguments.sts, arguments.splits.split(","))
    texts = report_texts(arguments.gsm8k) | {str(path): read_texts(path, arguments.limit) for path in arguments.texts}
    prompts = read_prompts(arguments.prompts, arguments.limit) if arguments.prompts else []
    embedder = load_embedder(arguments)
    report: dict[str, object] = {
        "model": arguments.model,
        "adapter": str(arguments.adapter or ""),
        "notes": [note for task in tasks for note in task.notes],
    }
    if tasks:
        report["sts"], _, sides = measure_sts(embedder.base, tasks, embedder.readout, embedder.layer)
        if arguments.geometry:
            report["geometry"] = [measure_geometry(task, sides) for task in tasks]
    if not arguments.no_retention:
        report["retention"] = measure_drift(embedder.base, texts)
    if prompts:
        report["generations"] = generate_side_by_side(embedder.base, prompts, arguments.max_new_tokens)
    print(terminal_table(report))
    if arguments.json:
        write_json(arguments.json, report)
