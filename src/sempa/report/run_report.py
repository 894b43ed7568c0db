"""The outcome of a run: a table for the terminal, `report.json`, and one self-contained `report.html`."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from sempa.io.files import write_atomic, write_json
from sempa.io.rows import many
from sempa.report import plots
from sempa.report.html import (
    html_details,
    html_figure,
    html_glossary,
    html_json,
    html_notes,
    html_page,
    html_sides,
    html_table,
)
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

NO_PICTURES = "Pictures need matplotlib: pip install 'sempa[plots]'."
_GLOSSARY = {
    "Spearman's ρ × 100": "rank correlation of cosines with human (or exact) similarity; higher is better",
    "95 %, p": "interval of the change over bootstrap draws of the pairs, and the paired test that aligned beats base",
    "preference accuracy": "fraction of held-out triplets with log π(entailment) > log π(contradiction); higher is "
    "better",
    "reward accuracy": "the same for the implicit rewards β log π/π_ref, which the objective trains; higher is better",
    "reward margin": "mean difference of the two implicit rewards, in nats",
    "perplexity": "exp of the mean negative log-likelihood per token, far from the training data; lower is better",
    "KL(base ‖ aligned)": "divergence of the next-token distributions, in nats per token; lower is better",
    "agreement": "fraction of tokens for which both models would choose the same next token",
    "alignment": "mean squared distance of pairs that mean the same, 0 to 4; lower is nearer",
    "uniformity": "log of the mean e^(−2 d²) over all pairs of sentences; lower is more even",
    "mean cosine": "of all pairs; 0 when the vectors point everywhere, 1 when they all point the same way",
    "partition ratio": "least over largest sum of e^(c · v) over directions c; 1 when no direction stands out",
    "IsoScore": "how evenly the variance lies on the dimensions, from 0 (on one) to 1 (on all alike)",
    "effective rank": "e^(entropy of the singular values): how many dimensions are in use",
    "hubness": "skewness of how often a sentence is among the 10 nearest of others; 0 without hubs",
}
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
    if report.get("budget"):
        made.append(_budget_table(report["budget"]))
    if report.get("generations"):
        made.append(_answers_table(report["generations"]))
    made += [_geometry_table(measured) for measured in report.get("geometry") or []]
    if cost := _cost_rows(report):
        made.append(Table("Cost", ["", ""], cost))
    return made


def page(report: dict, history: Sequence[dict]) -> str:
    """The whole HTML page."""
    report = finite(report)
    parts = [f"<h1>{escape(str(report.get('model', 'model')))}, aligned</h1>", f"<p>{escape(_summary(report))}</p>"]
    parts += [html_table(*table) for table in tables(report)]
    parts.append(html_notes(report.get("notes") or []))
    parts += ["<h2>Pictures</h2>", *_pictures(report, [finite(record) for record in history])]
    if answers := report.get("generations"):
        parts.append("<h2>Answers, side by side</h2><p class=note>Greedy decoding through the chat template.</p>")
        parts += [html_sides(a["prompt"], {side: a[side] for side in _sides(a)}) for a in answers]
    parts.append(html_glossary(_GLOSSARY))
    details = {key: report.get(key) for key in ("command", "config", "training", "versions", "machine", "base_source")}
    parts.append(html_details("Configuration, versions and machine", html_json(details)))
    return html_page("sempa report", parts)


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
    sides = _sides(measured)
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


def _summary(report: dict) -> str:
    text = "Sentence-level preference alignment (SemPA)"
    if training := report.get("training"):
        text += f" on {training['used']:,} triplets ({training['source']}), {training['steps']} steps"
    if seconds := report.get("seconds"):
        text += f", {number(seconds['total'] / 60, 1)} minutes in all"
    text += "."
    for row in report.get("sts") or []:
        text += f" {row['task']}: {number(row['base'], 1)} → {number(row['aligned'], 1)}."
    for row in report.get("retention") or []:
        text += f" Perplexity on {row['text']}: {signed_percent(row['change'])}."
    return text


def _pictures(report: dict, history: Sequence[dict]) -> list[str]:
    if not plots.available():
        return [html_notes([NO_PICTURES])]
    drawn = []
    if any("loss" in record for record in history):
        caption = (
            "The loss falls as the margin between chosen and rejected rewards grows. A chosen reward below 0 says that "
            "training makes the chosen sentence less likely, too; the higher CHES, the more of the push against the "
            "rejected sentence falls on the chosen one (likelihood displacement, arXiv 2410.08847)."
        )
        drawn.append(html_figure(plots.curves(history), caption))
    if budget := report.get("budget"):
        caption = (
            "Similarity gained and language model lost as the adapter's scale grows from the base, 0, to all that was "
            "trained, 1; the dotted lines are the budget and the scale that was saved."
        )
        drawn.append(html_figure(plots.budget(budget), caption))
    if points := report.get("scatter"):
        caption = f"{points['task']}: one point per pair. The better the model, the closer to one rising line."
        drawn.append(html_figure(plots.scatter(points), caption))
    for measured in report.get("geometry") or []:
        caption = (
            "Near pairs and an even spread are wanted at once, down and to the left. The dotted line is the least "
            f"uniformity in {measured['dimension']} dimensions."
        )
        drawn.append(html_figure(plots.plane(measured), caption, small=True))
        caption = "The flatter the curve, the more dimensions carry the differences."
        drawn.append(html_figure(plots.spectrum(measured), caption, small=True))
    return drawn


def _sides(measured: dict) -> list[str]:
    return [side for side in ("base", "aligned") if side in measured]


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
