"""The table of transfer tasks as plain text, Markdown, CSV and JSON."""

import csv
import io
from pathlib import Path

from sempa.io.files import write_atomic, write_json
from sempa.report.tables import Table, finite, markdown_table, number, text_table


def write_transfer(folder: Path, report: dict) -> None:
    """Write `transfer.json`, `transfer.csv` and `transfer.md` into `folder`, each atomically."""
    write_json(folder / "transfer.json", finite(report))
    write_atomic(folder / "transfer.csv", csv_text(report))
    bullets = "\n".join(f"* {note}" for note in notes(report))
    write_atomic(folder / "transfer.md", "\n\n".join([*(markdown_table(*t) for t in tables(report)), bullets]) + "\n")


def terminal(report: dict) -> str:
    """Tables and notes as plain text."""
    return "\n\n".join([*(text_table(*table) for table in tables(report)), "\n".join(notes(report))])


def tables(report: dict) -> list[Table]:
    """Accuracy of every row on every task with the average, and the changes from the baseline row where it is there."""
    names = [task["name"] for task in report["tasks"]]
    rows = [
        [row["label"], *(number(row["tasks"][name]["accuracy"], 2) for name in names), _average(row)]
        for row in report["rows"]
    ]
    made = [Table(f"{report['model']}: transfer tasks, accuracy × 100", ["method", *names, "avg"], rows)]
    changed = [
        [row["label"], *(_change(row["tasks"][name]["versus"]) for name in names)]
        for row in report["rows"]
        if "versus" in row["tasks"][names[0]]
    ]
    return [*made, Table(f"Change from {report['baseline']}", ["method", *names], changed)] if changed else made


def notes(report: dict) -> list[str]:
    """What the tables' figures mean, and what was left out."""
    explained = [f"{row['label']}: F1 on MRPC {number(f1, 2)}" for row in report["rows"] if (f1 := _f1(row)) != ""]
    if len(report["rows"]) > 1:
        explained.append("±: paired standard error over the examples; it does not cover the training seed")
    return explained + report["notes"]


def csv_text(report: dict) -> str:
    """One line per row: accuracies, MRPC's F1, standard errors, changes from the baseline row with theirs and p."""
    names = [task["name"] for task in report["tasks"]]
    header = ["method", "source", *names, "average", "MRPC F1", *(f"{name} stderr" for name in names)]
    header += [f"{name} {figure}" for name in names for figure in ("change", "change stderr", "p")]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    for row in report["rows"]:
        each = [row["tasks"][name] for name in names]
        values = [*(f["accuracy"] for f in each), row["average"]["accuracy"], _f1(row), *(f["stderr"] for f in each)]
        tested = [f.get("versus", {"change": "", "stderr": "", "p": ""}) for f in each]
        values += [value for test in tested for value in (test["change"], test["stderr"], test["p"])]
        writer.writerow([row["label"], "measured", *values])
    return stream.getvalue()


def _average(row: dict) -> str:
    return number(row["average"]["accuracy"], 2)


def _change(versus: dict) -> str:
    return f"{versus['change']:+.2f} ± {versus['stderr']:.2f}"


def _f1(row: dict) -> float | str:
    return row["tasks"].get("MRPC", {}).get("f1", "")
