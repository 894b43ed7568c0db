"""The similarity table in every form: terminal, Markdown, CSV, JSON, and one self-contained HTML page."""

import csv
from pathlib import Path

from sempa.data.sts import SETS
from sempa.io.files import write_atomic, write_json
from sempa.report import plots
from sempa.report.tables import Table, csv_text, finite, html_page, interval_cell, markdown, number, plain_text

_PUBLISHED = Path(__file__).parent / "published.csv"


def write_table(folder: Path, report: dict) -> None:
    """Write `table.json`, `table.csv`, `table.md` and `table.html` into `folder`, each atomically."""
    write_json(folder / "table.json", finite({**report, "quoted": quoted_rows(report)}))
    write_atomic(folder / "table.csv", csv_text(csv_rows(report)))
    write_atomic(folder / "table.md", markdown(main_tables(report) + detail_tables(report), notes(report)))
    write_atomic(folder / "table.html", page(report))


def quoted_rows(report: dict) -> list[dict[str, str]]:
    """The published rows beside a table of all seven sets: `method`, `source`, each set's score, and `average`.

    Scores are text, as printed; one that its paper does not give is empty.
    """
    if tuple(task["name"].split()[0] for task in report["tasks"]) != SETS:
        return []
    with _PUBLISHED.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def terminal(report: dict) -> str:
    """The main table, the quoted rows and the notes as plain text; for a single set its details too."""
    details = detail_tables(report) if len(report["tasks"]) == 1 else []
    return plain_text(main_tables(report) + details, notes(report))


def csv_rows(report: dict) -> list[dict[str, object]]:
    """For each row, quoted ones included: scores, Pearson's r, intervals of the scores, and the test's outcome."""
    rows = []
    for row in report["rows"]:
        figures = {**row["tasks"], "average": row["average"]}
        cells = {"method": row["label"], "source": "measured"}
        cells |= {name: figure["spearman"] for name, figure in figures.items()}
        cells |= {f"{name} Pearson": figure["pearson"] for name, figure in figures.items()}
        for name, figure in figures.items():
            cells |= dict(zip((f"{name} low", f"{name} high"), figure.get("spearman_interval", ())))
        if versus := row["average"].get("versus"):
            low, high = versus["interval"]
            cells |= {"difference": versus["difference"], "difference low": low, "difference high": high}
            cells["p"] = versus["p"]
        rows.append(cells)
    names = [task["name"] for task in report["tasks"]]
    for row in quoted_rows(report):
        scores = {name: row[quoted] for name, quoted in zip([*names, "average"], [*SETS, "average"])}
        rows.append({"method": row["method"], "source": f"quoted from {row['source']}", **scores})
    return rows


def page(report: dict) -> str:
    """The whole HTML page: main and quoted rows, notes, picture, details."""
    return html_page(
        "table.html",
        report=report,
        tables=main_tables(report),
        explained=notes(report),
        picture=_picture(report) if plots.available() else "",
        details=detail_tables(report),
        settings={key: report.get(key) for key in ("settings", "base_source", "versions")},
    )


def main_tables(report: dict) -> list[Table]:
    """The main table, and the quoted rows beside a table of all seven sets."""
    tables = [main_table(report)]
    if quoted := quoted_rows(report):
        rows = [[row["method"], row["source"], *(row[name] for name in SETS), row["average"]] for row in quoted]
        tables.append(Table("Quoted, not measured here", ["method", "source", *SETS, "avg"], rows))
    return tables


def main_table(report: dict) -> Table:
    """Spearman's ρ × 100 of every row on every set, their average, its interval, and p against the baseline row."""
    names = [task["name"] for task in report["tasks"]]
    several = len(names) > 1
    columns = ["method", *names, *(["avg"] if several else []), *(["95 %", "p"] if report["resamples"] else [])]
    rows = []
    for row in report["rows"]:
        scores = [row["tasks"][name]["spearman"] for name in names] + ([row["average"]["spearman"]] if several else [])
        tested = [interval_cell(row["average"]["spearman_interval"]), _p(row["average"])] if report["resamples"] else []
        rows.append([row["label"], *(number(score) for score in scores), *tested])
    return Table(f"{report['model']}: Spearman's ρ × 100", columns, rows)


def detail_tables(report: dict) -> list[Table]:
    """For each set both correlations, the interval and the test against the baseline row, then its sub-tasks."""
    made = []
    for task in report["tasks"]:
        columns = ["method", "Spearman", "95 %", "Pearson", "difference", "95 %", "p"]
        rows = []
        for row in report["rows"]:
            figure = row["tasks"][task["name"]]
            cells = [row["label"], number(figure["spearman"]), interval_cell(figure.get("spearman_interval"))]
            cells.append(number(figure["pearson"]))
            if versus := figure.get("versus"):
                cells += [number(versus["difference"], "+.2f"), interval_cell(versus["interval"], sign="+"), _p(figure)]
            rows.append(cells + [""] * (len(columns) - len(cells)))
        made.append(Table(f"{task['name']}, {task['pairs']:,} pairs", columns, rows))
        if task["subtasks"]:
            made.append(_subtask_table(report, task))
    return made


def notes(report: dict) -> list[str]:
    """What the tables' columns mean, and which pairs were left out."""
    explained = []
    if report["resamples"]:
        explained.append(f"95 %: percentile interval of {report['resamples']:,} bootstrap draws of the pairs")
        baseline = report["baseline"]
        explained.append(f"p: paired bootstrap test of the claim that the row beats {baseline} without adapter")
    if quoted_rows(report):
        explained += [
            "quoted rows: as published, on the test splits of STS-B and SICK",
            "LLaMA3-8B: averages as printed, single sets read from the picture in the paper's repository",
        ]
    return explained + report["notes"]


def _subtask_table(report: dict, task: dict) -> Table:
    rows = []
    for row in report["rows"]:
        scores = [row["subtasks"][task["name"]][name] for name in task["subtasks"]]
        mean = None if None in scores else sum(scores) / len(scores)
        rows.append([row["label"], *(number(score) for score in (*scores, mean))])
    columns = ["method", *task["subtasks"], "mean"]
    return Table(f"{task['name']} by sub-task, Spearman's ρ × 100", columns, rows)


def _picture(report: dict) -> str:
    """The averages as a row of points, the baseline's as a line through all of them."""
    rows = report["rows"]
    figure, (axis,) = plots.make_figure(1, 1, (6.4, 0.34 * len(rows) + 0.9))
    for place, row in enumerate(rows):
        average = row["average"]
        colour = plots.ALIGNED if row["adapter"] else plots.BASE
        if report["resamples"]:
            axis.plot(average["spearman_interval"], [place, place], color=colour, linewidth=3, alpha=0.5)
        axis.plot([average["spearman"]], [place], "o", color=colour, markersize=6)
        if row["label"] == report["baseline"]:
            axis.axvline(average["spearman"], color=plots.INK, linewidth=0.8, linestyle=":")
    axis.set_yticks(range(len(rows)), [row["label"] for row in rows])
    axis.invert_yaxis()
    axis.set_xlabel("average Spearman's ρ × 100")
    return plots.svg(figure, "averages", "Average similarity score of every row")


def _p(figure: dict) -> str:
    return f"{figure['versus']['p']:.3f}" if "versus" in figure else ""
