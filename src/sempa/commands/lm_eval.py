"""Run lm-evaluation-harness (the extra `lm-eval`) with the adapter off and on: by default the paper's MMLU 5-shot,
GSM8K-CoT 8, HellaSwag 0, TruthfulQA-MC1 0 and DROP 3.
"""

import argparse

from sempa.commands.common import add_model_arguments, at_least, load_embedder
from sempa.errors import SempaError
from sempa.io.files import check_output, user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    parser.epilog = "The harness writes its own result and sample files below OUTPUT/base and OUTPUT/aligned."
    add_model_arguments(parser)
    parser.add_argument("--tasks", default="", metavar="A,B,…", help="the harness's tasks, or YAML files of your own")
    parser.add_argument("--apply-chat-template", action="store_true", help="ask through the model's chat template")
    parser.add_argument("--limit", type=at_least(1), metavar="N", help="only the first N problems of each task")
    parser.add_argument("--batch-size", type=at_least(1), default=8, help="sequences at a time (default %(default)s)")
    parser.add_argument("--output", type=user_path, metavar="FOLDER", help="default: lm_eval beside the adapter")


def run(arguments: argparse.Namespace) -> None:
    """Run the tasks, and print base, aligned and change."""
    from sempa.integrations.lm_eval import PAPER_TASKS, run_harness
    from sempa.model.adapter_files import adapter_folder
    from sempa.report.render import number, text_table

    if arguments.adapter is None:
        raise SempaError("lm-eval: give --adapter RUN/adapter; it is compared with its base")
    tasks = dict.fromkeys(filter(None, map(str.strip, arguments.tasks.split(",")))) or PAPER_TASKS
    output = arguments.output or adapter_folder(arguments.adapter).parent / "lm_eval"
    check_output(output, folder=True)
    base = load_embedder(arguments, merged=False).base
    options = {name: getattr(arguments, name) for name in ("limit", "batch_size", "apply_chat_template")}
    rows = run_harness(base, str(arguments.adapter.resolve()), output, list(tasks), **options)
    cells = []
    for row in rows:
        sides = (f"{number(row[side], '.4f')} ± {number(row[f'{side}_stderr'], '.4f')}" for side in ("base", "aligned"))
        change = f"{row['change']:+.4f} ± {number(row['change_stderr'], '.4f')}"
        cells.append([row["task"], str(row["shots"]), row["metric"], *sides, change])
    columns = ["task", "shots", "metric", "base ± stderr", "aligned ± stderr", "change ± paired stderr"]
    title = "lm-evaluation-harness" + (f", first {arguments.limit} of each task" if arguments.limit else "")
    print(text_table(title, columns, cells))
    print(f"\nFiles: {output}")
