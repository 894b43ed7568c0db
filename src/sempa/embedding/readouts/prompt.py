"""What a readout asks of the model for one sentence, and how many such prompts run together."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sempa.batching.packing import Row, shared_prefix
from sempa.batching.prompts import common_prefix, encode_plain
from sempa.model.base import can_pack


@dataclass(frozen=True)
class Prompt:
    """Token ids, and how many of the last ones hold what is read.

    `placeholder` is the offset of Token Prepending's `<PST>`, `auxiliary` the tokens of Contrastive Prompting's second
    prompt.
    """

    tokens: list[int]
    span: int = 1
    placeholder: int | None = None
    auxiliary: tuple[int, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Prompts that run together: the inputs of `hidden_states`, and each prompt's last token `ends` `[n]`.

    Of each prompt the states of its last `widths` tokens are read. Offsets count the tokens of all rows one after
    another; the tokens of a prompt that it does not share with others stand together, so its token i lies
    `len(tokens) − 1 − i` before its end.
    """

    prompts: Sequence[Prompt]
    widths: Sequence[int]
    inputs: dict[str, object]
    ends: Tensor

    def places(self) -> Tensor:
        """Where the states that are read lie, one prompt after another: `[m]`, int64."""
        spans = zip(self.widths, self.ends.tolist(), strict=True)
        places = [torch.arange(end + 1 - width, end + 1) for width, end in spans]
        return torch.cat(places).to(self.ends.device)

    def offsets(self, places: Sequence[int]) -> Tensor:
        """Where token `places[i]` of each prompt i lies: `[n]`, int64."""
        back = [len(prompt.tokens) - 1 - place for prompt, place in zip(self.prompts, places, strict=True)]
        return self.ends - torch.tensor(back, device=self.ends.device)


def make_batch(model: PreTrainedModel, prompts: Sequence[Prompt], widths: Sequence[int]) -> Batch:
    """One packed row behind the prompts' shared beginning; separate rows where a packed one is not exact."""
    # A token whose state is read or overwritten is its prompt's own.
    own = (len(p.tokens) - w if p.placeholder is None else p.placeholder for p, w in zip(prompts, widths, strict=True))
    shared = min(len(shared_prefix([prompt.tokens for prompt in prompts])), *own)
    row = Row()
    root = row.add(prompts[0].tokens[:shared])
    ends = torch.tensor([row.ends[row.add(prompt.tokens[shared:], root)] for prompt in prompts])
    if can_pack(model, row):
        return Batch(prompts, widths, row.inputs(model.device), ends.to(model.device))
    tokens, places = row.separate()
    return Batch(prompts, widths, {"tokens": tokens.to(model.device)}, places[ends].to(model.device))


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
