"""Plain pooling: the mean of the sentence's states, and the position-weighted mean.

`bare_prompts` and `echo_prompts` say which tokens are the sentence. The begin-of-text token, where a tokenizer puts
one, is seen by the model but not read: it is no word of the sentence.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sempa.embedding.readouts.prompts import Prompt, PromptRow, encode_spans
from sempa.model.layers import layer_states


def bare_prompts(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> list[Prompt]:
    """The sentence itself."""
    return encode_spans(tokenizer, [""] * len(sentences), sentences)


def echo_prompts(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> list[Prompt]:
    """The sentence twice; its second occurrence, which has seen all of the first, is read.

    Springer et al., *Repetition Improves Language Model Embeddings* (arXiv 2402.15449), § 3, zero-shot.
    """
    heads = [f"Rewrite the sentence: {sentence}, rewritten sentence:" for sentence in sentences]
    return encode_spans(tokenizer, heads, [f" {sentence}" for sentence in sentences])


def mean(model: PreTrainedModel, prompts: PromptRow, layer: int) -> Tensor:
    """e = 1/S Σ h_i over the sentence's S tokens."""
    hidden = layer_states(model, prompts.packed, layer)
    return torch.stack([span.mean(0) for span in prompts.spans(hidden)])


def weighted_mean(model: PreTrainedModel, prompts: PromptRow, layer: int) -> Tensor:
    """e = Σ i h_i / Σ i, i = 1 … S: a later token has seen more of the sentence, so it counts for more.

    Muennighoff, *SGPT: GPT Sentence Embeddings for Semantic Search* (arXiv 2202.08904), equation 2.
    """
    hidden = layer_states(model, prompts.packed, layer)
    spans = prompts.spans(hidden)
    weights = [torch.arange(1, len(span) + 1, dtype=span.dtype, device=span.device) for span in spans]
    return torch.stack([w @ span / w.sum() for w, span in zip(weights, spans)])
