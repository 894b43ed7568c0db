"""How the embedding space is shown: tables, pictures and words for a report, from measured figures."""

from html import escape
from pathlib import Path

from sempa.io.files import write_atomic, write_json
from sempa.io.rows import many
from sempa.report import geometry_plots, plots
from sempa.report.html import (
    NO_PICTURES,
    Table,
    finite,
    html_figure,
    html_glossary,
    html_page,
    html_table,
    number,
    share,
)

_GEOMETRY_WORDS = {
    "alignment": "mean squared distance of pairs that mean the same, 0 to 4; lower is nearer",
    "uniformity": "log of the mean e^(−2 d²) over all pairs of sentences; lower is more even",
    "mean cosine": "of all pairs; 0 when the vectors point everywhere, 1 when they all point the same way",
    "partition ratio": "least over largest sum of e^(c · v) over directions c; 1 when no direction stands out",
    "IsoScore": "how evenly the variance lies on the dimensions, from 0 (on one) to 1 (on all alike)",
    "effective rank": "e^(entropy of the singular values): how many dimensions are in use",
    "hubness": "skewness of how often a sentence is among the 10 nearest of others; 0 without hubs",
}
_KEY_TOKEN_WORDS = {
    "key tokens": "what the language-model head finds in an embedding; the sentence's own words among them say what it "
    "remembers literally",
    "entropy": "of the head's distribution over the vocabulary; low when one word says it all",
}
# Name, key, decimals; the arrow points to the better end.
_MEASURES = (
    ("alignment ↓", "alignment", 3),
    ("uniformity ↓", "uniformity", 3),
    ("mean cosine ↓", "mean_cosine", 3),
    ("partition ratio ↑", "partition_ratio", 3),
    ("IsoScore ↑", "isoscore", 4),
    ("effective rank ↑", "effective_rank", 1),
    ("hubness ↓", "hubness", 2),
)
_SIDES = ("base", "aligned")


def write_space(folder: Path, report: dict) -> None:
    """Write `geometry.json`, without the pairs' cosines, and `geometry.html` into `folder`, each atomically."""
    write_json(folder / "geometry.json", finite({key: value for key, value in report.items() if key != "cosines"}))
    write_atomic(folder / "geometry.html", space_page(report))


def space_page(report: dict) -> str:
    """A self-contained HTML page of the figures of `sempa.evaluation.compare_spaces.measure_tasks`."""
    what = f"readout {report['readout']}, layer {'its own' if report['layer'] == -1 else report['layer']}"
    if report["adapter"]:
        what += f", adapter {report['adapter']}"
    parts = [f"<h1>{escape(report['model'])}: geometry of the embeddings</h1>", f"<p>{escape(what)}.</p>"]
    parts += [f"<p class=note>{escape(note)}.</p>" for note in report["notes"]]
    parts += [html_table(*table) for table in space_tables(report)]
    pictures = [html_figure(*figure) for figure in space_figures(report)] if plots.available() else [NO_PICTURES]
    return html_page("sempa geometry", [*parts, "<h2>Pictures</h2>", *pictures, html_glossary(space_words(report))])


def geometry_table(measured: dict) -> Table:
    """The measures of one task's embeddings, a column per side."""
    sides = [side for side in _SIDES if side in measured]
    rows = [[name, *(number(measured[side][key], digits) for side in sides)] for name, key, digits in _MEASURES]
    sizes = f"{many(measured['sentences'], 'sentence')}, {many(measured['positives'], 'positive pair')}"
    return f"Geometry, {measured['task']}: {sizes}", ["", *sides], rows


def key_token_table(measured: dict) -> Table:
    """How much of the sentences their key tokens are, a column per side."""
    sides = [side for side in _SIDES if side in measured]
    rows = [
        [name, *(show(measured[side][key]) for side in sides)]
        for name, key, show in (
            ("words of the sentence among them", "share_by_word", share),
            ("tokens of the sentence among them", "share_by_id", share),
            ("sentences with a word among them", "hit_by_word", share),
            ("sentences with a token among them", "hit_by_id", share),
            ("entropy (nats)", "entropy", lambda value: number(value, 2)),
        )
    ]
    title = f"Key tokens, {measured['task']}: top {measured['top']} of {many(measured['sentences'], 'sentence')}"
    return title, ["", *sides], rows


def space_tables(report: dict) -> list[Table]:
    """The tables of a report's `geometry` and `key_tokens`, where it has them."""
    made = [geometry_table(measured) for measured in report.get("geometry") or []]
    return [*made, key_token_table(report["key_tokens"])] if report.get("key_tokens") else made


def space_words(report: dict) -> dict[str, str]:
    """What the words of the report's `geometry` and `key_tokens` mean, where it has them."""
    words = _GEOMETRY_WORDS if report.get("geometry") else {}
    return words | _KEY_TOKEN_WORDS if report.get("key_tokens") else words


def space_figures(report: dict) -> list[tuple[str, str, str]]:
    """Pictures of a report's `geometry`, `topics`, `key_tokens` and `cosines`: kind, SVG and caption of each.

    `cosines` holds for each task of `geometry` the `task`, the pairs' `gold` scores and each side's cosines.
    """
    drawn = []
    for place, points in enumerate(report.get("cosines") or []):
        caption = (
            f"{points['task']}: pairs by gold score. The better the model, the further right each row lies from "
            "the one below it, and the less they overlap."
        )
        drawn.append(("small", geometry_plots.cosine_histograms(points, f"cosines{place}"), caption))
    for place, measured in enumerate(report.get("geometry") or []):
        caption = f"{measured['task']}: the flatter the curve, the more dimensions carry the differences."
        drawn.append(("small", geometry_plots.spectrum(measured, f"spectrum{place}"), caption))
        caption = (
            f"{measured['task']}: near pairs and an even spread are wanted at once, down and to the left. The dotted "
            f"line is the least uniformity in {measured['dimension']} dimensions."
        )
        drawn.append(("small", geometry_plots.plane(measured, f"plane{place}"), caption))
    if topics := report.get("topics"):
        caption = "Six built-in sentences on each of six topics, on the two axes of their largest variance."
        drawn.append(("", geometry_plots.topics(topics, "topics"), caption))
    if tokens := report.get("key_tokens"):
        caption = (
            f"{tokens['task']}: left, how often the token of each rank is a word of the sentence; right, how sure the "
            "head is (dotted: the means)."
        )
        drawn.append(("", geometry_plots.key_tokens(tokens, "keytokens"), caption))
    return drawn


def key_token_examples(report: dict) -> list[str]:
    """A few sentences with their key tokens, as HTML; empty without them."""
    examples = (report.get("key_tokens") or {}).get("examples") or []
    if not examples:
        return []
    sides = [side for side in _SIDES if side in examples[0]]
    parts = ["<h2>Key tokens of a few sentences</h2>"]
    for example in examples:
        boxes = "".join(f"<div><b>{side}</b>{escape(_spoken(example[side]))}</div>" for side in sides)
        parts.append(f"<p><b>{escape(example['sentence'])}</b></p><div class=answers>{boxes}</div>")
    return parts


def _spoken(tokens: list[str]) -> str:
    # Blanks and line feeds are tokens too.
    return " · ".join(token.strip() or repr(token) for token in tokens)
