"""Prompts, and the readouts of the forward pass as it is: pooling, PromptEOL, and the sum of the attention outputs.

The prompts say which tokens are read: the sentence's own, or the last of a prompt that asks for the sentence in one
word. The begin-of-text token, where a tokenizer puts one, is seen by the model but not read.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sempa.batching.packing import PackedRow
from sempa.batching.prompts import EOL_PREFIX, encode_one_word, encode_plain, prefix_length
from sempa.model.forward import row_states
from sempa.model.layers import attention_sum

# The example that the authors' sweep over STS-B dev chose for the smallest model they publish one for (OPT-125M).
EXAMPLE = 'This sentence : "A man is smoking." means in one word:"Smoking".'


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids of one sentence's prompt; the states of the last `span` of them are read or overwritten.

    `auxiliary` holds the ids of Contrastive Prompting's second prompt. Arrays of four bytes a token keep hundreds of
    thousands of prompts small.
    """

    tokens: Sequence[int]
    span: int = 1
    auxiliary: Sequence[int] = ()


@dataclass(frozen=True)
class PromptRow:
    """Prompts in one row, with the offsets `[n]` of spans' starts, prompts' ends and auxiliary prompts' ends."""

    packed: PackedRow
    starts: Tensor
    ends: Tensor
    auxiliary_ends: Tensor | None

    def spans(self, hidden: Tensor) -> list[Tensor]:
        """The states of each prompt's span, `[span, D]` float32, of the row's hidden states `[length, D]`."""
        return [hidden[start : end + 1].float() for start, end in zip(self.starts.tolist(), self.ends.tolist())]


def pack_prompts(prompts: Sequence[Prompt]) -> PromptRow:
    """All prompts in one row, with their shared beginning once; no span reaches into it."""
    row = PackedRow()
    most = min(len(prompt.tokens) - prompt.span for prompt in prompts)
    ends = row.add_behind_prefix([prompt.tokens for prompt in prompts], most)
    starts = ends - torch.tensor([prompt.span - 1 for prompt in prompts])
    auxiliary = [prompt.auxiliary for prompt in prompts if prompt.auxiliary]
    return PromptRow(row, starts, ends, row.add_behind_prefix(auxiliary) if auxiliary else None)


def encode_spans(tokenizer: PreTrainedTokenizerBase, heads: Sequence[str], sentences: Sequence[str]) -> list[Prompt]:
    """Prompts `head + sentence` whose span is the sentence.

    Where a tokenizer merges across the boundary, the merged token belongs to the sentence.
    """
    wholes = encode_plain(tokenizer, [head + sentence for head, sentence in zip(heads, sentences, strict=True)])
    # A sentence keeps its last token, whatever the head ends with.
    return [
        Prompt(array("i", whole), span=max(1, len(whole) - prefix_length(head, whole)))
        for head, whole in zip(encode_plain(tokenizer, heads), wholes, strict=True)
    ]


def bare_prompts(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> list[Prompt]:
    """The sentence itself."""
    return encode_spans(tokenizer, [""] * len(sentences), sentences)


def echo_prompts(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> list[Prompt]:
    """The sentence twice; its second occurrence, which has seen all of the first, is read.

    Springer et al., *Repetition Improves Language Model Embeddings* (arXiv 2402.15449), § 3, zero-shot.
    """
    heads = [f"Rewrite the sentence: {sentence}, rewritten sentence:" for sentence in sentences]
    return encode_spans(tokenizer, heads, [f" {sentence}" for sentence in sentences])


def one_word_prompts(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str], example: str = "") -> list[Prompt]:
    """`This sentence : "…" means in one word:"`, behind a worked example in PromptEOL's § 3.2 (in-context learning)."""
    return [Prompt(array("i", ids)) for ids in encode_one_word(tokenizer, sentences, example + EOL_PREFIX)]


def mean(model: PreTrainedModel, prompts: PromptRow, layer: int) -> Tensor:
    """e = 1/S Σ h_i over the sentence's S tokens."""
    return torch.stack([span.mean(0) for span in prompts.spans(row_states(model, prompts.packed, layer))])


def weighted_mean(model: PreTrainedModel, prompts: PromptRow, layer: int) -> Tensor:
    """e = Σ i h_i / Σ i, i = 1 … S: a later token has seen more of the sentence, so it counts for more.

    Muennighoff, *SGPT: GPT Sentence Embeddings for Semantic Search* (arXiv 2202.08904), equation 2.
    """
    spans = prompts.spans(row_states(model, prompts.packed, layer))
    weights = [torch.arange(1, len(span) + 1, dtype=span.dtype, device=span.device) for span in spans]
    return torch.stack([w @ span / w.sum() for w, span in zip(weights, spans)])


def last(model: PreTrainedModel, prompts: PromptRow, layer: int) -> Tensor:
    """e = h at the last token, the only one that has seen all of the prompt; SemPA's readout.

    Jiang et al., *Scaling Sentence Embeddings with Large Language Models* (arXiv 2307.16645), § 3.1.
    """
    return row_states(model, prompts.packed, layer)[prompts.ends].float()


def attention_outputs(model: PreTrainedModel, prompts: PromptRow, layer: int) -> Tensor:
    """e = Σ_l o_l at the last token: what attention adds to the residual there, summed over all blocks l.

    AlignedWVA (arXiv 2602.01572), which chooses a range of blocks for each model; here all count, and `layer` does not.
    """
    return attention_sum(model, prompts.packed, prompts.ends)
