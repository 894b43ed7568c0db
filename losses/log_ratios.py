"""Checked log-ratios of policy to reference, the input of every loss on pairs of sentences."""

from torch import Tensor


def log_ratios(
    loss: str,
    policy_chosen: Tensor,
    policy_rejected: Tensor,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """log π(y|x)/π_ref(y|x) of the chosen and of the rejected sentence, `[batch]` nats each.

    `loss` is the caller's name, for the message. Raises `ValueError` when the four shapes differ, or β is not positive.
    """
    shapes = {tuple(t.shape) for t in (policy_chosen, policy_rejected, reference_chosen, reference_rejected)}
    if len(shapes) != 1:
        raise ValueError(f"{loss} needs four tensors of one shape [batch], found {sorted(shapes)}")
    if not 0 < beta < float("inf"):
        raise ValueError(f"{loss} needs beta > 0, found {beta}")
    return policy_chosen - reference_chosen, policy_rejected - reference_rejected
