"""Readouts: from a language model's hidden states to a sentence embedding, each beside its paper's equation."""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sempa.embedding.readouts.contrastive_prompting import contrastive_prompting, steering
from sempa.embedding.readouts.echo import echo
from sempa.embedding.readouts.pooling import bare, last, mean, weighted_mean
from sempa.embedding.readouts.prompt import Batch, Prompt, make_batch
from sempa.embedding.readouts.prompteol import prompteol, prompteol_icl
from sempa.embedding.readouts.token_prepending import prepending, token_prepending
from sempa.errors import SempaError
from sempa.model.layers import depth, scaled, states_at


def _unchanged(model: PreTrainedModel, batch: Batch) -> AbstractContextManager:
    return contextlib.nullcontext()


@dataclass(frozen=True)
class Readout:
    """How sentences become prompts and states a vector, the layer (of LLaMA2-7B's 32), what the model does differently.

    `pooling` gives, for the size of a prompt's span, the weights of its last states; they sum to 1.
    """

    prompts: Callable[[PreTrainedTokenizerBase, Sequence[str]], list[Prompt]]
    pooling: Callable[[int], tuple[float, ...]] = last
    layer: int = 32
    steered: Callable[[PreTrainedModel, Batch], AbstractContextManager] = _unchanged


# Both steered readouts were published with layer 27 for LLaMA2-7B, and the last but one for LLaMA3-8B.
_READOUTS = {
    "mean": Readout(bare, mean),
    "weighted-mean": Readout(bare, weighted_mean),
    "last": Readout(bare, last),
    "echo": Readout(echo, mean),
    "prompteol": Readout(prompteol),
    "prompteol-icl": Readout(prompteol_icl),
    "contrastive-prompting": Readout(contrastive_prompting, layer=27, steered=steering),
    "token-prepending": Readout(token_prepending, layer=27, steered=prepending),
}
READOUTS = tuple(_READOUTS)


def check_readout(readout: str, layer: int = -1, depth: int = 0) -> None:
    """Raise `SempaError` for a readout that does not exist, or a layer that a model of this depth does not have.

    The name alone can be checked before there is a model.
    """
    if readout not in READOUTS:
        raise SempaError(f"readout: found {readout!r}, expected one of {', '.join(READOUTS)}")
    if not -depth - 1 <= layer <= depth:
        raise SempaError(f"layer: found {layer}, expected {-depth - 1} to {depth} for this model")


def layer_read(readout: str, layer: int, depth: int) -> int:
    """The index from 0 to `depth` of the hidden states that are read; −1 is the readout's own layer."""
    return scaled(_READOUTS[readout].layer, depth) if layer == -1 else layer % (depth + 1)


def embedding_width(readout: str, model: PreTrainedModel, layer: int = -1) -> int:
    """How many numbers an embedding has; some models project between their blocks and their head (OPT)."""
    if layer_read(readout, layer, depth(model)) == depth(model):
        return model.get_output_embeddings().weight.shape[1]
    return model.config.get_text_config().hidden_size


def make_prompts(readout: str, tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str]) -> list[Prompt]:
    """The prompts of a readout for sentences of one or more words, each parted by one blank."""
    return _READOUTS[readout].prompts(tokenizer, sentences) if sentences else []


def same_pass(readout: str, other: str) -> bool:
    """Whether one pass of the model serves both: prompts and steering are the same, only what is read differs."""
    one, two = _READOUTS[readout], _READOUTS[other]
    return one.prompts is two.prompts and one.steered is two.steered


def read(readings: Sequence[tuple[str, int]], model: PreTrainedModel, prompts: Sequence[Prompt]) -> list[Tensor]:
    """Embeddings of prompts by each reading, a readout and a layer, from one pass: float32 `[n, D]` each.

    The layer indexes transformers' `hidden_states` (0 = embedding output, the depth = last layer after the final norm,
    −2 = the one before); −1 is the readout's own layer. The readouts are of the `same_pass`, and `prompts` theirs.
    """
    weights = [[_READOUTS[readout].pooling(prompt.span) for prompt in prompts] for readout, _ in readings]
    widths = [max(map(len, each)) for each in zip(*weights, strict=True)]
    batch = make_batch(model, prompts, widths)
    with _READOUTS[readings[0][0]].steered(model, batch):
        layers = [layer_read(readout, layer, depth(model)) for readout, layer in readings]
        states = states_at(model, layers, batch.places(), **batch.inputs)
    # Each prompt's weights beside its own states, which stand one prompt after another.
    padded = ([torch.tensor([(0.0,) * (w - len(own)) + own]) for own, w in zip(rows, widths)] for rows in weights)
    return [torch.block_diag(*rows).to(state.device) @ state.float() for rows, state in zip(padded, states)]
