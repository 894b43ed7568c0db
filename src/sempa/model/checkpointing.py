"""Activation checkpointing: decoder blocks keep only their inputs, and run again in the backward pass.

Chen et al. 2016, arXiv 1604.06174: a third more operations, and the memory of one block in place of all.
"""

import contextvars
import types
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from sempa.model.layers import blocks


def checkpoint_blocks(model: PreTrainedModel) -> None:
    """From now on the model's decoder blocks are recomputed in the backward pass; gradients stay exact.

    A hook inside a block is not called again: it must not change what the block computes, and what it keeps for the
    backward pass must be saved outside the block's checkpoint, as `attention_sum` does.
    """
    # transformers has a switch of its own, which takes a model in training mode: with the base's dropout.
    for block in blocks(model):
        block.forward = partial(_recomputed, types.MethodType(type(block).forward, block))


def _recomputed(forward: Callable[..., Tensor], *inputs: Tensor, **options: object) -> Tensor:
    if not torch.is_grad_enabled():
        return forward(*inputs, **options)
    # The backward pass comes after the `with` of the adapter's switches, on a device in another thread: the block sees
    # them as they are now. PyTorch restores the random numbers of dropout.
    seen = contextvars.copy_context()
    return checkpoint(seen.run, forward, *inputs, use_reentrant=False, **options)
