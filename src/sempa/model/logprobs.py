"""From hidden states to log-probabilities: the head of the model, and log π(y|x) of packed preferences."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel

from sempa.batching.packing import PreferenceRow, pack_preferences
from sempa.batching.prompts import Preference
from sempa.kernels import token_kl, token_logprobs
from sempa.model.forward import row_states
from sempa.model.threads import parallel_map


def sequence_logprobs(model: PreTrainedModel, row: PreferenceRow) -> Tensor:
    """log π(y_k|x) = Σ_t log π(y_kt | x, y_k<t) of each example's responses: `[examples, responses]` float32, nats."""
    return sum_by_response(response_token_logprobs(model, row_states(model, row.packed), row), row)


def response_token_logprobs(model: PreTrainedModel, hidden: Tensor, row: PreferenceRow) -> Tensor:
    """log π(y_kt | x, y_k<t) of every response token, `[M]` float32 nats, from hidden states `[length, D]`.

    The head runs only where a response token is predicted.
    """
    states = scale_for_head(model, hidden[row.source.to(hidden.device)])
    return token_logprobs(states, targets=row.target.to(hidden.device), **head_parts(model))


@torch.inference_mode()
def response_logprobs(
    model: PreTrainedModel, preferences: Sequence[Preference], row_tokens: int, progress: tqdm
) -> Tensor:
    """log π(y_k|x) of every response: `[preferences, responses]` float32, nats, CPU; `progress` counts preferences."""
    rows = pack_preferences(preferences, row_tokens)
    result = torch.empty(len(preferences), len(preferences[0].responses))
    for row, found in zip(rows, parallel_map(model, partial(sequence_logprobs, model), rows), strict=True):
        result[list(row.examples)] = found.float().cpu()
        progress.update(len(row.examples))
    return result


def kl_from_base(model: PreTrainedModel, hidden: Tensor, base_hidden: Tensor) -> Tensor:
    """KL(base ‖ policy) of the next token, `[length]` float32 nats, from the hidden states `[length, D]` of both."""
    return token_kl(scale_for_head(model, hidden), scale_for_head(model, base_hidden), **head_parts(model))


def sum_by_response(values: Tensor, row: PreferenceRow) -> Tensor:
    """Sum values of response tokens `[M]` over each response: `[examples, responses]`."""
    sums = values.new_zeros(row.lengths.numel())
    return sums.index_add(0, row.owner.to(values.device), values).view(row.lengths.shape)


def head_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Next-token logits `[…, V]` of hidden states `[…, D]` after the final norm: float32, scaled and soft-capped."""
    logits = model.get_output_embeddings()(scale_for_head(model, hidden)).float()
    if cap := head_parts(model)["softcap"]:
        logits = cap * torch.tanh(logits / cap)
    return logits


def head_parts(model: PreTrainedModel) -> dict[str, Tensor | float | None]:
    """`weight`, `bias` and `softcap` of a model's head, as the functions of `sempa.kernels` take them."""
    head = model.get_output_embeddings()
    softcap = getattr(model.config, "final_logit_softcapping", None)
    return {"weight": head.weight, "bias": getattr(head, "bias", None), "softcap": softcap}


def scale_for_head(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Apply the constant that some architectures put on their logits (Granite divides, Cohere multiplies)."""
    if divisor := getattr(model.config, "logits_scaling", None):
        return hidden / divisor
    if factor := getattr(model.config, "logit_scale", None):
        return hidden * factor
    return hidden
