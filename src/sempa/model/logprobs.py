"""Sequence log-probabilities log π(y|x) of packed preferences; the head runs only where a response is predicted."""

from torch import Tensor
from transformers import PreTrainedModel

from sempa.batching.packing import PreferenceRow
from sempa.kernels import token_logprobs
from sempa.model.forward import row_states
from sempa.model.lm_head import head_parts, scale_for_head


def sequence_logprobs(model: PreTrainedModel, row: PreferenceRow) -> Tensor:
    """log π(y_k|x) = Σ_t log π(y_kt | x, y_k<t) of each example's responses: `[examples, responses]` float32, nats."""
    hidden = row_states(model, row.packed)
    return sum_by_response(response_token_logprobs(model, hidden, row), row)


def response_token_logprobs(model: PreTrainedModel, hidden: Tensor, row: PreferenceRow) -> Tensor:
    """log π(y_kt | x, y_k<t) of every response token, `[M]` float32 nats, from hidden states `[length, D]`."""
    states = scale_for_head(model, hidden[row.source.to(hidden.device)])
    return token_logprobs(states, targets=row.target.to(hidden.device), **head_parts(model))


def sum_by_response(values: Tensor, row: PreferenceRow) -> Tensor:
    """Sum values of response tokens `[M]` over each response: `[examples, responses]`."""
    sums = values.new_zeros(row.lengths.numel())
    return sums.index_add(0, row.owner.to(values.device), values).view(row.lengths.shape)
