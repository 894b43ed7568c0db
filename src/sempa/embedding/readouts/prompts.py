"""Prompts of readouts: their token ids, and many of them in one packed row."""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from sempa.batching.packing import PackedRow, shared_prefix
from sempa.batching.prompts import common_prefix, encode_plain


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
    """Prompts packed into one row, with row offsets of each prompt's last token and first token of its span `[n]`."""

    packed: PackedRow
    starts: Tensor
    ends: Tensor
    auxiliary_ends: Tensor

    def spans(self, hidden: Tensor) -> list[Tensor]:
        """The states of each prompt's span, `[span, D]` float32, of the row's hidden states `[length, D]`."""
        return [hidden[start : end + 1].float() for start, end in zip(self.starts.tolist(), self.ends.tolist())]


def pack_prompts(prompts: Sequence[Prompt]) -> PromptRow:
    """One row of all prompts, in which what they begin with stands once; spans are each prompt's own."""
    row = PackedRow()
    ends = _append(row, [prompt.tokens for prompt in prompts], min(len(p.tokens) - p.span for p in prompts))
    starts = ends - torch.tensor([prompt.span - 1 for prompt in prompts])
    auxiliary_ends = _append(row, [prompt.auxiliary for prompt in prompts if prompt.auxiliary])
    return PromptRow(row, starts, ends, auxiliary_ends)


def _append(row: PackedRow, sequences: Sequence[Sequence[int]], most: int | None = None) -> Tensor:
    """Add sequences behind what all begin with, `most` tokens of it at most; the row offsets of their last tokens."""
    if not sequences:
        return torch.empty(0, dtype=torch.int64)
    shared = shared_prefix(sequences)[:most]
    root = row.add(shared)
    return torch.tensor([row.ends[row.add(tokens[len(shared) :], root)] for tokens in sequences])


def encode_spans(tokenizer: PreTrainedTokenizerBase, heads: Sequence[str], sentences: Sequence[str]) -> list[Prompt]:
    """Prompts `head + sentence` whose span is the sentence.

    Where a tokenizer merges across the boundary, the merged token belongs to the sentence.
    """
    wholes = encode_plain(tokenizer, [head + sentence for head, sentence in zip(heads, sentences, strict=True)])
    # A sentence keeps its last token, whatever the head ends with.
    begins = (
        min(common_prefix(head, whole), len(whole) - 1)
        for head, whole in zip(encode_plain(tokenizer, heads), wholes, strict=True)
    )
    return [Prompt(array("i", whole), len(whole) - begin) for whole, begin in zip(wholes, begins, strict=True)]
