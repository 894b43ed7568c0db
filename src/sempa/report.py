"""The outcome of a run for people: a table for the terminal, `report.json`, and one self-contained `report.html`."""

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from sempa import plots
from sempa.files import write_atomic, write_json

_GLOSSARY = {
    "Spearman's ρ × 100": "rank correlation of cosines with human (or exact) similarity; higher is better",
    "preference accuracy": "share of held-out triplets with log π(entailment) > log π(contradiction); higher is better",
    "reward accuracy": "the same for the implicit rewards β log π/π_ref, which the objective trains; higher is better",
    "reward margin": "mean difference of the two implicit rewards, in nats",
    "perplexity": "exp of the mean surprise per token on text far from the training data; lower is better",
    "KL(base ‖ aligned)": "how far the next-token distribution has moved, in nats per token; lower is better",
    "agreement": "share of tokens for which both models would choose the same next token",
}
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


def write_report(run: Path, report: dict, history: Sequence[dict]) -> None:
    """Write `report.json` and `report.html` into the run folder; numbers that are not finite become null."""
    write_atomic(run / "report.html", page(report, history))
    # Last, because a run with a report.json counts as finished.
    write_json(run / "report.json", finite(report))


def terminal_table(report: dict) -> str:
    """The report's figures as plain text of at most 100 columns."""
    blocks = []
    for title, columns, rows in tables(report):
        cells = [columns, *rows]
        widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
        lines = [
            "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
            for row in cells
        ]
        blocks.append("\n".join([title, *(f"  {line}" for line in lines)]))
    return "\n\n".join(blocks)


def tables(report: dict) -> list[Table]:
    """The report's figures as tables of text; a table without figures is left out."""
    made: list[Table] = []
    if report.get("sts"):
        rows = [
            [
                r["task"],
                f"{r['pairs']:,}",
                number(r["base"], 2),
                number(r["aligned"], 2),
                _change(r["base"], r["aligned"]),
            ]
            for r in report["sts"]
        ]
        made.append(("Sentence similarity, Spearman's ρ × 100", ["task", "pairs", "base", "aligned", "change"], rows))
    if preference := report.get("preference"):
        rows = [
            ["preference accuracy", share(preference["base_accuracy"]), share(preference["aligned_accuracy"])],
            ["reward accuracy", "", share(preference["reward_accuracy"])],
            ["reward margin (nats)", "", number(preference["reward_margin"], 2)],
        ]
        made.append((f"Held-out triplets ({preference['triplets']:,})", ["", "base", "aligned"], rows))
    if report.get("retention"):
        rows = [
            [
                r["text"],
                f"{r['tokens']:,}",
                number(r["base_perplexity"], 3),
                number(r["aligned_perplexity"], 3),
                share(r["change"], signed=True),
                number(r["kl"], 4),
                share(r["agreement"]),
            ]
            for r in report["retention"]
        ]
        columns = ["unseen text", "tokens", "ppl base", "aligned", "change", "KL (nats)", "agreement"]
        made.append(("Language model kept", columns, rows))
    cost = _cost(report)
    if cost:
        made.append(("Cost", ["", ""], cost))
    return made


def _cost(report: dict) -> list[list[str]]:
    training, seconds = report.get("training") or {}, report.get("seconds") or {}
    rows = []
    if training:
        steps = f"{training['steps']} (best at {training['best_step']})"
        rows += [["triplets trained on", f"{training['used']:,}"], ["steps", steps]]
    if seconds:
        total, spent, rest = (number(seconds[k] / 60, 1) for k in ("total", "training", "evaluation"))
        rows += [["minutes (training, evaluation)", f"{total} ({spent}, {rest})"]]
    if report.get("peak_memory_gib"):
        rows += [["peak memory (GiB)", number(report["peak_memory_gib"], 2)]]
    return rows


def page(report: dict, history: Sequence[dict]) -> str:
    """The whole HTML page: no script, no request, readable on a phone, in the dark and on paper."""
    parts = [f"<h1>{escape(str(report.get('model', 'model')))}, aligned</h1>", f"<p>{_summary(report)}</p>"]
    for title, columns, rows in tables(report):
        parts.append(f"<h2>{escape(title)}</h2>{_html_table(columns, rows)}")
    parts += _pictures(report, history)
    if report.get("generations"):
        parts.append("<h2>Answers, side by side</h2><p class=note>Greedy decoding through the chat template.</p>")
    for answer in report.get("generations") or []:
        parts.append(
            f"<p><b>{escape(answer['prompt'])}</b></p><div class=answers>"
            f"<div><b>base</b>{escape(answer['base'])}</div><div><b>aligned</b>{escape(answer['aligned'])}</div></div>"
        )
    glossary = "".join(f"<dt>{escape(term)}</dt><dd>{escape(meaning)}</dd>" for term, meaning in _GLOSSARY.items())
    parts.append(f"<h2>What the words mean</h2><dl>{glossary}</dl>")
    details = {key: report.get(key) for key in ("command", "config", "training", "versions", "machine", "base_source")}
    text = json.dumps(finite(details), indent=2, ensure_ascii=False)
    parts.append(f"<details><summary>Configuration, versions and machine</summary><pre>{escape(text)}</pre></details>")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>sempa report</title><style>{_STYLE}</style></head><body>\n" + "\n".join(parts) + "\n</body></html>\n"
    )


def _summary(report: dict) -> str:
    training, seconds = report.get("training") or {}, report.get("seconds") or {}
    text = "Sentence-level preference alignment (SemPA)"
    if training:
        text += f" on {training['used']:,} triplets ({training['source']}), {training['steps']} steps"
    if seconds:
        text += f", {number(seconds['total'] / 60, 1)} minutes in all"
    text += "."
    for row in report.get("sts") or []:
        text += f" {row['task']}: {number(row['base'], 1)} → {number(row['aligned'], 1)}."
    for row in report.get("retention") or []:
        text += f" Perplexity on {row['text']}: {share(row['change'], signed=True)}."
    return escape(text)


def _pictures(report: dict, history: Sequence[dict]) -> list[str]:
    if not plots.available():
        return ["<p class=note>Pictures need matplotlib: <code>pip install 'sempa[plots]'</code>.</p>"]
    report = finite(report)
    drawn = []
    if report.get("sts"):
        drawn.append(("small", plots.bars(report["sts"]), "Each pair of bars is one task, before and after training."))
    points = report.get("scatter")
    if points and points.get("gold"):
        caption = f"{points['task']}: one point per pair. The better the model, the closer to one rising line."
        drawn.append(("", plots.scatter(points, report.get("sts") or []), caption))
    if any("loss" in record for record in history):
        caption = "Training: the loss falls as the margin between chosen and rejected rewards grows."
        drawn.append(("", plots.curves(list(map(finite, history))), caption))
    figures = [
        f'<figure class="{kind}">{svg}<figcaption>{escape(caption)}</figcaption></figure>'
        for kind, svg, caption in drawn
    ]
    return ["<h2>Pictures</h2>", *figures] if figures else []


def _html_table(columns: list[str], rows: list[list[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:]) + "</tr>"
        for row in rows
    )
    header = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    return f'<div class="scroll"><table>{header}<tbody>{body}</tbody></table></div>'


def number(value: float | None, digits: int) -> str:
    """A number with so many decimals, or n/a."""
    return "n/a" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def share(value: float | None, *, signed: bool = False) -> str:
    """A share as percent."""
    if value is None or not math.isfinite(value):
        return "n/a"
    return f"{100 * value:+.1f} %" if signed else f"{100 * value:.1f} %"


def _change(base: float | None, aligned: float | None) -> str:
    if base is None or aligned is None or not math.isfinite(aligned - base):
        return "n/a"
    return f"{aligned - base:+.2f}"


def finite(value: object) -> object:
    """The value with every float that is not finite replaced by None: JSON has no NaN."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
