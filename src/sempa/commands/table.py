"""Spearman's rho x 100 of readouts and adapters on similarity sets, with 95 % intervals and a paired test against the
base model's prompteol row; or, with --transfer, the accuracy of logistic regression on the embeddings. Finished rows
are kept: the same command goes on.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from sempa.commands.common import add_base_arguments, base_name, seed_number
from sempa.errors import SempaError
from sempa.io.files import check_output, user_path

if TYPE_CHECKING:
    from sempa.data.sts import StsTask
    from sempa.data.transfer import TransferTask


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's arguments."""
    add_base_arguments(parser)
    parser.add_argument(
        "--adapter",
        action="append",
        type=user_path,
        default=[],
        metavar="RUN",
        help="run folder, or LoRA adapter folder; may be given several times",
    )
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("--sts", type=user_path, metavar="PATH", help="SentEval STS folder, or one scored-pairs file")
    data.add_argument(
        "--transfer", type=user_path, metavar="FOLDER", help="SentEval's files of MR, CR, SUBJ, MPQA, SST2, TREC, MRPC"
    )
    parser.add_argument(
        "--readouts",
        help="of the base model: all, or a list of READOUT or READOUT@LAYER (default all; prompteol with --transfer)",
    )
    parser.add_argument(
        "--adapter-readouts", default="", help="the same for every adapter (default: what it was trained at)"
    )
    parser.add_argument(
        "--sets", default="", help="some of the seven names of each kind, such as STS12,STS-B or CR,TREC (default: all)"
    )
    parser.add_argument(
        "--splits",
        default="test",
        help="split of STS-B, SICK and files with a split column: test, or dev,trial (default %(default)s)",
    )
    parser.add_argument(
        "--columns", default="sentence1,sentence2,score", help="columns of a scored-pairs file (default %(default)s)"
    )
    parser.add_argument(
        "--pairs", type=int, default=0, help="a sample of so many pairs of each set, for a first look (default 0: all)"
    )
    parser.add_argument("--resamples", type=int, default=1000, help="bootstrap draws, 0 for none (default %(default)s)")
    parser.add_argument(
        "--seed", type=seed_number, default=0, help="seed of the draws, and of the sample (default %(default)s)"
    )
    parser.add_argument(
        "--output",
        type=user_path,
        default=Path("runs/table"),
        metavar="FOLDER",
        help="where to write (default %(default)s)",
    )
    only_sts = {name: parser.get_default(name) for name in ("splits", "columns", "pairs", "resamples")}
    parser.set_defaults(only_sts=only_sts)


def run(arguments: argparse.Namespace) -> None:
    """Measure the rows that are missing, then print and write the table."""
    from sempa.evaluation.table import parse_methods
    from sempa.io.origin import versions
    from sempa.model.adapter_files import adapter_folder, adapter_readout
    from sempa.model.base import load_base

    arguments.readouts = arguments.readouts or ("prompteol" if arguments.transfer else "all")
    methods = parse_methods(arguments.readouts)
    adapters = [adapter_folder(path) for path in arguments.adapter]
    for adapter in adapters:
        methods += parse_methods(arguments.adapter_readouts or adapter_readout(adapter), str(adapter))
    check_output(arguments.output, folder=True)
    tasks = _transfer_tasks(arguments) if arguments.transfer else _similarity_tasks(arguments)
    name = base_name(arguments.model, adapters[0] if adapters else None)
    base = load_base(name, arguments.dtype, arguments.device)
    settings = {key: str(value) for key, value in vars(arguments).items() if key not in ("run", "only_sts")}
    report = {"model": name, "base_source": base.source, "settings": settings, "versions": versions()}
    rows = arguments.output / "rows"
    if arguments.transfer:
        from sempa.evaluation.transfer import measure_transfer, summarise_transfer
        from sempa.report.transfer import terminal, write_transfer

        predictions = measure_transfer(base, methods, tasks, rows, arguments.seed)
        report |= summarise_transfer(predictions, tasks)
        write_transfer(arguments.output, report)
    else:
        from sempa.evaluation.table import measure_rows, summarise
        from sempa.report.table import terminal, write_table

        measured = measure_rows(base, methods, tasks, rows)
        report |= summarise(measured, arguments.resamples, arguments.seed)
        write_table(arguments.output, report)
    print(terminal(report))
    print(f"table: {arguments.output / ('transfer.md' if arguments.transfer else 'table.html')}")


def _transfer_tasks(arguments: argparse.Namespace) -> list["TransferTask"]:
    from sempa.data.transfer import TASKS, read_transfer

    for option, default in arguments.only_sts.items():
        if getattr(arguments, option) != default:
            raise SempaError(f"{option}: goes with --sts, found it with --transfer")
    return read_transfer(arguments.transfer, arguments.sets.split(",") if arguments.sets else TASKS)


def _similarity_tasks(arguments: argparse.Namespace) -> list["StsTask"]:
    from sempa.data.sts import SETS, read_sts, sample_task

    if arguments.resamples < 0:
        raise SempaError(f"resamples: found {arguments.resamples}, expected 0 or more")
    if arguments.pairs < 0 or arguments.pairs == 1:
        raise SempaError(f"pairs: found {arguments.pairs}, expected 2 or more, or 0 for all")
    columns = tuple(name.strip() for name in arguments.columns.split(","))
    if len(columns) != 3:
        raise SempaError(f"columns: found {arguments.columns!r}, expected three names")
    splits = arguments.splits.split(",")
    sets = arguments.sets.split(",") if arguments.sets else SETS
    if unknown := [name for name in sets if name not in SETS]:
        raise SempaError(f"sets: found {unknown[0]!r}, expected some of {','.join(SETS)}")
    tasks = read_sts(arguments.sts, splits, columns, sets)
    return [sample_task(task, arguments.pairs, arguments.seed) for task in tasks] if arguments.pairs else tasks
