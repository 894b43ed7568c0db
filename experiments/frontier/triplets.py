"""A picture of what more triplets are worth: the table of docs/objectives.md, § How many triplets, as bars.

.venv/bin/python experiments/frontier/triplets.py     # experiments/results/table_triplets.csv → .svg
"""

import csv
import re
from pathlib import Path

from sempa.io.files import write_atomic
from sempa.report.plots import INK, make_figure, standalone, svg

TABLE = Path(__file__).resolve().parents[1] / "results" / "table_triplets.csv"
# The base, and adapters whose runs are named after their number of triplets.
ROW = re.compile(r"prompteol(?: \+ .*?(\d+)(?:/adapter)?)?")
SHADES = ("#56b4e9", "#f5d08a", "#e69f00", "#a65f00")


def plot(rows: list[dict[str, str]]) -> str:
    """Measured rows of `sempa table`'s CSV file as one group of bars for each set, the average last; an SVG."""
    measured = [row for row in rows if row["source"] == "measured" and ROW.fullmatch(row["method"])]
    measured.sort(key=lambda row: float(row["average"]))
    columns = list(rows[0])
    names = columns[columns.index("source") + 1 : columns.index("average") + 1]
    figure, (axis,) = make_figure(1, 1, (9.0, 3.2))
    width = 0.8 / len(measured)
    for place, (row, colour) in enumerate(zip(measured, SHADES, strict=True)):
        number = ROW.fullmatch(row["method"])[1]
        label = f"{int(number):,} triplets" if number else "SmolLM2-135M-Instruct"
        lefts = [group + (place - (len(measured) - 1) / 2) * width for group in range(len(names))]
        drawn = axis.bar(lefts, [float(row[name]) for name in names], width, color=colour, label=label)
        labels = [""] * (len(names) - 1) + [f"{float(row['average']):.1f}"]
        axis.bar_label(drawn, labels, color=INK, fontsize=7)
    axis.set_xticks(range(len(names)), names)
    axis.set_ylim(0, 95)
    axis.set_ylabel("Spearman's ρ × 100")
    axis.legend(frameon=False, labelcolor=INK, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0), fontsize=8)
    title = "Similarity on seven STS sets and on average, of the base and after 320, 640 and 1,280 triplets"
    return standalone(svg(figure, "triplets", title))


def main() -> None:
    """Draw the stored table."""
    with TABLE.open(encoding="utf-8", newline="") as stream:
        write_atomic(TABLE.with_suffix(".svg"), plot(list(csv.DictReader(stream))))


if __name__ == "__main__":
    main()
