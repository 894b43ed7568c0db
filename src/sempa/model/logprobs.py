"""Sentence log-probabilities log π(y|x) of packed preferences: the head runs only where a response is predicted."""

from torch import Tensor
from transformers import PreTrainedModel

from sempa.batching.packing import PreferenceRow
from sempa.kernels import token_logprobs
from sempa.model.base import row_states
from sempa.model.lm_head import head_parts, scale_for_head


def sentence_logprobs(model: PreTrainedModel, packed: PreferenceRow) -> Tensor:
    """log π(y_k|x) = Σ_t log π(y_kt | x, y_k<t) of each preference in a row: `[examples, responses]` float32, nats."""
    return sum_by_response(response_logprobs(model, packed), packed)


def response_logprobs(model: PreTrainedModel, packed: PreferenceRow) -> Tensor:
    """log π(y_kt | x, y_k<t) of every response token of a row: `[M]` float32, nats."""
    return target_logprobs(model, row_states(model, packed.row), packed)


def target_logprobs(model: PreTrainedModel, hidden: Tensor, packed: PreferenceRow) -> Tensor:
    """The same from the row's last hidden states `[length, D]`, where a caller needs these as well."""
    device = model.device
    states = scale_for_head(model, hidden[packed.source.to(device)])
    return token_logprobs(states, targets=packed.target.to(device), **head_parts(model))


def sum_by_response(values: Tensor, packed: PreferenceRow) -> Tensor:
    """Add values of response tokens, `[M]`, up by response: `[examples, responses]`."""
    sums = values.new_zeros(packed.lengths.numel())
    return sums.index_add(0, packed.owner.to(values.device), values).view(packed.lengths.shape)
