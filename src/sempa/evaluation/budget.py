"""How far the trained adapter may go: its scale is the largest whose divergence from the base stays within a budget.

W + scale · (α / r) B A lies between base (0) and policy (1). A part of the update keeps most of the similarity and more
of the language model (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903). How large a part is safe differs between
models, so it is measured on samples of the base that training did not see.
"""

import warnings
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise

import torch

from sempa.errors import SempaError
from sempa.model.base import BaseModel
from sempa.model.forward import row_states
from sempa.model.logprobs import kl_from_base
from sempa.model.lora import interpolated
from sempa.model.threads import parallel_map
from sempa.training.base_samples import BaseSample, base_samples


def fit_scale(base: BaseModel, budget: float, score: Callable[[], float]) -> tuple[float, list[dict[str, float]]]:
    """The scale of the adapter in `base.model` that a budget of KL(base ‖ policy) in nats per token allows.

    Returns it with a curve: the `kl` and the `score` at several scales. A budget of 0 sets no limit. Warns of a scale
    below 1 where the divergence does not grow with it, as bisection assumes. Raises `SempaError` as `largest_scale`.
    """
    samples = base_samples(base, held_out=True)
    # The curve repeats scales that bisection has measured already.
    kl = cache(lambda scale: divergence(base, samples, scale))
    scale = largest_scale(kl, budget) if budget else 1.0
    curve = []
    for point in sorted({0.0, 0.25, 0.5, 0.75, 1.0, scale}):
        with interpolated(base.model, point):
            similarity = score()
        curve.append({"scale": point, "kl": kl(point), "score": similarity})
    if scale < 1 and any(after["kl"] < before["kl"] for before, after in pairwise(curve)):
        warnings.warn("the divergence from the base does not grow with the adapter's scale", stacklevel=2)
    return scale, curve


def largest_scale(divergence: Callable[[float], float], budget: float) -> float:
    """The largest multiple of 1/1024 in (0, 1] whose divergence, assumed to grow with it, is within `budget`.

    Raises `SempaError` where there is none.
    """
    if divergence(1.0) <= budget:
        return 1.0
    # Ten measurements settle 1,023 scales. A NaN is beyond the budget.
    within = bisect_left(range(1, 1024), True, key=lambda step: not divergence(step / 1024) <= budget)
    if not within:
        found = f"the adapter diverges by {divergence(1 / 1024):.3g} nats per token even at {1 / 1024:.2g} of its size"
        raise SempaError(f"kl_budget is {budget:g}, but {found}; raise it and resume, or lower learning_rate")
    return within / 1024


@torch.inference_mode()
def divergence(base: BaseModel, samples: Sequence[BaseSample], scale: float) -> float:
    """KL(base ‖ policy) of the next token, the adapter scaled by `scale`, in nats: mean over the samples' tokens."""

    def row_divergence(sample: BaseSample) -> float:
        hidden = row_states(base.model, sample.packed)
        return kl_from_base(base.model, hidden, sample.hidden).cpu().double().sum().item()

    with interpolated(base.model, scale):
        total = sum(parallel_map(base.model, row_divergence, samples))
    return total / sum(len(sample.packed.tokens) for sample in samples)
