"""Pictures as SVG text, and those of a run: training curves, cosines against gold scores, and the embedding space."""

import io
import re
from collections.abc import Sequence
from importlib.util import find_spec

import numpy as np

# Okabe and Ito's blue and vermilion: distinct to everybody, with a contrast of at least 3 : 1 on light and dark ground.
BASE, ALIGNED = "#0072b2", "#d55e00"
COLOURS = {"base": BASE, "aligned": ALIGNED}
# Stands for the page's own text colour while matplotlib draws.
INK = "#123456"
_MOST_POINTS = 1500
# A picture that stands alone has no page to take its ink from.
_OWN_INK = "<style>svg{color:#222}@media(prefers-color-scheme:dark){svg{color:#ddd}}</style>"


def available() -> bool:
    """Whether matplotlib, an optional extra, can be imported."""
    return find_spec("matplotlib") is not None


def make_figure(columns: int, size: tuple[float, float], **options: object) -> tuple:
    """A matplotlib figure and its row of axes in the project's style, without global state; `size` is in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False, **options)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(INK)
        axis.tick_params(which="both", colors=INK, labelsize=8)
        for text in (axis.title, axis.xaxis.label, axis.yaxis.label):
            text.set(color=INK, fontsize=9)
    return figure, axes


def svg(figure: object, name: str, title: str, alone: bool = False) -> str:
    """The figure as SVG, the same bytes every time, with ink in the page's text colour or, `alone`, for any ground."""
    import matplotlib as mpl

    for axis in figure.axes:
        axis.title.set_fontsize(9)  # `set_title` went back to matplotlib's 12
    buffer = io.StringIO()
    metadata = {"Title": title, "Date": None, "Creator": None, "Format": None, "Type": None}
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = "<svg" + buffer.getvalue().partition("<svg")[2].replace(INK, "currentColor")
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    if alone:
        text = text.replace("</title>", f"</title>{_OWN_INK}", 1)
    # The width comes from the page; the aspect ratio from the view box.
    return re.sub(r' width="[^"]*" height="[^"]*"', ' role="img"', text, count=1)


def curves(history: Sequence[dict]) -> str:
    """Loss, implicit rewards, CHES and the development score over the training steps."""
    panels = {
        "loss (nats)": {"loss": ALIGNED, "nll_loss": BASE},
        "implicit reward (nats)": {"rewards/margins": ALIGNED, "rewards/chosen": BASE, "rewards/rejected": INK},
        "CHES of chosen and rejected": {"ches": ALIGNED},
        "development ρ × 100": {"eval/sts": ALIGNED},
    }
    panels = {title: names for title, names in panels.items() if any(record.keys() & names for record in history)}
    figure, axes = make_figure(len(panels), (2.4 * len(panels), 2.6))
    for axis, (title, names) in zip(axes, panels.items()):
        for name, colour in names.items():
            values = {record["step"]: record[name] for record in history if name in record}
            style = {"marker": "o", "markersize": 4} if name == "eval/sts" else {"linewidth": 1.4}
            axis.plot(list(values), list(values.values()), color=colour, label=name.split("/")[-1], **style)
        axis.set(title=title, xlabel="step")
        axis.legend(frameon=False, labelcolor=INK, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3)
    return svg(figure, "curves", "Loss, implicit rewards and development score over the training steps")


def budget(measured: dict) -> str:
    """Development score and divergence from the base over the adapter's scale."""
    figure, axes = make_figure(2, (6.6, 2.9))
    scales = [point["scale"] for point in measured["curve"]]
    for axis, key, title in ((axes[0], "score", "development ρ × 100"), (axes[1], "kl", "KL, nats per token")):
        axis.plot(scales, [point[key] for point in measured["curve"]], "o-", color=ALIGNED, markersize=4)
        axis.axvline(measured["scale"], color=INK, linewidth=0.8, linestyle=":")
        axis.set(title=title, xlabel="scale of the adapter")
    if measured["kl_budget"]:
        axes[1].axhline(measured["kl_budget"], color=INK, linewidth=0.8, linestyle=":")
    return svg(figure, "budget", "Development score and divergence from the base over the adapter's scale")


def scatter(points: dict) -> str:
    """Cosine against gold score of one task's pairs, base beside aligned."""
    step = -(-len(points["gold"]) // _MOST_POINTS)
    # Few points are drawn large, many small, so that either can be seen.
    area = min(24.0, max(5.0, 3000 / len(points["gold"])))
    figure, axes = make_figure(2, (8.4, 3.4), sharey=True)
    for axis, (side, colour) in zip(axes, COLOURS.items(), strict=True):
        axis.scatter(points["gold"][::step], points[side][::step], s=area, color=colour, alpha=0.6, linewidths=0)
        axis.set(title=side, xlabel="gold score")
    axes[0].set_ylabel("cosine")
    return svg(figure, "scatter", f"Cosine against gold score on {points['task']}")


def spectrum(geometry: dict) -> str:
    """Singular values as fractions of their sum on logarithmic axes; a dotted line marks the effective rank."""
    figure, (axis,) = make_figure(1, (6.0, 3.6))
    for side, colour in COLOURS.items():
        values = np.asarray(geometry[side]["spectrum"])
        values = values[values > values[0] * 1e-9] / values.sum()
        shown = np.unique(np.geomspace(1, len(values), 200).round().astype(int))
        rank = geometry[side]["effective_rank"]
        axis.loglog(shown, values[shown - 1], color=colour, linewidth=1.6, label=f"{side}: effective rank {rank:.0f}")
        axis.axvline(rank, color=colour, linestyle=":", linewidth=1.2)
    axis.set(title="singular values, as fractions of their sum", xlabel="singular value")
    axis.legend(frameon=False, labelcolor=INK, fontsize=8)
    return svg(figure, "spectrum", "Singular spectrum of the embeddings on logarithmic axes")
