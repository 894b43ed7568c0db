"""The table of transfer tasks as plain text, Markdown, CSV and JSON."""

from pathlib import Path

from sempa.io.files import write_atomic, write_json
from sempa.report.tables import Table, csv_text, finite, markdown, number, plain_text


def write_transfer(folder: Path, report: dict) -> None:
    """Write `transfer.json`, `transfer.csv` and `transfer.md` into `folder`, each atomically."""
    write_json(folder / "transfer.json", finite(report))
    write_atomic(folder / "transfer.csv", csv_text([_csv_row(row) for row in report["rows"]]))
    write_atomic(folder / "transfer.md", markdown(_tables(report), _notes(report)))


def terminal(report: dict) -> str:
    """Tables and notes as plain text."""
    return plain_text(_tables(report), _notes(report))


def _tables(report: dict) -> list[Table]:
    """Accuracy of every row on every task with the average, and the changes from the baseline row where it is there."""
    names = [task["name"] for task in report["tasks"]]
    scores, changes = [], []
    for row in report["rows"]:
        each = [row["tasks"][name] for name in names]
        scores.append([row["label"], *(number(figure["accuracy"]) for figure in (*each, row["average"]))])
        if "versus" in each[0]:
            tests = [figure["versus"] for figure in each]
            changes.append([row["label"], *(f"{test['change']:+.2f} ± {test['stderr']:.2f}" for test in tests)])
    made = [Table(f"{report['model']}: transfer tasks, accuracy × 100", ["method", *names, "avg"], scores)]
    return [*made, Table(f"Change from {report['baseline']}", ["method", *names], changes)] if changes else made


def _notes(report: dict) -> list[str]:
    """What the tables' figures mean, and what was left out."""
    explained = [
        f"{row['label']}: F1 on MRPC {number(row['tasks']['MRPC']['f1'])}"
        for row in report["rows"]
        if "MRPC" in row["tasks"]
    ]
    if len(report["rows"]) > 1:
        explained.append("±: paired standard error over the examples; it does not cover the training seed")
    return explained + report["notes"]


def _csv_row(row: dict) -> dict[str, object]:
    """Accuracies, standard errors, MRPC's F1, and changes from the baseline row with their standard errors and p."""
    cells = {"method": row["label"], "source": "measured"}
    cells |= {name: figure["accuracy"] for name, figure in row["tasks"].items()}
    cells["average"] = row["average"]["accuracy"]
    for name, figure in row["tasks"].items():
        cells[f"{name} stderr"] = figure["stderr"]
        if "f1" in figure:
            cells[f"{name} F1"] = figure["f1"]
        if versus := figure.get("versus"):
            cells |= {f"{name} change": versus["change"], f"{name} change stderr": versus["stderr"]}
            cells[f"{name} p"] = versus["p"]
    return cells
