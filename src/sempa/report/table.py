"""The table's figures for people and programs: terminal, Markdown, CSV, JSON, and one self-contained HTML page."""

import csv
import io
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path

from sempa.evaluation.sts import SETS
from sempa.io.files import write_atomic, write_json
from sempa.report import plots
from sempa.report.html import (
    NO_PICTURES,
    Table,
    finite,
    html_figure,
    html_notes,
    html_page,
    html_table,
    markdown_table,
    number,
    span,
    text_table,
)

PAPER = "arXiv 2601.05075"
# The paper's main table: scores in the order of `sts.SETS` (test splits of STS-B and SICK-R), and the average.
PUBLISHED = (
    ("LLaMA2-7B mean pooling", (35.45, 53.62, 39.87, 54.68, 53.00, 41.52, 48.86), 46.71),
    ("LLaMA2-7B Echo", (50.43, 73.77, 61.61, 73.21, 70.80, 68.67, 65.11), 66.23),
    ("LLaMA2-7B PromptEOL", (58.81, 77.01, 66.34, 73.22, 73.56, 71.66, 69.64), 70.03),
    ("LLaMA2-7B Contrastive Prompting", (63.34, 82.15, 71.73, 79.68, 77.23, 78.71, 74.04), 75.27),
    ("LLaMA2-7B Token Prepending", (66.90, 83.12, 74.31, 79.87, 80.03, 80.67, 75.40), 77.19),
    ("LLaMA2-7B SemPA", (68.77, 83.73, 74.73, 82.08, 77.48, 79.76, 77.26), 77.69),
    ("LLaMA3-8B mean pooling", (), 48.19),
    ("LLaMA3-8B Echo", (), 66.81),
    ("LLaMA3-8B PromptEOL", (), 71.90),
    ("LLaMA3-8B Contrastive Prompting", (), 73.24),
    ("LLaMA3-8B Token Prepending", (), 75.34),
    ("LLaMA3-8B SemPA", (), 78.10),
)


def write_table(folder: Path, report: dict) -> None:
    """Write `table.json`, `table.csv`, `table.md` and `table.html` into `folder`, each atomically."""
    quoted = [
        {"label": label, "source": PAPER, "scores": scores, "average": mean} for label, scores, mean in _quoted(report)
    ]
    write_json(folder / "table.json", finite({**report, "quoted": quoted}))
    write_atomic(folder / "table.csv", csv_text(report))
    write_atomic(folder / "table.md", markdown(report))
    title = f"<h1>{escape(str(report['model']))}: sentence similarity</h1>"
    write_atomic(folder / "table.html", html_page(f"sempa table: {report['model']}", [title, *html_parts(report)]))


def terminal(report: dict) -> str:
    """The main table, the quoted rows and the notes as plain text; for a single set its details too."""
    shown = [main_table(report), *quoted_table(report), *(detail_tables(report) if len(report["tasks"]) == 1 else [])]
    return "\n\n".join([*(text_table(*table) for table in shown), "\n".join(notes(report))])


def markdown(report: dict) -> str:
    """All tables, details included, as Markdown."""
    blocks = [markdown_table(*table) for table in (main_table(report), *quoted_table(report), *detail_tables(report))]
    # The notes belong to the first two tables.
    place = 1 + len(quoted_table(report))
    blocks.insert(place, "\n".join(f"* {note}" for note in notes(report)))
    return "\n\n".join(blocks) + "\n"


def csv_text(report: dict) -> str:
    """One line per row, quoted ones included: scores, Pearson's r, intervals of the scores, and the test's outcome."""
    names = [task["name"] for task in report["tasks"]]
    figures = [*names, "average"]
    header = ["method", "source", *figures, *(f"{name} Pearson" for name in figures)]
    header += [f"{name} {end}" for name in figures for end in ("low", "high")]
    header += ["difference", "difference low", "difference high", "p"]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    for row in report["rows"]:
        every = [*(row["tasks"][name] for name in names), row["average"]]
        ends = [end for figure in every for end in figure.get("spearman_interval", ("", ""))]
        versus = row["average"].get("versus", {"difference": "", "interval": ("", ""), "p": ""})
        tested = (versus["difference"], *versus["interval"], versus["p"])
        values = [*(f["spearman"] for f in every), *(f["pearson"] for f in every), *ends]
        writer.writerow([row["label"], "measured", *values, *tested])
    for label, scores, average in _quoted(report):
        values = [*(scores or [""] * len(names)), average]
        writer.writerow([label, f"quoted from {PAPER}", *values, *[""] * (len(header) - 2 - len(values))])
    return stream.getvalue()


def html_parts(report: dict) -> list[str]:
    """The table for a page: main and quoted rows, notes, picture, details."""
    parts = [html_table(*table) for table in (main_table(report), *quoted_table(report))]
    parts.append(html_notes(notes(report)))
    if plots.available():
        caption = "Average of each row" + (" with its 95 % interval" if report["resamples"] else "") + "."
        parts.append(html_figure("small", _picture(report), caption))
    else:
        parts.append(NO_PICTURES)
    details = "".join(html_table(*table) for table in detail_tables(report))
    parts.append(f"<details><summary>Each set: intervals, Pearson's r, sub-tasks</summary>{details}</details>")
    settings = {key: report.get(key) for key in ("settings", "base_source", "versions")}
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    parts.append(f"<details><summary>Settings and versions</summary><pre>{escape(text)}</pre></details>")
    return parts


def main_table(report: dict) -> Table:
    """Spearman's ρ × 100 of every row on every set, their average, its interval, and p against the baseline row."""
    names = [task["name"] for task in report["tasks"]]
    several = len(names) > 1
    columns = ["method", *names, *(["avg"] if several else []), *(["95 %", "p"] if report["resamples"] else [])]
    rows = []
    for row in report["rows"]:
        scores = [row["tasks"][name]["spearman"] for name in names] + ([row["average"]["spearman"]] if several else [])
        tested = [span(row["average"]["spearman_interval"]), _p(row["average"])] if report["resamples"] else []
        rows.append([row["label"], *(number(score, 2) for score in scores), *tested])
    return f"{report['model']}: Spearman's ρ × 100", columns, rows


def quoted_table(report: dict) -> list[Table]:
    """The paper's own rows, where the table has all its sets; a list of one or none."""
    rows = [
        [label, *([number(score, 2) for score in scores] or [""] * len(SETS)), number(average, 2)]
        for label, scores, average in _quoted(report)
    ]
    return [(f"Quoted from {PAPER}, not measured here", ["method", *SETS, "avg"], rows)] if rows else []


def detail_tables(report: dict) -> list[Table]:
    """For each set both correlations with intervals and the test against the baseline row, then its sub-tasks."""
    made: list[Table] = []
    for task in report["tasks"]:
        columns = ["method", "Spearman", "95 %", "Pearson", "95 %", "difference", "95 %", "p"]
        rows = []
        for row in report["rows"]:
            figure = row["tasks"][task["name"]]
            versus = figure.get("versus")
            against = (
                [f"{versus['difference']:+.2f}", span(versus["interval"], signed=True), _p(figure)]
                if versus
                else [""] * 3
            )
            rows.append(
                [
                    row["label"],
                    number(figure["spearman"], 2),
                    span(figure.get("spearman_interval")),
                    number(figure["pearson"], 2),
                    span(figure.get("pearson_interval")),
                    *against,
                ]
            )
        made.append((f"{task['name']}, {task['pairs']:,} pairs", columns, rows))
        if task["subtasks"]:
            made.append(_subtask_table(report["rows"], task))
    return made


def notes(report: dict) -> list[str]:
    """What the tables' columns mean, and which pairs were left out."""
    told = []
    if report["resamples"]:
        told.append(f"95 %: percentile interval of {report['resamples']:,} bootstrap draws of the pairs")
        told.append(f"p: paired bootstrap test of the claim that the row beats {report['baseline']} without adapter")
    if _quoted(report):
        told.append(f"quoted rows: as printed in {PAPER}; STS-B and SICK are the test splits there")
    return told + report["notes"]


def _quoted(report: dict) -> Sequence[tuple[str, Sequence[float], float]]:
    return PUBLISHED if tuple(task["name"].split()[0] for task in report["tasks"]) == SETS else ()


def _subtask_table(rows: Sequence[dict], task: dict) -> Table:
    names = list(task["subtasks"])
    made = []
    for row in rows:
        scores = [pair and pair[0] for pair in row["subtasks"][task["name"]].values()]
        mean = None if None in scores else sum(scores) / len(scores)
        made.append([row["label"], *(number(score, 2) for score in (*scores, mean))])
    return f"{task['name']} by sub-task, Spearman's ρ × 100", ["method", *names, "mean"], made


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
