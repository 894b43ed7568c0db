"""The outcome of a run: a table for the terminal, `report.json`, and one self-contained `report.html`."""

from collections.abc import Sequence
from pathlib import Path

from sempa.io.files import write_atomic, write_json
from sempa.io.rows import many
from sempa.report import plots
from sempa.report.render import Table, html_page, interval_cell, number, plain_text

# Name, key and form of each measure; the arrow points to the better end.
_MEASURES = (
    ("alignment ↓", "alignment", ".3f"),
    ("uniformity ↓", "uniformity", ".3f"),
    ("mean cosine ↓", "mean_cosine", ".3f"),
    ("partition ratio ↑", "partition_ratio", ".3f"),
    ("IsoScore ↑", "isoscore", ".4f"),
    ("effective rank ↑", "effective_rank", ".1f"),
    ("hubness ↓", "hubness", ".2f"),
)


def write_report(run: Path, report: dict, history: Sequence[dict]) -> None:
    """Write `report.json` and `report.html` into the run folder; NaN and infinity become null."""
    write_atomic(run / "report.html", page(report, history))
    # Last, because a run with a report.json counts as finished.
    write_json(run / "report.json", report)


def terminal_table(report: dict) -> str:
    """The report's figures and notes as plain text."""
    return plain_text(tables(report), report.get("notes") or [])


def tables(report: dict) -> list[Table]:
    """The report's figures as tables of text; a table without figures is left out."""
    parts = {
        "sts": _similarity_table,
        "preference": _preference_table,
        "drift": _drift_table,
        "hellaswag": _hellaswag_table,
        "budget": _budget_table,
    }
    made = [make(report[part]) for part, make in parts.items() if report.get(part)]
    # The card of a model that version 0.1 trained shows its report, whose answers lack the fraction.
    if answers := [answer for answer in report.get("generations") or [] if "unchanged" in answer]:
        made.append(_answers_table(answers))
    made += [_geometry_table(measured) for measured in report.get("geometry") or []]
    if report.get("seconds"):
        made.append(_cost_table(report))
    return made


def page(report: dict, history: Sequence[dict]) -> str:
    """The whole HTML page."""
    details = {key: report.get(key) for key in ("command", "config", "training", "versions", "machine", "base_source")}
    pictures = _pictures(report, history)
    return html_page("run.html", report=report, tables=tables(report), pictures=pictures, details=details)


def _similarity_table(results: Sequence[dict]) -> Table:
    columns = ["task", "pairs", "base", "aligned", "change", "95 %", "p"]
    rows = []
    for row in results:
        cells = [f"{row['pairs']:,}", number(row["base"]), number(row["aligned"])]
        change = [number(row["aligned"] - row["base"], "+.2f"), interval_cell(row["change_interval"], sign="+")]
        rows.append([row["task"], *cells, *change, number(row["p"], ".3f")])
    return Table("Sentence similarity, Spearman's ρ × 100", columns, rows)


def _preference_table(preference: dict) -> Table:
    base, aligned, reward = (number(preference[f"{name}_accuracy"], ".1%") for name in ("base", "aligned", "reward"))
    rows = [
        ["preference accuracy", base, aligned],
        ["reward accuracy", "", reward],
        ["reward margin (nats)", "", number(preference["reward_margin"])],
    ]
    return Table(f"Held-out triplets ({preference['triplets']:,})", ["", "base", "aligned"], rows)


def _drift_table(drifts: Sequence[dict]) -> Table:
    columns = ["unseen text", "tokens", "perplexity base", "aligned", "change", "KL (nats)", "agreement"]
    rows = []
    for row in drifts:
        perplexities = [number(row[f"{side}_perplexity"], ",.3f") for side in ("base", "aligned")]
        change = f"{number(row['change'], '+.1%')} ± {number(row.get('change_stderr'), '.1%')}".removesuffix(" ± n/a")
        rest = [change, number(row["kl"], ".4f"), number(row["agreement"], ".1%")]
        rows.append([row["text"], f"{row['tokens']:,}", *perplexities, *rest])
    return Table("Language-model drift, ± standard error", columns, rows)


def _hellaswag_table(measured: dict) -> Table:
    columns = ["HellaSwag, 0-shot", "tasks", "base", "aligned", "change", "p"]
    row = ["accuracy (acc_norm)", f"{measured['tasks']:,}"]
    for name, form in (("base", ".1%"), ("aligned", ".1%"), ("change", "+.2%")):
        row.append(f"{number(measured[name], form)} ± {number(measured[f'{name}_stderr'], form.lstrip('+'))}")
    return Table("Tasks, ± standard error", columns, [[*row, number(measured["p"], ".3f")]])


def _answers_table(answers: Sequence[dict]) -> Table:
    unchanged = [answer["unchanged"] for answer in answers]
    row = [f"{len(answers):,}", number(sum(unchanged) / len(answers), ".1%")]
    row.append(number(unchanged.count(1) / len(answers), ".1%"))
    return Table("Greedy answers", ["prompts", "unchanged before the first difference", "identical"], [row])


def _budget_table(budget: dict) -> Table:
    rows = []
    for row in budget["curve"]:
        scale = number(row["scale"], ".3f") + (" (saved)" if row["scale"] == budget["scale"] else "")
        rows.append([scale, number(row["kl"], ".4f"), number(row["score"])])
    limit = f"at most {budget['kl_budget']:g} nats" if budget["kl_budget"] else "no limit"
    title = f"Scale of the adapter, chosen by KL on samples of the base ({limit})"
    return Table(title, ["scale", "KL (nats)", f"{budget['task']}, ρ × 100"], rows)


def _geometry_table(measured: dict) -> Table:
    sides = ("base", "aligned")
    rows = [[name, *(number(measured[side][key], form) for side in sides)] for name, key, form in _MEASURES]
    sizes = f"{many(measured['sentences'], 'sentence')}, {many(measured['positives'], 'positive pair')}"
    return Table(f"Geometry, {measured['task']}: {sizes}", ["", *sides], rows)


def _cost_table(report: dict) -> Table:
    training, seconds = report["training"], report["seconds"]
    total, spent, rest = (number(seconds[key] / 60, ",.1f") for key in ("total", "training", "evaluation"))
    rows = [
        ["triplets trained on", f"{training['used']:,}"],
        ["steps", f"{training['steps']} (best at {training['best_step']})"],
        ["minutes (training, evaluation)", f"{total} ({spent}, {rest})"],
        ["peak memory (GiB)", number(report["peak_memory_gib"])],
    ]
    return Table("Cost", ["", ""], rows)


def _pictures(report: dict, history: Sequence[dict]) -> dict | None:
    """The pictures that the report and the history have figures for; None without matplotlib."""
    if not plots.available():
        return None
    return {
        "curves": plots.curves(history) if any("loss" in record for record in history) else "",
        "budget": plots.budget(report["budget"]) if report.get("budget") else "",
        "scatter": plots.scatter(report["scatter"]) if report.get("scatter") else "",
        "spectra": [plots.spectrum(measured) for measured in report.get("geometry") or []],
    }
