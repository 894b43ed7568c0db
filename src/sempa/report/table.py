"""The tables of `sempa table` in every form: terminal, Markdown, CSV, JSON, and one self-contained HTML page.

A report is what `summarise` or `summarise_transfer` returns, with the model's name, settings and versions beside it.
"""

import csv
from pathlib import Path

from sempa.data.sts import SETS
from sempa.io.files import write_atomic, write_json
from sempa.report.render import Table, csv_text, html_page, interval_cell, markdown, number, plain_text

Content = tuple[list[Table], list[Table], list[str]]
"""The main tables, those with the details, and the sentences that explain both."""


def write_table(folder: Path, name: str, report: dict, content: Content) -> str:
    """Write `name.json`, `.csv`, `.md` and `.html` into `folder`, each atomically; returns the text for a terminal."""
    tables, details, notes = content
    settings = {key: report.get(key) for key in ("settings", "base_source", "versions")}
    page = html_page("table.html", report=report, tables=tables, details=details, explained=notes, settings=settings)
    write_json(folder / f"{name}.json", report)
    write_atomic(folder / f"{name}.csv", csv_text({"method": row["label"], **_figures(row)} for row in report["rows"]))
    write_atomic(folder / f"{name}.md", markdown([*tables, *details], notes))
    write_atomic(folder / f"{name}.html", page)
    # The details of a single set still fit a screen.
    return plain_text(tables + (details if len(report["tasks"]) == 1 else []), notes)


def similarity_content(report: dict) -> Content:
    """Spearman's ρ × 100 of every row on every set, with published rows beside a table of all seven sets.

    The details of a set are both correlations, the interval, the test against the baseline row, and its sub-tasks.
    """
    names = [task["name"] for task in report["tasks"]]
    shown = [*names, "average"] if len(names) > 1 else names
    rows = []
    for row in report["rows"]:
        figures, average = _figures(row), row["average"]
        scores = [number(figures[name]["spearman"]) for name in shown]
        rows.append([row["label"], *scores, interval_cell(average["spearman_interval"]), _test(average)[-1]])
    tables = [Table(f"{report['model']}: Spearman's ρ × 100", ["method", *shown, "95 %", "p"], rows)]
    notes = [f"95 %: percentile interval of {report['resamples']:,} bootstrap draws of the pairs"]
    notes.append(f"p: one-sided paired bootstrap test that the row beats {report['baseline']} without adapter")
    if tuple(name.split()[0] for name in names) == SETS:
        with Path(__file__).with_name("published.csv").open(encoding="utf-8", newline="") as stream:
            columns, *quoted = csv.reader(stream)
        tables.append(Table("Quoted, not measured here", columns, quoted))
        notes.append("quoted rows: as published, on the test splits of STS-B and SICK")
        notes.append("LLaMA3-8B: averages as printed, single sets read from the picture in the paper's repository")
    return tables, [table for task in report["tasks"] for table in _details(report, task)], notes + report["notes"]


def transfer_content(report: dict) -> Content:
    """Accuracy of every row on every task with the average, and the changes from the baseline row where it is there."""
    names = [task["name"] for task in report["tasks"]]
    scores, changes, notes = [], [], []
    for row in report["rows"]:
        figures = _figures(row)
        scores.append([row["label"], *(number(figures[name]["accuracy"]) for name in (*names, "average"))])
        if "versus" in figures[names[0]]:
            tests = [figures[name]["versus"] for name in names]
            changes.append([row["label"], *(f"{test['change']:+.2f} ± {test['stderr']:.2f}" for test in tests)])
        if "MRPC" in figures:
            notes.append(f"{row['label']}: F1 on MRPC {number(figures['MRPC']['f1'])}")
    tables = [Table(f"{report['model']}: transfer tasks, accuracy × 100", ["method", *names, "average"], scores)]
    if changes:
        tables.append(Table(f"Change from {report['baseline']}", ["method", *names], changes))
        notes.append("±: paired standard error over the examples; it does not cover the training seed")
    return tables, [], notes + report["notes"]


def _figures(row: dict) -> dict[str, dict]:
    """A row's figures by the name of the set, and of the average."""
    return {**row["tasks"], "average": row["average"]}


def _details(report: dict, task: dict) -> list[Table]:
    figures = {row["label"]: row["tasks"][task["name"]] for row in report["rows"]}
    rows = []
    for label, figure in figures.items():
        interval = interval_cell(figure["spearman_interval"])
        rows.append([label, number(figure["spearman"]), interval, number(figure["pearson"]), *_test(figure)])
    columns = ["method", "Spearman", "95 %", "Pearson", "difference", "95 %", "p"]
    tables = [Table(f"{task['name']}, {task['pairs']:,} pairs", columns, rows)]
    if parts := list(next(iter(figures.values()))["subtasks"]):
        rows = []
        for label, figure in figures.items():
            scores = [figure["subtasks"][part] for part in parts]
            rows.append([label, *map(number, scores), number(sum(scores) / len(scores))])
        tables.append(Table(f"{task['name']} by sub-task, Spearman's ρ × 100", ["method", *parts, "mean"], rows))
    return tables


def _test(figure: dict) -> list[str]:
    """The difference from the baseline row, its interval and p; blank for that row itself."""
    if not (versus := figure.get("versus")):
        return ["", "", ""]
    return [number(versus["difference"], "+.2f"), interval_cell(versus["interval"], "+"), number(versus["p"], ".3f")]
