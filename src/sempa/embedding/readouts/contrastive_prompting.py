"""Contrastive Prompting: what a prompt for the irrelevant says too is taken out of the heads' outputs, early on.

Cheng et al., *Contrastive Prompting Enhances Sentence Embeddings in LLMs through Inference-Time Steering*
(arXiv 2505.12831). Beside PromptEOL runs an auxiliary prompt up to block s. There, at the last position, with a the
heads' outputs (concatenated, before the output projection) of the one and b those of the other,

    a ← c (a − b)

and PromptEOL goes on with that to the layer that is read. Below block s the readout is PromptEOL's.
"""

import contextlib
from collections.abc import Iterator, Sequence

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sempa.batching.prompts import encode_one_word
from sempa.embedding.readouts.prompt import Batch, Prompt, make_batch
from sempa.model.base import hidden_states
from sempa.model.layers import depth, edited_input, input_of, output_projection, scaled

_AUXILIARY = 'The irrelevant information of this sentence : "'
# s for LLaMA2-7B, counted from 0.
_BLOCK = 4
# c for LLaMA2-7B (the variant "scaled"); the paper takes 0.25 for LLaMA3-8B.
_STRENGTH = 0.5


def contrastive_prompting(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> list[Prompt]:
    """The PromptEOL prompt, and beside it `The irrelevant information of this sentence : "…" means in one word:"`."""
    pairs = zip(encode_one_word(tokenizer, sentences), encode_one_word(tokenizer, sentences, _AUXILIARY), strict=True)
    return [Prompt(main, auxiliary=tuple(auxiliary)) for main, auxiliary in pairs]


@contextlib.contextmanager
def steering(model: PreTrainedModel, batch: Batch) -> Iterator[None]:
    """Inside, a forward pass over `batch` has the heads' outputs of its last positions steered."""
    projection = output_projection(model, scaled(_BLOCK, depth(model)))
    others = [Prompt(list(prompt.auxiliary)) for prompt in batch.prompts]
    auxiliary = make_batch(model, others, [1] * len(others))
    with input_of(projection) as reached:
        hidden_states(model, **auxiliary.inputs)
    b = reached[0].flatten(0, -2)[auxiliary.ends]

    def steer(heads: Tensor) -> Tensor:
        steered = heads.flatten(0, -2).clone()
        steered[batch.ends] = _STRENGTH * (steered[batch.ends] - b)
        return steered.view_as(heads)

    with edited_input(projection, steer):
        yield
