"""The outcome of a run: a table for the terminal, `report.json`, and one self-contained `report.html`."""

from collections.abc import Sequence
from pathlib import Path

from sempa.io.files import write_atomic, write_json
from sempa.io.rows import many
from sempa.report import plots
from sempa.report.html import render
from sempa.report.tables import (
    Table,
    finite,
    interval_cell,
    number,
    percent,
    signed,
    signed_percent,
    text_table,
)

# Name, key and decimals of each measure; the arrow points to the better end.
_MEASURES = (
    ("alignment ↓", "alignment", 3),
    ("uniformity ↓", "uniformity", 3),
    ("mean cosine ↓", "mean_cosine", 3),
    ("partition ratio ↑", "partition_ratio", 3),
    ("IsoScore ↑", "isoscore", 4),
    ("effective rank ↑", "effective_rank", 1),
    ("hubness ↓", "hubness", 2),
)


def write_report(run: Path, report: dict, history: Sequence[dict]) -> None:
    """Write `report.json` and `report.html` into the run folder; NaN and infinity become null."""
    write_atomic(run / "report.html", page(report, history))
    # Last, because a run with a report.json counts as finished.
    write_json(run / "report.json", finite(report))


def terminal_table(report: dict) -> str:
    """The report's figures and notes as plain text of at most 100 columns."""
    blocks = [text_table(*table) for table in tables(report)]
    if report.get("notes"):
        blocks.append("\n".join(report["notes"]))
    return "\n\n".join(blocks)


def tables(report: dict) -> list[Table]:
    """The report's figures as tables of text; a table without figures is left out."""
    made = []
    if report.get("sts"):
        made.append(_similarity_table(report["sts"]))
    if report.get("preference"):
        made.append(_preference_table(report["preference"]))
    if report.get("retention"):
        made.append(_drift_table(report["retention"]))
    if report.get("hellaswag"):
        made.append(_hellaswag_table(report["hellaswag"]))
    if report.get("budget"):
        made.append(_budget_table(report["budget"]))
    # The card of a model that version 0.1 trained shows its report, whose answers lack the fraction.
    if answers := [answer for answer in report.get("generations") or [] if "unchanged" in answer]:
        made.append(_answers_table(answers))
    made += [_geometry_table(measured) for measured in report.get("geometry") or []]
    if cost := _cost_rows(report):
        made.append(Table("Cost", ["", ""], cost))
    return made


def page(report: dict, history: Sequence[dict]) -> str:
    """The whole HTML page."""
    report = finite(report)
    details = {key: report.get(key) for key in ("command", "config", "training", "versions", "machine", "base_source")}
    pictures = _pictures(report, [finite(record) for record in history])
    return render("run.html", report=report, tables=tables(report), pictures=pictures, details=details)


def _similarity_table(results: Sequence[dict]) -> Table:
    columns = ["task", "pairs", "base", "aligned", "change", "95 %", "p"]
    rows = [
        [
            row["task"],
            f"{row['pairs']:,}",
            number(row["base"], 2),
            number(row["aligned"], 2),
            signed(_difference(row["aligned"], row["base"])),
            interval_cell(row.get("change_interval"), sign="+"),
            f"{row['p']:.3f}" if "p" in row else "",
        ]
        for row in results
    ]
    return Table("Sentence similarity, Spearman's ρ × 100", columns, rows)


def _preference_table(preference: dict) -> Table:
    rows = [
        ["preference accuracy", percent(preference["base_accuracy"]), percent(preference["aligned_accuracy"])],
        ["reward accuracy", "", percent(preference["reward_accuracy"])],
        ["reward margin (nats)", "", number(preference["reward_margin"], 2)],
    ]
    return Table(f"Held-out triplets ({preference['triplets']:,})", ["", "base", "aligned"], rows)


def _drift_table(drifts: Sequence[dict]) -> Table:
    columns = ["unseen text", "tokens", "perplexity base", "aligned", "change", "KL (nats)", "agreement"]
    rows = [
        [
            row["text"],
            f"{row['tokens']:,}",
            number(row["base_perplexity"], 3),
            number(row["aligned_perplexity"], 3),
            signed_percent(row["change"]),
            number(row["kl"], 4),
            percent(row["agreement"]),
        ]
        for row in drifts
    ]
    return Table("Language-model drift", columns, rows)


def _hellaswag_table(measured: dict) -> Table:
    values = [f"{percent(measured[side])} ± {100 * measured[f'{side}_stderr']:.1f}" for side in ("base", "aligned")]
    change = f"{100 * measured['change']:+.2f} ± {100 * measured['change_stderr']:.2f}"
    row = ["accuracy (acc_norm)", f"{measured['tasks']:,}", *values, change, f"{measured['p']:.3f}"]
    columns = ["HellaSwag, 0-shot", "tasks", "base", "aligned", "change", "p"]
    return Table("Tasks, ± standard error", columns, [row])


def _answers_table(answers: Sequence[dict]) -> Table:
    unchanged = [answer["unchanged"] for answer in answers]
    means = (sum(unchanged), sum(fraction == 1 for fraction in unchanged))
    row = [f"{len(answers):,}", *(percent(total / len(answers)) for total in means)]
    return Table("Greedy answers", ["prompts", "unchanged before the first difference", "identical"], [row])


def _budget_table(budget: dict) -> Table:
    rows = []
    for row in budget["curve"]:
        scale = number(row["scale"], 3) + (" (saved)" if row["scale"] == budget["scale"] else "")
        rows.append([scale, number(row["kl"], 4), number(row["score"], 2)])
    limit = f"at most {budget['kl_budget']:g} nats" if budget["kl_budget"] else "no limit"
    title = f"Scale of the adapter, chosen by KL on samples of the base ({limit})"
    return Table(title, ["scale", "KL (nats)", f"{budget['task']}, ρ × 100"], rows)


def _geometry_table(measured: dict) -> Table:
    sides = ("base", "aligned")
    rows = [[name, *(number(measured[side][key], digits) for side in sides)] for name, key, digits in _MEASURES]
    sizes = f"{many(measured['sentences'], 'sentence')}, {many(measured['positives'], 'positive pair')}"
    return Table(f"Geometry, {measured['task']}: {sizes}", ["", *sides], rows)


def _cost_rows(report: dict) -> list[list[str]]:
    rows = []
    if training := report.get("training"):
        steps = f"{training['steps']} (best at {training['best_step']})"
        rows += [["triplets trained on", f"{training['used']:,}"], ["steps", steps]]
    if seconds := report.get("seconds"):
        total, spent, rest = (number(seconds[key] / 60, 1) for key in ("total", "training", "evaluation"))
        rows += [["minutes (training, evaluation)", f"{total} ({spent}, {rest})"]]
    if report.get("peak_memory_gib"):
        rows += [["peak memory (GiB)", number(report["peak_memory_gib"], 2)]]
    return rows


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


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
