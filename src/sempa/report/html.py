"""How figures are shown: tables as plain text and as HTML, pictures with captions, and the page around them."""

import math
from collections.abc import Sequence
from html import escape

NO_PICTURES = "<p class=note>Pictures need matplotlib: <code>pip install 'sempa[plots]'</code>.</p>"
_STYLE = """
:root { color-scheme: light dark; --line: #8886; --soft: #8881; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { line-height: 1.2; margin-bottom: .2rem; } h2 { margin-top: 2.2rem; }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
td { white-space: nowrap; } .scroll { overflow-x: auto; }
figure { margin: 1rem 0; overflow-x: auto; } figure svg { width: 100%; min-width: 32rem; height: auto; }
figure.small svg { min-width: 0; max-width: 38rem; } figcaption, .note { font-size: .9rem; opacity: .8; }
.answers { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
.answers div { background: var(--soft); padding: .6rem .8rem; border-radius: .4rem; }
.answers div { white-space: pre-wrap; overflow-wrap: anywhere; }
.answers b { display: block; font-size: .85rem; opacity: .8; }
code, pre { font: .9em ui-monospace, monospace; overflow-wrap: anywhere; white-space: pre-wrap; }
dt { font-weight: 600; } dd { margin: 0 0 .4rem 1rem; }
@media (max-width: 40rem) { .answers { grid-template-columns: 1fr; } }
@media print { details { display: block; } body { max-width: none; } }
"""

Table = tuple[str, list[str], list[list[str]]]
"""Title, column names, rows of text; the first column is the row's name."""


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


def html_page(title: str, parts: Sequence[str]) -> str:
    """A whole page in the report's style around parts of its body."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def html_figure(kind: str, svg: str, caption: str) -> str:
    """A picture with its caption; `kind` is `small` for one that a phone shows whole, else empty."""
    return f'<figure class="{kind}">{svg}<figcaption>{escape(caption)}</figcaption></figure>'


def html_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table under its heading."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    header = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    return f'<h2>{escape(title)}</h2><div class="scroll"><table>{header}<tbody>{body}</tbody></table></div>'


def html_notes(notes: Sequence[str]) -> str:
    """Sentences as a list in small print."""
    return "<ul class=note>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>"


def html_glossary(terms: dict[str, str]) -> str:
    """Words and what they mean, under a heading."""
    entries = "".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in terms.items())
    return f"<h2>What the words mean</h2><dl>{entries}</dl>"


def number(value: float | None, digits: int) -> str:
    """A number with so many decimals, or n/a."""
    return "n/a" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def span(ends: Sequence[float] | None, *, signed: bool = False) -> str:
    """The two ends of an interval with one decimal, or nothing."""
    return f"{ends[0]:{'+' * signed}.1f} – {ends[1]:{'+' * signed}.1f}" if ends else ""


def share(value: float | None, *, signed: bool = False) -> str:
    """A share as percent."""
    if value is None or not math.isfinite(value):
        return "n/a"
    return f"{100 * value:+.1f} %" if signed else f"{100 * value:.1f} %"


def finite(value: object) -> object:
    """The value with every float that is not finite replaced by None: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
