"""Four pictures of the theory: rounding, mutual information, many negatives, gradient weights."""

import io
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn.functional import pad

from sempa.errors import SempaError
from sempa.io.files import write_atomic
from sempa.losses import infonce_loss, plackett_luce_loss
from sempa.report import plots
from sempa.theory.information import draw_channel, hard_negatives
from sempa.theory.ranking import draw_candidates
from sempa.theory.sphere import uniform_sphere
from sempa.theory.statement import value_and_gradient

_COLOURS = (plots.BASE, plots.ALIGNED, "#009e73", "#cc79a7")


def draw_all(folder: Path, seed: int) -> Iterator[Path]:
    """Draw every picture into `folder` as PNG and yield the paths; raises `SempaError` without matplotlib."""
    if not plots.available():
        raise SempaError("--plot: needs matplotlib: pip install matplotlib")
    for draw in (_rounding, _information, _many_negatives, _gradient_weights):
        figure, (axis,) = plots.make_figure(1, (5.6, 3.8))
        draw(axis, torch.Generator().manual_seed(seed))
        axis.legend(frameon=False, fontsize=8).set_zorder(5)
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=150, facecolor="white")
        path = folder / f"{draw.__name__.removeprefix('_')}.png"
        write_atomic(path, png.getvalue())
        yield path


def _rounding(axis: object, generator: torch.Generator) -> None:
    sizes = [2**power - 1 for power in range(1, 11)]
    candidates = [draw_candidates(generator, 64, size) for size in sizes]
    for colour, dtype in zip(_COLOURS, (torch.float32, torch.float64)):
        name = str(dtype).removeprefix("torch.")
        # A difference of exactly 0 has no place on a logarithmic axis: it is drawn at the unit roundoff of its row.
        floor = torch.finfo(dtype).eps / 2
        errors = []
        for drawn in candidates:
            ranked = plackett_luce_loss(drawn.rewards(drawn.policy).to(dtype), top=1)
            contrastive = infonce_loss((drawn.policy - drawn.reference).to(dtype), 1 / drawn.beta)
            errors.append(max(float((ranked - contrastive).abs().max()), floor))
        axis.loglog(sizes, errors, "o-", color=colour, markersize=3, label=name)
        axis.axhline(floor, color=colour, linestyle=":", linewidth=1, label=f"ε of {name}")
    axis.set(title="|Plackett–Luce top-1 − InfoNCE|, largest of 64 prompts (nats)", xlabel="negatives K")


def _information(axis: object, generator: torch.Generator) -> None:
    channel = draw_channel(generator)
    sizes = [2**power for power in range(13)]
    best, hard = channel.best_critic(channel.marginal), hard_negatives(channel)
    for colour, label, critic, proposal in (
        (_COLOURS[1], "best critic", best, channel.marginal),
        (_COLOURS[0], "critic half as steep", best / 2, channel.marginal),
        (_COLOURS[3], "hard negatives, their best critic", channel.best_critic(hard), hard),
    ):
        values = [float(channel.bound(critic, proposal, k)) for k in sizes]
        axis.semilogx(sizes, values, "o-", color=colour, markersize=3, label=label)
    information, divergence = float(channel.divergence(channel.marginal)), float(channel.divergence(hard))
    axis.axhline(information, color="black", linewidth=1, label="I(x; y)")
    axis.axhline(divergence, color=_COLOURS[3], linewidth=1, linestyle="--", label="E KL(p(y|x) ‖ q(y|x))")
    axis.semilogx(sizes, [math.log(k + 1) for k in sizes], color="grey", linestyle=":", label="log(K + 1)")
    axis.set_ylim(0, 1.25 * max(information, divergence))
    axis.set(title="log(K + 1) − E InfoNCE (nats)", xlabel="negatives K")


def _many_negatives(axis: object, generator: torch.Generator) -> None:
    sizes = [4**power for power in range(1, 9)]
    for colour, (dimension, temperature) in zip(_COLOURS, ((3, 0.5), (16, 0.25), (64, 0.2)), strict=False):
        setting = uniform_sphere(dimension, temperature, 0.7)
        limit = float(setting.alignment() + setting.uniformity())
        gaps = [abs(setting.excess(k) - limit) for k in sizes]
        axis.loglog(sizes, gaps, "o-", color=colour, markersize=3, label=f"{dimension} dimensions, τ = {temperature}")
        axis.loglog(sizes, [abs(float(setting.next_order())) / k for k in sizes], ":", color=colour, linewidth=1)
    axis.loglog(sizes, [k**-0.5 for k in sizes], "--", color="grey", linewidth=1, label="K^(−1/2), the proved rate")
    axis.set(title="|E ℓ − log K − (alignment + uniformity)|, dotted: c/K (nats)", xlabel="negatives K")


def _gradient_weights(axis: object, generator: torch.Generator) -> None:
    margins = torch.linspace(-6, 8, 141, dtype=torch.float64)
    for colour, negatives in zip(_COLOURS, (1, 4, 16, 64), strict=True):
        # All negatives at 0, the positive at the margin: what pulls on the positive.
        rewards = pad(margins[:, None], (0, negatives))
        _, gradient = value_and_gradient(lambda r: plackett_luce_loss(r, top=1), rewards)
        label = "K = 1: σ(−margin), DPO" if negatives == 1 else f"K = {negatives}"
        axis.plot(margins, -gradient[:, 0], color=colour, label=label)
    axis.set(title="−∂ℓ/∂r₀ = 1 − p₀, weight of a prompt in the gradient", xlabel="reward margin r₀ − rⱼ (nats)")
