"""Sentence-level Direct Preference Optimisation, the objective of SemPA."""

import torch.nn.functional as F
from torch import Tensor

from sempa.losses.log_ratios import log_ratios


def dpo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Prefer the chosen sentence to the rejected one, measured against a frozen reference.

    ℓ = −log σ(β [(log π(y⁺|x) − log π_ref(y⁺|x)) − (log π(y⁻|x) − log π_ref(y⁻|x))])

    Rafailov et al. 2023 (arXiv 2305.18290), Eq. 7; with y⁺ an entailment and y⁻ a contradiction of x it is the
    sentence-level objective of SemPA (arXiv 2601.05075).

    Args:
        policy_chosen: `[batch]` sentence log-probabilities log π(y⁺|x) in nats, the *sum* over the response's tokens.
        policy_rejected: `[batch]` the same of the rejected sentence.
        reference_chosen: `[batch]` log π_ref(y⁺|x), no gradient needed.
        reference_rejected: `[batch]` log π_ref(y⁻|x).
        beta: inverse temperature β > 0 of the implicit reward β log π/π_ref.

    Returns:
        losses `[batch]` in nats, and the detached implicit rewards of chosen and rejected, `[batch]` each.

    Raises:
        ValueError: the four shapes differ, or β is not positive.
    """
    chosen_log_ratio, rejected_log_ratio = log_ratios(
        "dpo_loss", policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta
    )
    losses = -F.logsigmoid(beta * (chosen_log_ratio - rejected_log_ratio))
    return losses, beta * chosen_log_ratio.detach(), beta * rejected_log_ratio.detach()
