"""The outcome of a run for people: a table for the terminal, `report.json`, and one self-contained `report.html`."""

import json
import math
from collections.abc import Sequence
from html import escape
from pathlib import Path

from sempa.io.files import write_atomic, write_json
from sempa.report import plots
from sempa.report.geometry import key_token_examples, space_figures, space_tables, space_words
from sempa.report.html import (
    NO_PICTURES,
    Table,
    finite,
    html_figure,
    html_glossary,
    html_notes,
    html_page,
    html_table,
    number,
    share,
    span,
    text_table,
)
from sempa.report.table import html_parts

_GLOSSARY = {
    "Spearman's ρ × 100": "rank correlation of cosines with human (or exact) similarity; higher is better",
    "95 %, p": "interval of the change over bootstrap draws of the pairs, and the paired test that aligned beats base",
    "preference accuracy": "share of held-out triplets with log π(entailment) > log π(contradiction); higher is better",
    "reward accuracy": "the same for the implicit rewards β log π/π_ref, which the objective trains; higher is better",
    "reward margin": "mean difference of the two implicit rewards, in nats",
    "perplexity": "exp of the mean surprise per token on text far from the training data; lower is better",
    "KL(base ‖ aligned)": "how far the next-token distribution has moved, in nats per token; lower is better",
    "agreement": "share of tokens for which both models would choose the same next token",
}


def write_report(run: Path, report: dict, history: Sequence[dict]) -> None:
    """Write `report.json` and `report.html` into the run folder; numbers that are not finite become null."""
    write_atomic(run / "report.html", page(report, history))
    # Last, because a run with a report.json counts as finished.
    write_json(run / "report.json", finite(report))


def terminal_table(report: dict) -> str:
    """The report's figures as plain text of at most 100 columns."""
    return "\n\n".join(text_table(*table) for table in tables(report))


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
                span(r.get("change_interval"), signed=True),
                f"{r['p']:.3f}" if "p" in r else "",
            ]
            for r in report["sts"]
        ]
        columns = ["task", "pairs", "base", "aligned", "change", "95 %", "p"]
        made.append(("Sentence similarity, Spearman's ρ × 100", columns, rows))
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
    made += space_tables(report)
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
    parts += [html_table(*table) for table in tables(report)]
    if report.get("notes"):
        parts.append(html_notes(report["notes"]))
    parts += _pictures(report, history)
    if report.get("table"):
        parts += html_parts(report["table"])
    parts += key_token_examples(report)
    if report.get("generations"):
        parts.append("<h2>Answers, side by side</h2><p class=note>Greedy decoding through the chat template.</p>")
    for answer in report.get("generations") or []:
        parts.append(
            f"<p><b>{escape(answer['prompt'])}</b></p><div class=answers>"
            f"<div><b>base</b>{escape(answer['base'])}</div><div><b>aligned</b>{escape(answer['aligned'])}</div></div>"
        )
    parts.append(html_glossary(_GLOSSARY | space_words(report)))
    details = {key: report.get(key) for key in ("command", "config", "training", "versions", "machine", "base_source")}
    text = json.dumps(finite(details), indent=2, ensure_ascii=False)
    parts.append(f"<details><summary>Configuration, versions and machine</summary><pre>{escape(text)}</pre></details>")
    return html_page("sempa report", parts)


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
        return [NO_PICTURES]
    report = finite(report)
    drawn = []
    if report.get("sts"):
        drawn.append(("small", plots.bars(report["sts"]), "Each pair of bars is one task, before and after training."))
    points = report.get("scatter")
    if points and points.get("gold"):
        caption = f"{points['task']}: one point per pair. The better the model, the closer to one rising line."
        drawn.append(("", plots.scatter(points, report.get("sts") or []), caption))
    if report.get("geometry"):
        drawn += space_figures({**report, "cosines": [points] if points else []})
    if any("loss" in record for record in history):
        caption = "Training: the loss falls as the margin between chosen and rejected rewards grows."
        drawn.append(("", plots.curves(list(map(finite, history))), caption))
    beta = (report.get("config") or {}).get("beta")
    if beta and any("ches" in record for record in history):
        caption = (
            "Likelihood displacement: a chosen log-ratio that falls below 0 says that training makes the chosen "
            "sentence less likely, too. The higher CHES, the more of the push against the rejected falls on the chosen."
        )
        drawn.append(("", plots.displacement(list(map(finite, history)), beta), caption))
    return ["<h2>Pictures</h2>", *(html_figure(*parts) for parts in drawn)] if drawn else []


def _change(base: float | None, aligned: float | None) -> str:
    if base is None or aligned is None or not math.isfinite(aligned - base):
        return "n/a"
    return f"{aligned - base:+.2f}"
