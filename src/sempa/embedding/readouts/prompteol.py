"""PromptEOL: the state that is about to say the sentence in one word, with or without a worked example before it."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from sempa.batching.prompts import EOL_PREFIX, encode_one_word
from sempa.embedding.readouts.prompt import Prompt

# The example that the authors' sweep over STS-B dev chose for the smallest model they publish one for (OPT-125M).
_EXAMPLE = 'This sentence : "A man is smoking." means in one word:"Smoking".'


def prompteol(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> list[Prompt]:
    """e = h at the last token of `This sentence : "…" means in one word:"`.

    Jiang et al., *Scaling Sentence Embeddings with Large Language Models* (arXiv 2307.16645), § 3.1; SemPA's readout.
    """
    return [Prompt(tokens) for tokens in encode_one_word(tokenizer, sentences)]


def prompteol_icl(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> list[Prompt]:
    """The same behind one worked example: in-context learning, § 3.2 of the same paper."""
    return [Prompt(tokens) for tokens in encode_one_word(tokenizer, sentences, _EXAMPLE + EOL_PREFIX)]
