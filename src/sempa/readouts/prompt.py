"""What a readout asks of the model for one sentence: the prompt's tokens, and which of their states it reads."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from sempa.prompts import common_prefix, encode_plain


@dataclass(frozen=True)
class Prompt:
    """Token ids, and the weights of the hidden states at the last `len(weights)` of them; the weights sum to 1."""

    tokens: list[int]
    weights: tuple[float, ...] = (1.0,)


def encode_spans(
    tokenizer: PreTrainedTokenizerBase, heads: Sequence[str], sentences: Sequence[str]
) -> list[tuple[list[int], int]]:
    """Token ids of each `head + sentence`, and how many of the last ones are the sentence's own.

    Where a tokenizer merges across the boundary, the merged token belongs to the sentence.
    """
    wholes = encode_plain(tokenizer, [head + sentence for head, sentence in zip(heads, sentences, strict=True)])
    # A sentence keeps its last token, whatever the head ends with.
    before = (
        min(common_prefix(head, whole), len(whole) - 1)
        for head, whole in zip(encode_plain(tokenizer, heads), wholes, strict=True)
    )
    return [(whole, len(whole) - count) for whole, count in zip(wholes, before, strict=True)]
