"""Score readouts and adapters: Spearman's rho x 100 on similarity sets, with 95 % intervals and a paired test against
the base model's prompteol row; or, with --transfer, the accuracy of logistic regression on the embeddings. Finished
rows are kept: the same command resumes.
"""

import argparse
from pathlib import Path

from sempa.commands.common import add_base_arguments, at_least, base_name
from sempa.errors import SempaError
from sempa.io.files import check_output, user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    add_base_arguments(parser)
    text = "run or adapter; repeatable"
    parser.add_argument("--adapter", action="append", type=user_path, default=[], metavar="RUN", help=text)
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--sts", type=user_path, metavar="PATH", help="SentEval STS folder, or a file of scored pairs")
    text = "rt-polarity.*, custrev.*, subj.*, mpqa.*, stsa.binary.*, TREC.*, msr_paraphrase_*.txt in one folder"
    data.add_argument("--transfer", type=user_path, metavar="FOLDER", help=text)
    text = "base readouts: all, or a list of READOUT or READOUT@LAYER (default all; prompteol with --transfer)"
    parser.add_argument("--readouts", help=text)
    parser.add_argument("--adapter-readouts", default="", help="readouts of every adapter (default: its own)")
    parser.add_argument("--sets", default="", help="some of the sets, such as STS12,STS-B or CR,TREC (default: all)")
    text = "splits of STS-B, SICK and files with a split column (default %(default)s)"
    parser.add_argument("--splits", default="test", help=text)
    parser.add_argument("--columns", default="sentence1,sentence2,score", help="of pair files (default %(default)s)")
    parser.add_argument("--pairs", type=at_least(0), default=0, help="sample this many pairs of each set (0: all)")
    parser.add_argument("--resamples", type=at_least(1), default=1000, help="bootstrap draws (default %(default)s)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed of draws and sample (default %(default)s)")
    parser.add_argument("--output", type=user_path, default=Path("runs/table"), help="folder (default %(default)s)")


def run(arguments: argparse.Namespace) -> None:
    """Measure the rows that are missing, then print and write the table."""
    from sempa.data.sts import SETS, read_sts, sample_task
    from sempa.data.transfer import TASKS, read_transfer
    from sempa.evaluation.table import measure_rows, parse_methods, summarise
    from sempa.evaluation.transfer import measure_transfer, summarise_transfer
    from sempa.io.origin import origin
    from sempa.model.adapter_files import adapter_folder, adapter_readout
    from sempa.model.base import load_base
    from sempa.report.table import similarity_content, transfer_content, write_table

    arguments.readouts = arguments.readouts or ("prompteol" if arguments.transfer else "all")
    methods = parse_methods(arguments.readouts)
    adapters = [adapter_folder(path) for path in arguments.adapter]
    for adapter in adapters:
        methods += parse_methods(arguments.adapter_readouts or adapter_readout(adapter), str(adapter))
    if arguments.adapter_readouts and not adapters:
        raise SempaError("adapter-readouts: there is no --adapter to read")
    check_output(arguments.output, folder=True)
    sets = [name.strip() for name in arguments.sets.split(",")] if arguments.sets else None
    if arguments.transfer:
        tasks = read_transfer(arguments.transfer, sets or TASKS)
    else:
        columns = [name.strip() for name in arguments.columns.split(",")]
        if len(columns) != 3:
            raise SempaError(f"columns: found {arguments.columns!r}, expected three names")
        for suffix in ("json", "csv", "md", "html"):
            check_output(arguments.output / f"table.{suffix}", arguments.sts)
        tasks = read_sts(arguments.sts, arguments.splits.split(","), columns, sets or SETS)
        if arguments.pairs:
            tasks = [sample_task(task, arguments.pairs, arguments.seed) for task in tasks]
    name, *others = dict.fromkeys(base_name(arguments.model, adapter) for adapter in adapters or [None])
    if others:
        raise SempaError(f"adapter: found adapters of {name} and {others[0]}, expected one base; or name it by --model")
    base = load_base(name, arguments.dtype, arguments.device)
    settings = {key: str(value) for key, value in vars(arguments).items() if key != "run"}
    report = {"model": name, "base_source": base.source, "settings": settings, **origin(base.model)}
    rows = arguments.output / "rows"
    if arguments.transfer:
        report |= summarise_transfer(measure_transfer(base, methods, tasks, rows, arguments.seed), tasks)
        name, content = "transfer", transfer_content(report)
    else:
        report |= summarise(measure_rows(base, methods, tasks, rows), arguments.resamples, arguments.seed)
        name, content = "table", similarity_content(report)
    print(write_table(arguments.output, name, report, content))
    print(f"table: {arguments.output / f'{name}.html'}")
