"""Contrastive Prompting: what a prompt for the irrelevant says too is taken out of the heads' outputs, early on.

Cheng et al., *Contrastive Prompting Enhances Sentence Embeddings in LLMs through Inference-Time Steering*
(arXiv 2505.12831). Beside PromptEOL runs an auxiliary prompt. At block s, at the last position, with a the heads'
outputs (concatenated, before the output projection) of the one and b those of the other,

    a ← c (a − b)

and PromptEOL goes on with that to the layer that is read. Below block s the readout is PromptEOL's.
"""

from array import array
from collections.abc import Sequence

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sempa.batching.prompts import encode_one_word
from sempa.embedding.readouts.prompteol import last
from sempa.embedding.readouts.prompts import Prompt, PromptRow
from sempa.model.forward import output_places
from sempa.model.layers import depth, hooked, output_projections, scaled

_AUXILIARY = 'The irrelevant information of this sentence : "'
# s for LLaMA2-7B, counted from 0.
_BLOCK = 4
# c for LLaMA2-7B (the variant "scaled"); the paper takes 0.25 for LLaMA3-8B.
_STRENGTH = 0.5


def contrastive_prompts(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> list[Prompt]:
    """The PromptEOL prompt, and beside it `The irrelevant information of this sentence : "…" means in one word:"`."""
    pairs = zip(encode_one_word(tokenizer, sentences), encode_one_word(tokenizer, sentences, _AUXILIARY), strict=True)
    return [Prompt(array("i", main), auxiliary=array("i", auxiliary)) for main, auxiliary in pairs]


def contrastive_prompting(model: PreTrainedModel, prompts: PromptRow, layer: int) -> Tensor:
    """e = h at the prompt's last token, with a ← c (a − b) at block s; both prompts run in one row."""
    places = output_places(model, prompts.packed)
    ends, auxiliary_ends = places[prompts.ends], places[prompts.auxiliary_ends]

    def steer(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        heads = arguments[0].flatten(0, -2).clone()
        heads[ends] = _STRENGTH * (heads[ends] - heads[auxiliary_ends])
        return (heads.view_as(arguments[0]),)

    projection = output_projections(model)[scaled(_BLOCK, depth(model))]
    with hooked((projection.register_forward_pre_hook, steer)):
        return last(model, prompts, layer)
