"""Identity Preference Optimisation: regress the log-ratio margin onto a target instead of pushing it ever further."""

from torch import Tensor

from sempa.losses.log_ratios import log_ratios


def ipo_loss(
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Hold the margin between chosen and rejected log-ratio at 1/(2β).

    ℓ = (h − 1/(2β))²   with h = log π(y⁺|x)/π_ref(y⁺|x) − log π(y⁻|x)/π_ref(y⁻|x)

    Azar et al. 2023 (arXiv 2310.12036), Eq. 17, where β is called τ; with y⁺ and y⁻ sampled from the policy, or from
    its geometric mixture with the reference, it is Online IPO and IPO-MD (Calandriello et al. 2024, arXiv 2403.08635).
    Unlike DPO's, its optimum is finite even for preferences without noise.

    Args:
        policy_chosen: `[batch]` sentence log-probabilities log π(y⁺|x) in nats. Sums over the response's tokens, as in
            the equation, or means per token, as in TRL, with margins in nats per token and β larger accordingly.
        policy_rejected: `[batch]` the same of the rejected sentence.
        reference_chosen: `[batch]` log π_ref(y⁺|x), no gradient needed.
        reference_rejected: `[batch]` log π_ref(y⁻|x).
        beta: strength β > 0 of the pull towards the reference.

    Returns:
        losses `[batch]` in squared nats, and the detached implicit rewards β log π/π_ref of chosen and rejected,
        `[batch]` each.

    Raises:
        ValueError: the four shapes differ, or β is not positive.
    """
    chosen_log_ratio, rejected_log_ratio = log_ratios(
        "ipo_loss", policy_chosen, policy_rejected, reference_chosen, reference_rejected, beta
    )
    losses = (chosen_log_ratio - rejected_log_ratio - 1 / (2 * beta)) ** 2
    return losses, beta * chosen_log_ratio.detach(), beta * rejected_log_ratio.detach()
