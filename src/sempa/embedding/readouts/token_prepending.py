"""Token Prepending: a placeholder before the sentence carries a summary of it, so that every word can look at one.

Fu et al., *Token Prepending: A Training-Free Approach for Eliciting Better Sentence Embeddings from LLMs*
(arXiv 2412.11556). The prompt is `This sentence : <PST> "…" means in one word:"`. Before each block i with
start ≤ i < exit, with hᵢ its input and N the last position,

    hᵢ[PST] ← hᵢ[N]

The placeholder's own embedding is random and only the blocks before `start` see it.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sempa.batching.prompts import EOL_SUFFIX, clean_sentence, encode_plain, encode_texts
from sempa.embedding.readouts.prompt import Batch, Prompt
from sempa.model.layers import blocks, depth, edited_input, hooked, scaled

# The prompt around <PST>; the tokenizer of the authors' code splits the text at an added token just so.
_HEAD, _TAIL = "This sentence : ", ' "'
# The first block whose input is a state that has attended to the sentence.
_START = 1
# For LLaMA2-7B: the first block that is left alone again.
_EXIT = 7
# The authors' seed for the placeholder's embedding, drawn from N(0, 1).
_SEED = 3407


def token_prepending(tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> list[Prompt]:
    """The PromptEOL prompt with a placeholder (id 0, its embedding replaced) before the quoted sentence."""
    (head,) = encode_plain(tokenizer, [_HEAD])
    tails = encode_texts(tokenizer, [f"{_TAIL}{clean_sentence(sentence)}{EOL_SUFFIX}" for sentence in sentences])
    return [Prompt([*head, 0, *tail], placeholder=len(head)) for tail in tails]


@contextlib.contextmanager
def prepending(model: PreTrainedModel, batch: Batch) -> Iterator[None]:
    """Inside, a forward pass over `batch` has its placeholders filled."""
    places = batch.offsets([prompt.placeholder for prompt in batch.prompts])
    table = model.get_input_embeddings()
    drawn = torch.randn(table.weight.shape[1], generator=torch.Generator().manual_seed(_SEED))
    # Gemma's table multiplies what it hands out.
    placeholder = drawn.to(table.weight) * getattr(table, "embed_scale", 1.0)

    def embed(_: nn.Module, __: tuple, embedded: Tensor) -> Tensor:
        return _put(embedded, places, placeholder)

    def prepend(hidden: Tensor) -> Tensor:
        return _put(hidden, places, hidden.flatten(0, 1)[batch.ends])

    with contextlib.ExitStack() as hooks:
        hooks.enter_context(hooked(table.register_forward_hook, embed))
        for block in blocks(model)[_START : max(_START + 1, scaled(_EXIT, depth(model)))]:
            hooks.enter_context(edited_input(block, prepend))
        yield


def _put(hidden: Tensor, places: Tensor, rows: Tensor) -> Tensor:
    """`hidden` `[rows, length, D]` with `rows` at the flat offsets `places`."""
    changed = hidden.flatten(0, 1).clone()
    changed[places] = rows
    return changed.view_as(hidden)
