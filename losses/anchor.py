"""The anchor that keeps a preference objective from unlearning the chosen sentence itself."""

from torch import Tensor


def nll_per_token(policy_chosen: Tensor, chosen_tokens: Tensor) -> Tensor:
    """Negative log-likelihood of the chosen sentence per token, −log π(y⁺|x) / |y⁺|.

    DPO fixes only the *difference* of two log-ratios, so both may sink together (likelihood displacement, Razin et al.
    2024, arXiv 2410.08847). Adding this term, as Pang et al. 2024 do (arXiv 2404.19733, Eq. 1), holds the chosen one.

    Args:
        policy_chosen: `[batch]` log-probabilities of the chosen responses in nats, summed over the tokens that count.
        chosen_tokens: `[batch]` how many tokens that is, at least 1 each.

    Returns:
        `[batch]` nats per token.

    Raises:
        ValueError: log-probabilities and counts of different shapes.
    """
    if policy_chosen.shape != chosen_tokens.shape:
        found = f"{tuple(policy_chosen.shape)} and {tuple(chosen_tokens.shape)}"
        raise ValueError(f"nll_per_token needs log-probabilities and counts of one shape [batch], found {found}")
    return -policy_chosen / chosen_tokens
