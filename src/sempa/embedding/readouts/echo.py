"""Echo embeddings: the sentence stands twice, and its second copy has seen all of the first."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from sempa.embedding.readouts.prompt import Prompt, encode_spans

# The zero-shot prompt of the paper, § 3.
_HEAD = "Rewrite the sentence: {sentence}, rewritten sentence:"


def echo(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> list[Prompt]:
    """The sentence twice; e is the mean of hᵢ over the tokens of its second occurrence.

    Springer et al., *Repetition Improves Language Model Embeddings* (arXiv 2402.15449).
    """
    heads = [_HEAD.format(sentence=sentence) for sentence in sentences]
    spans = encode_spans(tokenizer, heads, [f" {sentence}" for sentence in sentences])
    return [Prompt(tokens, size) for tokens, size in spans]
