"""Readouts: from a language model's states to a sentence embedding, each beside its paper's equation.

A readout is two functions: one makes prompts of sentences, the other runs the model on a row of packed prompts and
reads a vector for each.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sempa.embedding.readouts import plain, steered
from sempa.embedding.readouts.plain import Prompt, pack_prompts
from sempa.errors import SempaError
from sempa.model.forward import depth
from sempa.model.layers import output_projections, scaled_index, state_width

_READOUTS = {
    "mean": (plain.bare_prompts, plain.mean),
    "weighted-mean": (plain.bare_prompts, plain.weighted_mean),
    "last": (plain.bare_prompts, plain.last),
    "echo": (plain.echo_prompts, plain.mean),
    "prompteol": (plain.one_word_prompts, plain.last),
    "prompteol-icl": (partial(plain.one_word_prompts, example=plain.EXAMPLE), plain.last),
    "contrastive-prompting": (steered.contrastive_prompts, steered.contrastive_prompting),
    "token-prepending": (steered.prepending_prompts, steered.token_prepending),
    "attention-sum": (plain.one_word_prompts, plain.attention_outputs),
}
READOUTS = tuple(_READOUTS)
# Both steered readouts were published with layer 27 for LLaMA2-7B's 32, and the last but one for LLaMA3-8B.
_PUBLISHED_LAYER = {"contrastive-prompting": 27, "token-prepending": 27}


def check_readout(readout: str, model: PreTrainedModel, layer: int = -1) -> None:
    """Raise `SempaError` for a readout or a layer that does not exist, or that this model cannot give."""
    if readout not in READOUTS:
        raise SempaError(f"readout: found {readout!r}, expected one of {', '.join(READOUTS)}")
    if readout == "attention-sum" and layer != -1:
        raise SempaError(f"layer: found {layer}, expected none: attention-sum adds up the outputs of all layers")
    last_layer = depth(model)
    if layer not in range(-last_layer - 1, last_layer + 1):
        raise SempaError(f"layer: found {layer!r}, expected {-last_layer - 1} to {last_layer} for this model")
    if readout in ("contrastive-prompting", "attention-sum"):
        output_projections(model)


def layer_read(readout: str, model: PreTrainedModel, layer: int) -> int:
    """The index of the hidden states that are read, from 0 to the model's depth; −1 is the readout's own layer."""
    return scaled_index(_PUBLISHED_LAYER.get(readout, 32), model) if layer == -1 else layer % (depth(model) + 1)


def embedding_width(readout: str, model: PreTrainedModel, layer: int = -1) -> int:
    """How many numbers an embedding has."""
    # Inner layers are as wide as attention outputs: the last alone has passed a projection before the head, if any.
    return state_width(model, readout == "attention-sum" or layer_read(readout, model, layer) < depth(model))


def make_prompts(readout: str, tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> list[Prompt]:
    """The readout's prompt for each sentence, with one blank between words."""
    prompts, _ = _READOUTS[readout]
    return prompts(tokenizer, [" ".join(sentence.split()) for sentence in sentences])


def read(readout: str, model: PreTrainedModel, prompts: Sequence[Prompt], layer: int = -1) -> Tensor:
    """Embeddings of the readout's own prompts, packed into one row: float32 `[n, D]`; `layer` is that of `Embedder`."""
    _, vectors = _READOUTS[readout]
    return vectors(model, pack_prompts(prompts), layer_read(readout, model, layer))
