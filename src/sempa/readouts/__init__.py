"""Readouts: from a language model's hidden states to a sentence embedding, each beside its paper's equation."""

import contextlib
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from sempa.errors import SempaError
from sempa.readouts.contrastive_prompting import contrastive_prompting, steering
from sempa.readouts.echo import echo
from sempa.readouts.layers import depth, scaled, states_at
from sempa.readouts.pooling import last, mean, weighted_mean
from sempa.readouts.prompt import Batch, Prompt, make_batch
from sempa.readouts.prompteol import prompteol, prompteol_icl
from sempa.readouts.token_prepending import prepending, token_prepending


def _unchanged(model: PreTrainedModel, batch: Batch) -> AbstractContextManager:
    return contextlib.nullcontext()


@dataclass(frozen=True)
class Readout:
    """How sentences become prompts, the layer that is read (of LLaMA2-7B's 32), and what the model does differently."""

    prompts: Callable[[PreTrainedTokenizerBase, Sequence[str]], list[Prompt]]
    layer: int = 32
    steered: Callable[[PreTrainedModel, Batch], AbstractContextManager] = _unchanged


# Both steered readouts were published with layer 27 for LLaMA2-7B, and the last but one for LLaMA3-8B.
_READOUTS = {
    "mean": Readout(mean),
    "weighted-mean": Readout(weighted_mean),
    "last": Readout(last),
    "echo": Readout(echo),
    "prompteol": Readout(prompteol),
    "prompteol-icl": Readout(prompteol_icl),
    "contrastive-prompting": Readout(contrastive_prompting, 27, steering),
    "token-prepending": Readout(token_prepending, 27, prepending),
}
READOUTS = tuple(_READOUTS)

# Hooks belong to the model, not to a call: threads that share it take turns.
_HOOKED = threading.Lock()


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


def read(readout: str, model: PreTrainedModel, prompts: Sequence[Prompt], layer: int = -1) -> Tensor:
    """Embeddings of a readout's prompts, run together: float32 `[n, D]`.

    `layer` indexes transformers' `hidden_states` (0 = embedding output, the depth = last layer after the final norm,
    −2 = the one before); −1 is the readout's own layer.
    """
    batch = make_batch(model, prompts)
    places = batch.places()
    with _HOOKED, _READOUTS[readout].steered(model, batch):
        states = states_at(model, layer_read(readout, layer, depth(model)), places, **batch.inputs)
    # Each prompt's weights beside its own states, which stand one prompt after another.
    weights = torch.block_diag(*(torch.tensor([prompt.weights]) for prompt in prompts))
    return weights.to(states.device) @ states.float()
