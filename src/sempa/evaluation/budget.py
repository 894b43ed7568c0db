"""How far the trained adapter may go: its scale is the largest whose divergence from the base stays within a budget.

W + scale · (α / r) B A lies between base (0) and policy (1). A part of the update keeps most of the similarity and more
of the language model (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903). How large a part is safe differs between
models, so it is measured on samples of the base that training did not see.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise

import torch

from sempa.errors import SempaError
from sempa.kernels import token_kl
from sempa.model.base import BaseModel
from sempa.model.forward import row_states
from sempa.model.logprobs import head_parts, scale_for_head
from sempa.model.lora import interpolated
from sempa.model.threads import parallel_map
from sempa.training.base_samples import BaseSample, base_samples


def fit_scale(base: BaseModel, budget: float, score: Callable[[], float]) -> tuple[float, list[dict[str, float]]]:
    """The scale of the adapter in `base.model` that a budget of KL(base ‖ policy) in nats per token allows.

    Returns it with a curve: the `kl` and the `score` at several scales. A budget of 0 sets no limit. Warns where the
    divergence does not grow with the scale, which bisection assumes. Raises `SempaError` as `largest_scale` does.
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
    if any(after["kl"] < before["kl"] for before, after in pairwise(curve)):
        warnings.warn("the divergence from the base does not grow with the adapter's scale", stacklevel=2)
    return scale, curve


def largest_scale(divergence: Callable[[float], float], budget: float) -> float:
    """The largest scale in (0, 1], to 1/1024, whose divergence, assumed to grow with it, is within `budget`.

    Raises `SempaError` where there is none.
    """
    if divergence(1.0) <= budget:
        return 1.0
    within, beyond = 0.0, 1.0
    # Ten halvings leave an interval of 1/1024.
    for _ in range(10):
        middle = (within + beyond) / 2
        within, beyond = (middle, beyond) if divergence(middle) <= budget else (within, middle)
    if not within:
        found = f"the adapter diverges by {divergence(middle):.3g} nats per token even at {middle:.2g} of its size"
        raise SempaError(f"kl_budget is {budget:g}, but {found}; lower learning_rate")
    return within


@torch.inference_mode()
def divergence(base: BaseModel, samples: Sequence[BaseSample], scale: float) -> float:
    """KL(base ‖ policy) of the next token, the adapter scaled by `scale`, in nats: mean over the samples' tokens."""

    def row_divergence(sample: BaseSample) -> float:
        states = (row_states(base.model, sample.packed), sample.hidden)
        policy, reference = (scale_for_head(base.model, hidden) for hidden in states)
        return token_kl(policy, reference, **head_parts(base.model)).cpu().double().sum().item()

    with interpolated(base.model, scale):
        total = sum(parallel_map(base.model, row_divergence, samples))
    return total / sum(len(sample.packed.tokens) for sample in samples)
