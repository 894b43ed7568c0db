"""A monitor of likelihood displacement: pairs so alike that preferring one sinks both."""

import torch
from torch import Tensor


def ches_score(hidden: Tensor, owner: Tensor, lengths: Tensor, *, length_normalised: bool = False) -> Tensor:
    """Centred Hidden Embedding Similarity of the chosen response to each of the others.

        CHES(x, y⁺, y⁻) = ⟨Σ_k h(x, y⁺_<k), Σ_k h(x, y⁻_<k)⟩ − ‖Σ_k h(x, y⁺_<k)‖²

    Razin et al. 2024 (arXiv 2410.08847), Definition 2: the higher the score, the more of the push against y⁻ falls on
    y⁺ as well, whose probability then drops too. The length-normalised form, which suits responses of different
    lengths better, has means in place of the sums.

    Args:
        hidden: `[M, D]` last hidden states after the final norm that predict the response tokens, the prompt's last one
            included: `hidden_states[row.source]` of a `PreferenceRow`. Any floating dtype, summed in float32 or better.
        owner: `[M]` int64, the response that each belongs to: `example · responses + k`, the chosen one at k = 0.
        lengths: `[n, responses]` how many tokens each response has.
        length_normalised: divide each sum by its number of tokens.

    Returns:
        `[n, responses − 1]`, without gradient.

    Raises:
        ValueError: shapes that do not fit, fewer than two responses, or lengths other than the owners' counts.
    """
    if lengths.ndim != 2 or lengths.shape[1] < 2:
        raise ValueError(f"ches_score needs lengths [n, responses >= 2], found {tuple(lengths.shape)}")
    if hidden.ndim != 2 or owner.shape != hidden.shape[:1]:
        raise ValueError(
            f"ches_score needs hidden [M, D] and owner [M], found {tuple(hidden.shape)} and {tuple(owner.shape)}"
        )
    lengths, owner = lengths.to(hidden.device), owner.to(hidden.device)
    if not torch.equal(torch.bincount(owner, minlength=lengths.numel()), lengths.flatten()):
        raise ValueError("ches_score needs lengths that count the owners, found others")
    hidden = hidden.detach()
    wide = hidden if hidden.dtype == torch.float64 else hidden.float()
    totals = wide.new_zeros(lengths.numel(), hidden.shape[1]).index_add_(0, owner, wide).unflatten(0, lengths.shape)
    if length_normalised:
        totals = totals / lengths[..., None]
    chosen, others = totals[:, :1], totals[:, 1:]
    return ((others - chosen) * chosen).sum(2)
