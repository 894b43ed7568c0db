"""Tables as plain text, Markdown, CSV and HTML, and the numbers in their cells."""

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from jinja2 import Environment, PackageLoader


class Table(NamedTuple):
    """A titled table of text; the first column names the rows."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def text_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as plain text: the first column flush left, the others flush right."""
    width, *widths = (max(map(len, column)) for column in zip(columns, *rows, strict=True))
    lines = [title]
    for name, *cells in (columns, *rows) if any(columns) else rows:
        lines.append("  ".join(["", name.ljust(width), *map(str.rjust, cells, widths)]).rstrip())
    return "\n".join(lines)


def markdown_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown under a heading of level 3."""
    cells = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
    return "\n".join([f"### {title}", "", *lines])


def plain_text(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Tables and the sentences that explain them, for a terminal."""
    return "\n\n".join([*(text_table(*table) for table in tables), *(["\n".join(notes)] if notes else [])])


def markdown(tables: Sequence[Table], notes: Sequence[str]) -> str:
    """Tables and the sentences that explain them as a Markdown file."""
    bullets = "\n".join(f"* {note}" for note in notes)
    return "\n\n".join([*(markdown_table(*table) for table in tables), bullets]) + "\n"


def csv_text(rows: Iterable[Mapping[str, object]]) -> str:
    """Rows under a header of all their names; a cell that a row does not have is empty.

    Nested values get columns of their own, such as `STS12 versus p`; an interval gets `low` and `high`. A score's
    column has the name of its set alone.
    """
    flat = [dict(_cells("", row)) for row in rows]
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in flat for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return stream.getvalue()


def _cells(name: str, value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, tuple):
        value = dict(zip(("low", "high"), value, strict=True))
    if not isinstance(value, dict):
        yield name, value
        return
    for part, inner in value.items():
        yield from _cells(name if part in ("spearman", "accuracy") else f"{name} {part}".lstrip(), inner)


def number(value: float | None, form: str = ",.2f") -> str:
    """A number in the form of a format specification, such as `+.2f` or `.1%`; n/a for None, NaN and infinity."""
    return format(value, form).replace("%", " %") if value is not None and math.isfinite(value) else "n/a"


def interval_cell(ends: Sequence[float], sign: str = "") -> str:
    """The two ends of an interval with one decimal; `sign` "+" shows the sign of positive ends."""
    return " – ".join(number(end, f"{sign}.1f") for end in ends)


_PAGES = Environment(loader=PackageLoader("sempa.report", "pages"), autoescape=True, trim_blocks=True)
_PAGES.filters |= {"number": number, "pretty": lambda data: json.dumps(data, indent=2, ensure_ascii=False)}


def html_page(page: str, **content: object) -> str:
    """The page of that name in `pages/` with its content; all that a user or a model wrote is escaped."""
    return _PAGES.get_template(page).render(content)
