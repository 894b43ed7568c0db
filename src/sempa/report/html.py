"""HTML pages that stand alone: no script, no request, readable on a phone, in the dark and on paper."""

import json
from collections.abc import Mapping, Sequence
from html import escape

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
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
.sides div { background: var(--soft); padding: .6rem .8rem; border-radius: .4rem; }
.sides div { white-space: pre-wrap; overflow-wrap: anywhere; }
.sides b { display: block; font-size: .85rem; opacity: .8; }
code, pre { font: .9em ui-monospace, monospace; overflow-wrap: anywhere; white-space: pre-wrap; }
dt { font-weight: 600; } dd { margin: 0 0 .4rem 1rem; }
@media (max-width: 40rem) { .sides { grid-template-columns: 1fr; } }
@media print { details { display: block; } body { max-width: none; } }
"""


def html_page(title: str, parts: Sequence[str]) -> str:
    """A whole page around the parts of its body."""
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def html_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table under its heading."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    header = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    return f'<h2>{escape(title)}</h2><div class="scroll"><table>{header}<tbody>{body}</tbody></table></div>'


def html_figure(svg: str, caption: str, *, small: bool = False) -> str:
    """A picture with its caption; a phone shows a `small` one whole."""
    kind = ' class="small"' if small else ""
    return f"<figure{kind}>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def html_sides(heading: str, sides: Mapping[str, str]) -> str:
    """Texts side by side under a heading, each below its name."""
    boxes = "".join(f"<div><b>{escape(side)}</b>{escape(text)}</div>" for side, text in sides.items())
    return f"<p><b>{escape(heading)}</b></p><div class=sides>{boxes}</div>"


def html_notes(notes: Sequence[str]) -> str:
    """Sentences as a list in small print."""
    return "<ul class=note>" + "".join(f"<li>{escape(note)}</li>" for note in notes) + "</ul>"


def html_glossary(terms: Mapping[str, str]) -> str:
    """Terms and what they mean, under a heading."""
    entries = "".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in terms.items())
    return f"<h2>Glossary</h2><dl>{entries}</dl>"


def html_details(summary: str, content: str) -> str:
    """HTML that a click unfolds."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def html_json(data: object) -> str:
    """Plain data as indented JSON."""
    return f"<pre>{escape(json.dumps(data, indent=2, ensure_ascii=False))}</pre>"
