"""Readouts that change states on the way up: Contrastive Prompting and Token Prepending."""

from array import array
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sempa.batching.prompts import EOL_SUFFIX, clean_sentence, encode_one_word, encode_plain
from sempa.embedding.readouts.plain import Prompt, PromptRow
from sempa.model.forward import hidden_states, row_inputs
from sempa.model.layers import blocks, hooked, output_projections, scaled_index

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
    """e = h at the prompt's last token, with a ← c (a − b) there in block s; both prompts run in one row.

    a and b are the heads' outputs, before the output projection, of PromptEOL and the auxiliary prompt. Cheng et al.,
    *Contrastive Prompting Enhances Sentence Embeddings in LLMs through Inference-Time Steering* (arXiv 2505.12831).
    """
    inputs, places = row_inputs(model, prompts.packed)
    ends, auxiliary_ends = places[prompts.ends], places[prompts.auxiliary_ends]

    def steer(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        heads = arguments[0].flatten(0, -2)
        return (_put(arguments[0], ends, _STRENGTH * (heads[ends] - heads[auxiliary_ends])),)

    projection = output_projections(model)[scaled_index(_BLOCK, model)]
    with hooked((projection.register_forward_pre_hook, steer)):
        return hidden_states(model, **inputs, layer=layer).flatten(0, 1)[ends].float()


# The prompt around <PST>; the tokenizer of the authors' code splits the text at an added token just so.
_HEAD, _TAIL = "This sentence : ", ' "'
# The first block whose input is a state that has attended to the sentence.
_START = 1
# For LLaMA2-7B: the first block that is left alone again.
_EXIT = 7
# The authors' seed for the placeholder's embedding, drawn from N(0, 1).
_SEED = 3407


def prepending_prompts(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> list[Prompt]:
    """`This sentence : <PST> "…" means in one word:"`; the placeholder has id 0, its embedding is replaced."""
    tails = [f"{_TAIL}{clean_sentence(sentence)}{EOL_SUFFIX}" for sentence in sentences]
    begin_of_text, head, *tails = encode_plain(tokenizer, ["", _HEAD, *tails])
    own = (tail[len(begin_of_text) :] for tail in tails)
    return [Prompt(array("i", [*head, 0, *tail]), span=1 + len(tail)) for tail in own]


def token_prepending(model: PreTrainedModel, prompts: PromptRow, layer: int) -> Tensor:
    """e = h at the prompt's last token N, with hᵢ[PST] ← hᵢ[N] in the input of each block i, start ≤ i < exit.

    So the placeholder PST before the sentence carries a summary of it, which every token can attend to. Fu et al.,
    *Token Prepending: A Training-Free Approach for Eliciting Better Sentence Embeddings from LLMs* (arXiv 2412.11556).
    """
    inputs, places = row_inputs(model, prompts.packed)
    placeholders, ends = places[prompts.starts], places[prompts.ends]
    table = model.get_input_embeddings()
    drawn = torch.randn(table.weight.shape[1], generator=torch.Generator().manual_seed(_SEED))
    # Gemma's table multiplies what it hands out.
    placeholder = drawn.to(table.weight) * getattr(table, "embed_scale", 1.0)

    def embed(_: nn.Module, __: tuple, embedded: Tensor) -> Tensor:
        return _put(embedded, placeholders, placeholder)

    def prepend(_: nn.Module, arguments: tuple) -> tuple:
        hidden, *others = arguments
        return (_put(hidden, placeholders, hidden.flatten(0, 1)[ends]), *others)

    steered = blocks(model)[_START : max(_START + 1, scaled_index(_EXIT, model))]
    hooks = [(table.register_forward_hook, embed)]
    hooks += [(block.register_forward_pre_hook, prepend) for block in steered]
    with hooked(*hooks):
        return hidden_states(model, **inputs, layer=layer).flatten(0, 1)[ends].float()


def _put(hidden: Tensor, places: Tensor, rows: Tensor) -> Tensor:
    """`hidden` `[…, D]` with `rows` at the flat offsets `places`."""
    changed = hidden.flatten(0, -2).clone()
    changed[places] = rows
    return changed.view_as(hidden)
