"""Readouts of the bare sentence: the mean of its tokens' states, the position-weighted mean, and the last one.

The begin-of-text token, where a tokenizer puts one, is seen by the model but not read: it is no word of the sentence.
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from sempa.embedding.readouts.prompt import Prompt, encode_spans


def bare(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> list[Prompt]:
    """The sentence itself: its S tokens are what is read."""
    return [Prompt(tokens, size) for tokens, size in encode_spans(tokenizer, [""] * len(sentences), sentences)]


def mean(size: int) -> tuple[float, ...]:
    """The weights of e = 1/S Σ hᵢ."""
    return (1 / size,) * size


def weighted_mean(size: int) -> tuple[float, ...]:
    """The weights of e = Σ i hᵢ / Σ i, i = 1 … S: a later token has seen more of the sentence, so it counts for more.

    Muennighoff, *SGPT: GPT Sentence Embeddings for Semantic Search* (arXiv 2202.08904), equation 2.
    """
    return tuple(2 * i / (size * (size + 1)) for i in range(1, size + 1))


def last(size: int) -> tuple[float, ...]:
    """The weight of e = h_S: the only token that has seen the whole sentence."""
    return (1.0,)
