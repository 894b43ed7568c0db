"""Sentence log-probabilities log π(y|x) of packed preferences: the head runs only where a response is predicted."""

from torch import Tensor
from transformers import PreTrainedModel

from sempa.kernels import token_logprobs
from sempa.models import hidden_states
from sempa.packing import PreferenceRow


def sentence_logprobs(model: PreTrainedModel, packed: PreferenceRow) -> Tensor:
    """log π(y_k|x) = Σ_t log π(y_kt | x, y_k<t) of each preference in a row: `[examples, responses]` float32, nats."""
    return sum_by_response(response_logprobs(model, packed), packed)


def response_logprobs(model: PreTrainedModel, packed: PreferenceRow) -> Tensor:
    """log π(y_kt | x, y_k<t) of every response token of a row: `[M]` float32, nats."""
    device = model.device
    hidden = hidden_states(model, **packed.row.inputs(device))[0]
    head = model.get_output_embeddings()
    return token_logprobs(
        scale_for_head(model, hidden[packed.source.to(device)]),
        head.weight,
        packed.target.to(device),
        bias=getattr(head, "bias", None),
        softcap=getattr(model.config, "final_logit_softcapping", None),
    )


def sum_by_response(values: Tensor, packed: PreferenceRow) -> Tensor:
    """Add values of response tokens, `[M]`, up by response: `[examples, responses]`."""
    sums = values.new_zeros(packed.lengths.numel())
    return sums.index_add(0, packed.owner.to(values.device), values).view(packed.lengths.shape)


def scale_for_head(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Apply the constant that some architectures put on their logits (Granite divides, Cohere multiplies)."""
    if divisor := getattr(model.config, "logits_scaling", None):
        return hidden / divisor
    if factor := getattr(model.config, "logit_scale", None):
        return hidden * factor
    return hidden
