"""Pictures of embeddings, before and after alignment: cosines by gold score, spectrum, plane, topics, key tokens."""

from collections.abc import Sequence

import numpy as np

from sempa.report.plots import ALIGNED, BASE, INK, make_figure, svg

COLOURS = {"base": BASE, "aligned": ALIGNED}
# Okabe and Ito's colours that show on light and on dark ground, each with a marker of its own.
_GROUP_STYLES = (
    ("#e69f00", "o"),
    ("#56b4e9", "s"),
    ("#009e73", "^"),
    ("#cc79a7", "D"),
    ("#d55e00", "v"),
    ("#0072b2", "P"),
)
_GOLD_BINS = 5
_COSINE_BINS = 50
_SPECTRUM_POINTS = 200


def cosine_histograms(points: dict, name: str) -> str:
    """A histogram of the pairs' cosines for each fifth of the gold scale, one above the other.

    `points` holds `task`, `gold` `[n]` and one list of cosines `[n]` for each side.
    """
    gold = np.asarray(points["gold"], dtype=np.float64)
    edges = np.linspace(gold.min(), gold.max(), _GOLD_BINS + 1)
    grade = np.clip(np.searchsorted(edges, gold, side="right") - 1, 0, _GOLD_BINS - 1)
    sides = _sides(points)
    cosines = {side: np.asarray(points[side]) for side in sides}
    bins = np.linspace(min(map(np.min, cosines.values())), max(map(np.max, cosines.values())), _COSINE_BINS + 1)
    figure, (axis,) = make_figure(1, 1, (6.0, 3.9))
    for side in sides:
        counts = [np.histogram(cosines[side][grade == g], bins)[0] for g in range(_GOLD_BINS)]
        shares = [count / max(1, count.sum()) for count in counts]
        # One scale per side: its grades can be compared, and a narrow side does not flatten the other.
        scale = 0.9 / max(share.max() for share in shares)
        for g, share in enumerate(shares):
            label = side if g == 0 else None
            axis.stairs(g + scale * share, bins, baseline=g, fill=True, color=COLOURS[side], alpha=0.55, label=label)
    axis.set_yticks(range(_GOLD_BINS), [f"{low:g}–{high:g}" for low, high in zip(edges.round(1), edges[1:].round(1))])
    axis.set_ylabel("gold score")
    axis.set_xlabel("cosine")
    axis.set_title(f"cosines by gold score, {points['task']}")
    _legend(axis, sides)
    return svg(figure, name, f"Histograms of cosines for each fifth of the gold scale on {points['task']}")


def spectrum(measured: dict, name: str) -> str:
    """Singular values as shares of their sum on logarithmic axes; a dotted line marks the effective rank."""
    figure, (axis,) = make_figure(1, 1, (6.0, 3.6))
    for side in _sides(measured):
        values = np.asarray(measured[side]["spectrum"])
        values = values[values > values[0] * 1e-9] / values.sum()
        shown = np.unique(np.geomspace(1, len(values), _SPECTRUM_POINTS).round().astype(int))
        rank = measured[side]["effective_rank"]
        axis.loglog(shown, values[shown - 1], color=COLOURS[side], linewidth=1.6, label=f"{side}: erank {rank:.0f}")
        axis.axvline(rank, color=COLOURS[side], linestyle=":", linewidth=1.2)
    axis.set_xlabel("axis")
    axis.set_title("singular values, as shares of their sum")
    axis.legend(frameon=False, labelcolor=INK, fontsize=8)
    return svg(figure, name, "Singular spectrum of the embeddings on logarithmic axes")


def plane(measured: dict, name: str) -> str:
    """Alignment over uniformity, an arrow from base to aligned; the dotted line is the uniform distribution."""
    sides = _sides(measured)
    figure, (axis,) = make_figure(1, 1, (6.0, 3.6))
    places = {side: (measured[side]["uniformity"], measured[side]["alignment"]) for side in sides}
    for side, place in places.items():
        axis.plot(*place, "o", color=COLOURS[side], markersize=9, label=side)
    if len(sides) == 2:
        style = {"arrowstyle": "-|>", "color": INK, "shrinkA": 7, "shrinkB": 7}
        axis.annotate("", xy=places["aligned"], xytext=places["base"], arrowprops=style)
    limit = measured["least_uniformity"]
    axis.axvline(limit, color=INK, linestyle=":", linewidth=1, label="uniform on the sphere")
    axis.set_xlim(limit - 0.15, max(0.0, *(x for x, _ in places.values())) + 0.15)
    axis.set_ylim(0, 1.35 * max(y for _, y in places.values()))
    axis.set_xlabel("uniformity (lower is more even)")
    axis.set_ylabel("alignment (lower is nearer)")
    axis.set_title("alignment and uniformity")
    axis.legend(frameon=False, labelcolor=INK, fontsize=8, loc="upper right")
    return svg(figure, name, "Alignment over uniformity, an arrow from the base model to the aligned one")


def topics(projection: dict, name: str) -> str:
    """The sentence groups on the two axes of most variance, one panel per side.

    `projection` holds the `topic` of each sentence, and for each side `points` `[n, 2]` and `shares` `[2]`.
    """
    sides = _sides(projection)
    figure, axes = make_figure(1, len(sides), (4.2 * len(sides) + 1.2, 3.8))
    names = list(dict.fromkeys(projection["topic"]))
    for axis, side in zip(axes, sides, strict=True):
        points = np.asarray(projection[side]["points"])
        for topic, (colour, marker) in zip(names, _GROUP_STYLES, strict=True):
            own = points[[t == topic for t in projection["topic"]]]
            axis.plot(*own.T, marker, color=colour, markersize=6, alpha=0.85, label=topic, markeredgewidth=0)
        axis.set_aspect("equal", adjustable="datalim")
        axis.set_xticks([])
        axis.set_yticks([])
        axis.set_title(f"{side}: {sum(projection[side]['shares']):.0%} of the variance")
    axes[-1].legend(frameon=False, labelcolor=INK, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return svg(figure, name, "Sentences of six topics on the two principal axes of their embeddings")


def key_tokens(measured: dict, name: str) -> str:
    """How often the token of each rank is a word of the sentence, and the entropies of the head's distribution."""
    sides = _sides(measured)
    figure, axes = make_figure(1, 2, (8.4, 3.1))
    ranks = np.arange(1, measured["top"] + 1)
    low, high = (pick(pick(measured[side]["entropies"]) for side in sides) for pick in (min, max))
    for side in sides:
        shares = 100 * np.asarray(measured[side]["by_rank"])
        axes[0].plot(ranks, shares, "o-", color=COLOURS[side], markersize=4, label=side)
        axes[1].hist(measured[side]["entropies"], np.linspace(low, high + 1e-6, 31), color=COLOURS[side], alpha=0.55)
        axes[1].axvline(measured[side]["entropy"], color=COLOURS[side], linestyle=":")
    axes[0].set_ylim(0)
    axes[0].set_xlabel("rank of the token")
    axes[0].set_title("sentences that hold the word, %")
    axes[1].set_xlabel("nats")
    axes[1].set_title("entropy of the distribution over the vocabulary")
    axes[0].legend(frameon=False, labelcolor=INK, fontsize=8)
    return svg(figure, name, "Share of sentences that hold their key tokens by rank, and histograms of entropy")


def _sides(measured: dict) -> list[str]:
    return [side for side in COLOURS if side in measured]


def _legend(axis: object, sides: Sequence[str]) -> None:
    if len(sides) > 1:
        axis.legend(frameon=False, labelcolor=INK, fontsize=8, ncols=2, loc="upper left", bbox_to_anchor=(0, 1.0))
