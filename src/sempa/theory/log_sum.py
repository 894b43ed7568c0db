"""The expected InfoNCE loss for any number of negatives, without drawing one."""

import torch
from torch import Tensor

# Nodes of the trapezoid rule in log u. Its error falls like e^{−π²/step}, far below rounding.
_STEP, _LOW, _HIGH = 0.1, -20.0, 6.0


def expected_log_sum(fixed: Tensor, values: Tensor, probabilities: Tensor, draws: int) -> Tensor:
    """E log(A + W_1 + … + W_K) for K = `draws` ≥ 1 independent draws W_j of a discrete variable: `[rows]` nats.

    `fixed` `[rows]` float64 is A > 0; `values` `[rows, outcomes]` float64 are those of W, at least 0, and each row of
    their `probabilities` adds to 1. By Frullani's integral log S = ∫₀^∞ (e^{−u} − e^{−uS}) du/u, and
    E e^{−uS} = e^{−uA} (E e^{−uW})^K: one integral for any K.
    """
    # In units of E S, so that the integrand is of second order at the left end.
    unit = fixed + draws * (values * probabilities).sum(1)
    fixed, values = fixed / unit, values / unit[:, None]
    # The right end lies where e^{−uA} alone has died out.
    u = torch.arange(_LOW, _HIGH - float(fixed.log().min()), _STEP, dtype=torch.float64).exp()
    transform = (probabilities[:, None] * torch.expm1(-u[:, None] * values[:, None])).sum(2)  # [rows, nodes]
    # log1p of −1 is −∞ where no value is 0 and u is large: the power is then 0, as it should be.
    exponent = -u * fixed[:, None] + draws * torch.log1p(transform.clamp_min(-1))
    return unit.log() + (torch.expm1(-u) - torch.expm1(exponent)).sum(1) * _STEP


def expected_infonce(
    positive: Tensor, scores: Tensor, probabilities: Tensor, weights: Tensor, negatives: int
) -> Tensor:
    """E of −log [e^{s₀} / (e^{s₀} + Σ_{j=1}^K e^{s_j})] over weighted rows and K independent negatives; a scalar.

    `positive` `[rows]` scores s₀ of the positives (divided by the temperature); `scores` `[rows, outcomes]` of all that
    may be drawn as a negative, with the `probabilities` of drawing it; `weights` `[rows]` probabilities of the rows.
    """
    log_sums = expected_log_sum(positive.exp(), scores.exp(), probabilities, negatives)
    return (weights * (log_sums - positive)).sum()
