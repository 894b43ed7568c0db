"""The report's pictures as SVG text: training curves, similarity before and after, cosines against gold scores."""

import io
import re
from collections.abc import Sequence
from html import escape

# Okabe and Ito's blue and orange can be told apart by everybody, on light and on dark ground.
BASE, ALIGNED = "#56b4e9", "#e69f00"
# Stands for the page's own text colour while matplotlib draws.
INK = "#123456"
_MOST_POINTS = 1500
# A picture that stands alone has no page to take its ink from.
_OWN_INK = "<style>svg{color:#222}@media(prefers-color-scheme:dark){svg{color:#ddd}}</style>"


def available() -> bool:
    """Whether matplotlib, an optional extra, can be imported."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def curves(history: Sequence[dict]) -> str:
    """Loss and NLL, reward margin and accuracy, and the development score over the training steps."""
    steps = [r for r in history if "loss" in r]
    scores = [r for r in history if "eval/sts" in r]
    figure, axes = make_figure(1, 3, (10.5, 2.9))
    x = [r["step"] for r in steps]
    for axis, title, names in (
        (axes[0], "loss (nats)", {"loss": "loss", "nll_loss": "NLL per token"}),
        (axes[1], "implicit reward (nats)", {"rewards/margins": "margin", "rewards/chosen": "chosen"}),
    ):
        for (name, label), colour in zip(names.items(), (ALIGNED, BASE), strict=True):
            axis.plot(x, [r.get(name) for r in steps], color=colour, label=label, linewidth=1.4)
        axis.set_title(title)
        axis.legend(frameon=False, labelcolor=INK)
    axes[2].plot([r["step"] for r in scores], [r["eval/sts"] for r in scores], color=ALIGNED, marker="o", markersize=4)
    axes[2].set_title("development ρ × 100")
    for axis in axes:
        axis.set_xlabel("step")
    return svg(figure, "curves", "Loss, reward margin and development score over training steps")


def displacement(history: Sequence[dict], beta: float) -> str:
    """Whether likelihood is displaced (arXiv 2410.08847): chosen and rejected log-ratio, and CHES, over the steps."""
    steps = [r for r in history if "ches" in r]
    figure, axes = make_figure(1, 2, (10.5, 2.9))
    x = [r["step"] for r in steps]
    for name, colour in (("chosen", ALIGNED), ("rejected", BASE)):
        ratios = [None if r[f"rewards/{name}"] is None else r[f"rewards/{name}"] / beta for r in steps]
        axes[0].plot(x, ratios, color=colour, label=name, linewidth=1.4)
    axes[0].axhline(0, color=INK, linewidth=0.6)
    axes[0].set_title("log-ratio to the base (nats per sentence)")
    axes[0].legend(frameon=False, labelcolor=INK)
    axes[1].plot(x, [r["ches"] for r in steps], color=ALIGNED, linewidth=1.4)
    axes[1].set_title("CHES of chosen and rejected")
    for axis in axes:
        axis.set_xlabel("step")
    return svg(figure, "displacement", "Log-ratios of chosen and rejected sentences, and CHES, over training steps")


def bars(table: Sequence[dict]) -> str:
    """Spearman's ρ × 100 of each task, base beside aligned."""
    figure, (axis,) = make_figure(1, 1, (max(4.0, 1.5 * len(table) + 1.5), 3.0))
    for offset, colour, name in ((-0.2, BASE, "base"), (0.2, ALIGNED, "aligned")):
        heights = [row[name] or 0.0 for row in table]
        drawn = axis.bar([i + offset for i in range(len(table))], heights, 0.38, color=colour, label=name)
        axis.bar_label(drawn, fmt="%.1f", color=INK, fontsize=8)
    axis.set_xticks(range(len(table)), [row["task"] for row in table])
    axis.set_ylim(0, 105)
    axis.set_title("Spearman's ρ × 100")
    axis.legend(frameon=False, labelcolor=INK, ncols=2, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return svg(figure, "bars", "Similarity scores of base and aligned model")


def scatter(points: dict, table: Sequence[dict]) -> str:
    """Cosine against gold score of one task's pairs, base beside aligned."""
    scores = next((row for row in table if row["task"] == points["task"]), {})
    step = -(-len(points["gold"]) // _MOST_POINTS)
    # Few points are drawn large, many small, so that either can be seen.
    area = min(24.0, max(5.0, 3000 / len(points["gold"])))
    figure, axes = make_figure(1, 2, (8.4, 3.4), sharey=True)
    for axis, colour, name in zip(axes, (BASE, ALIGNED), ("base", "aligned"), strict=True):
        axis.scatter(points["gold"][::step], points[name][::step], s=area, color=colour, alpha=0.6, linewidths=0)
        score = scores.get(name)
        axis.set_title(f"{name}" if score is None else f"{name}: ρ = {score / 100:.3f}")
        axis.set_xlabel("gold similarity")
    axes[0].set_ylabel("cosine")
    return svg(figure, "scatter", f"Cosine against gold score on {points['task']}")


def make_figure(rows: int, columns: int, size: tuple[float, float], **options: object) -> tuple:
    """A matplotlib figure and its row of axes in the project's style, without global state; `size` is in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options)[0]
    for axis in axes:
        axis.set_facecolor("none")
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(INK)
        axis.tick_params(which="both", colors=INK, labelsize=8)
        for text in (axis.title, axis.xaxis.label, axis.yaxis.label):
            text.set_color(INK)
            text.set_fontsize(9)
    return figure, axes


def svg(figure: object, name: str, title: str) -> str:
    """The figure as an inline SVG: ink in the page's text colour, ids of its own, the same bytes every time."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": name, "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="|url\()#', rf"\g<1>#{name}-", text)
    text = re.sub(r"font: (\d+)px [^;\"]+", r"font: \1px system-ui, sans-serif", text)
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # The width comes from the page; the aspect ratio from the view box.
    opening = re.match(r"<svg[^>]*>", text).group()
    title = escape(title)
    lean = re.sub(r' (width|height)="[^"]*"', "", opening).replace(">", f' role="img" aria-label="{title}">')
    return lean + f"<title>{title}</title>" + text[len(opening) :]


def standalone(picture: str) -> str:
    """An SVG of `svg` as a file of its own, which is shown as an image: dark ink on light ground, light ink on dark."""
    return picture.replace("</title>", f"</title>{_OWN_INK}", 1)
