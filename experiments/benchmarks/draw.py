"""A benchmark's results as bars of time and memory, a group for each size: RESULT.json → RESULT.svg.

.venv/bin/python experiments/benchmarks/draw.py experiments/results/training-bfloat16.json
"""

import json
import sys
from pathlib import Path

from sempa.io.files import write_atomic
from sempa.report.plots import ALIGNED, BASE, INK, make_figure, svg

_FLOOR = "#999999"


def bars(rows: list[dict]) -> str:
    """Each contestant's time as a multiple of the first of its kind (`x …`), and its peak memory (`peak …`); an SVG."""
    ratio, memory = (next(key for key in rows[0] if key.startswith(start)) for start in ("x ", "peak "))
    figure, axes = make_figure(2, (10.0, 0.9 + 0.19 * len(rows)), sharey=True)
    labels, places, last = [], [], None
    for place, row in enumerate(rows):
        size = " × ".join(f"{row[key]:,}" for key in ("N", "D", "V") if key in row) or row.get("section", "")
        # A gap, and the size's name, where another begins.
        places.append((places[-1] if places else 0) - (1.6 if place and size != last else 1))
        labels.append(f"{size}   {row['contestant']}" if size != last else row["contestant"])
        last = size
    colours = [_colour(row["contestant"]) for row in rows]
    for axis, key, title in ((axes[0], ratio, f"time, multiples of {ratio[2:]}"), (axes[1], memory, memory)):
        values = [row[key] or 0 for row in rows]
        drawn = axis.barh(places, values, color=colours)
        axis.bar_label(
            drawn, [f"{v:,.{2 if v < 100 else 0}f}" if v else "" for v in values], color=INK, fontsize=7, padding=2
        )
        axis.set_title(title)
        axis.set_xlim(0, 1.12 * max(values))
        axis.margins(y=0.01)
    axes[0].set_yticks(places, labels)
    axes[0].axvline(1, color=INK, linewidth=0.6, linestyle=":")
    return svg(figure, "bars", f"{axes[0].get_title()}, and {memory} of every contestant", alone=True)


def _colour(contestant: str) -> str:
    if contestant.startswith("sempa"):
        return ALIGNED
    return _FLOOR if contestant.startswith("bare") else BASE


def main() -> None:
    """Draw each of the files named on the command line."""
    for path in map(Path, sys.argv[1:]):
        write_atomic(path.with_suffix(".svg"), bars(json.loads(path.read_text(encoding="utf-8"))["rows"]))


if __name__ == "__main__":
    main()
