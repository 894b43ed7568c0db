"""Conservative DPO: preferences that may be wrong, each with the same known probability."""

import torch.nn.functional as F
from torch import Tensor

from sempa.losses.log_ratios import log_ratios


def conservative_dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
    label_smoothing: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """DPO for preference labels that are flipped with probability ε.

    ℓ = −(1 − ε) log σ(m) − ε log σ(−m)   with m = β [log π(y⁺|x)/π_ref(y⁺|x) − log π(y⁻|x)/π_ref(y⁻|x)]

    Mitchell 2023, *A note on DPO with noisy preferences and relationship to IPO*. The minimum is at σ(m) = 1 − ε, so
    the margin stops at log((1 − ε)/ε); the gradient ∂ℓ/∂m = σ(m) − (1 − ε) is DPO's at ε = 0.

    Args:
        policy_chosen: `[batch]` sentence log-probabilities log π(y⁺|x) in nats, the *sum* over the response's tokens.
        policy_rejected: `[batch]` the same of the rejected sentence.
        reference_chosen: `[batch]` log π_ref(y⁺|x), no gradient needed.
        reference_rejected: `[batch]` log π_ref(y⁻|x).
        beta: inverse temperature β > 0 of the implicit reward β log π/π_ref.
        label_smoothing: ε in [0, 0.5).

    Returns:
        losses `[batch]` in nats, and the detached implicit rewards of chosen and rejected, `[batch]` each.

    Raises:
        ValueError: the four shapes differ, β is not positive, or ε is outside [0, 0.5).
    """
    chosen_log_ratio, rejected_log_ratio = log_ratios(
        "conservative_dpo_loss", policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta
    )
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"conservative_dpo_loss needs label_smoothing in [0, 0.5), found {label_smoothing}")
    margin = beta * (chosen_log_ratio - rejected_log_ratio)
    losses = -(1 - label_smoothing) * F.logsigmoid(margin) - label_smoothing * F.logsigmoid(-margin)
    return losses, beta * chosen_log_ratio.detach(), beta * rejected_log_ratio.detach()
