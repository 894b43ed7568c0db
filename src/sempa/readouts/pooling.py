"""Readouts of the bare sentence: the mean of its tokens' states, the position-weighted mean, and the last one.

The begin-of-text token, where a tokenizer puts one, is seen by the model but not read: it is no word of the sentence.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from sempa.prompts import encode_plain
from sempa.readouts.prompt import Prompt, encode_spans


def mean(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> list[Prompt]:
    """e = 1/S Σ hᵢ over the sentence's S tokens."""
    spans = encode_spans(tokenizer, [""] * len(sentences), sentences)
    return [Prompt(tokens, (1 / size,) * size) for tokens, size in spans]


def weighted_mean(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> list[Prompt]:
    """e = Σ i hᵢ / Σ i, i = 1 … S: a later token has seen more of the sentence, so it counts for more.

    Muennighoff, *SGPT: GPT Sentence Embeddings for Semantic Search* (arXiv 2202.08904), equation 2.
    """
    spans = encode_spans(tokenizer, [""] * len(sentences), sentences)
    return [Prompt(tokens, tuple(2 * i / (size * (size + 1)) for i in range(1, size + 1))) for tokens, size in spans]


def last(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> list[Prompt]:
    """e = h_S: the only token that has seen the whole sentence."""
    return [Prompt(tokens) for tokens in encode_plain(tokenizer, sentences)]
