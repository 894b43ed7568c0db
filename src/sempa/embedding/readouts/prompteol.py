"""PromptEOL: a prompt whose last state is about to say the sentence in one word, and two ways to read it."""

from array import array
from collections.abc import Sequence

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sempa.batching.prompts import EOL_PREFIX, encode_one_word
from sempa.embedding.readouts.prompts import Prompt, PromptRow
from sempa.model.layers import attention_sum, layer_states

# The example that the authors' sweep over STS-B dev chose for the smallest model they publish one for (OPT-125M).
_EXAMPLE = 'This sentence : "A man is smoking." means in one word:"Smoking".'


def one_word_prompts(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> list[Prompt]:
    """`This sentence : "…" means in one word:"`."""
    return [Prompt(array("i", ids)) for ids in encode_one_word(tokenizer, sentences)]


def icl_prompts(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> list[Prompt]:
    """The same behind one worked example: in-context learning, § 3.2 of PromptEOL's paper."""
    return [Prompt(array("i", ids)) for ids in encode_one_word(tokenizer, sentences, _EXAMPLE + EOL_PREFIX)]


def last(model: PreTrainedModel, prompts: PromptRow, layer: int) -> Tensor:
    """e = h at the last token, the only one that has seen all of the prompt; SemPA's readout.

    Jiang et al., *Scaling Sentence Embeddings with Large Language Models* (arXiv 2307.16645), § 3.1.
    """
    return layer_states(model, prompts.packed, layer)[prompts.ends].float()


def attention_outputs(model: PreTrainedModel, prompts: PromptRow, layer: int) -> Tensor:
    """e = Σ_l o_l at the last token: what attention adds to the residual there, summed over all blocks l.

    AlignedWVA (arXiv 2602.01572), which chooses a range of blocks for each model; here all count, and `layer` does not.
    """
    return attention_sum(model, prompts.packed, prompts.ends)
