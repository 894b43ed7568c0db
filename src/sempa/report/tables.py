"""Tables as plain text and as Markdown, and the numbers in their cells."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Table(NamedTuple):
    """A titled table of text; the first column names the rows."""

    title: str
    columns: list[str]
    rows: list[list[str]]


def text_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as plain text: the first column flush left, the others flush right."""
    cells = [columns, *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    return "\n".join([title, *(f"  {line}".rstrip() for line in lines)])


def markdown_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown, under a heading of level 3 where it has a title."""
    cells = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
    return "\n".join([f"### {title}", "", *lines] if title else lines)


def number(value: float | None, digits: int) -> str:
    """A number with so many decimals, or n/a."""
    return f"{value:,.{digits}f}" if _is_number(value) else "n/a"


def signed(value: float | None) -> str:
    """A difference with its sign and two decimals, or n/a."""
    return f"{value:+.2f}" if _is_number(value) else "n/a"


def percent(value: float | None) -> str:
    """A fraction as percent with one decimal, or n/a."""
    return f"{100 * value:.1f} %" if _is_number(value) else "n/a"


def signed_percent(value: float | None) -> str:
    """A relative change as percent with its sign, or n/a."""
    return f"{100 * value:+.1f} %" if _is_number(value) else "n/a"


def interval_cell(ends: Sequence[float] | None, sign: str = "") -> str:
    """The two ends of an interval with one decimal, or nothing; `sign` "+" shows the sign of positive ends."""
    return f"{ends[0]:{sign}.1f} – {ends[1]:{sign}.1f}" if ends else ""


def finite(value: object) -> object:
    """The value with every NaN and infinity in it replaced by None, since JSON has neither."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
