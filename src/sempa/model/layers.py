"""Inside a decoder: its blocks, and the attention outputs that they add to the residual."""

import contextlib
import contextvars
import threading
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from sempa.batching.packing import PackedRow
from sempa.errors import SempaError
from sempa.model.forward import depth, hidden_states, row_inputs

# What the architectures call the layer that mixes the heads' outputs (Llama, GPT-2, OPT and MPT, GPT-NeoX and Phi).
_OUTPUT_PROJECTIONS = ("o_proj", "c_proj", "out_proj", "dense")
# PyTorch numbers hooks by a plain counter: two threads that register at once could get the same number.
_REGISTRATION = threading.Lock()


def scaled_index(index: int, model: PreTrainedModel) -> int:
    """The block or layer at the fraction of the depth that `index` has in LLaMA2-7B's 32 blocks, rounded half up."""
    return int(index * depth(model) / 32 + 0.5)


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks, first to last; raises `SempaError` for an architecture that has no such list."""
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth(model):
            return module
    raise SempaError(f"{type(model).__name__}: no list of {depth(model)} decoder blocks found")


def output_projections(model: PreTrainedModel) -> list[nn.Module]:
    """Each block's linear layer from the attention heads' concatenated outputs to the residual, first to last.

    Raises `SempaError` for an architecture that has none by a known name.
    """
    projections = []
    for block in blocks(model):
        for name, module in block.named_modules():
            *parents, own = name.split(".")
            # `Conv1D` of GPT-2 goes by the same name in attention and MLP.
            if own in _OUTPUT_PROJECTIONS and any("att" in parent for parent in parents):
                projections.append(module)
                break
    if len(projections) < depth(model):
        found = f"{type(model).__name__}: found no output projections of its attention"
        raise SempaError(f"{found}, which attention-sum and contrastive-prompting need; take another readout")
    return projections


def attention_sum(model: PreTrainedModel, row: PackedRow, ends: Tensor) -> Tensor:
    """e = Σ_l o_l at the tokens `ends` `[m]` of a packed row: float32 `[m, D]`, differentiable.

    o_l is what the attention of block l adds to the residual: its output projection's output (AlignedWVA over all
    layers, arXiv 2602.01572), past the norm that follows it in some blocks (Gemma 2 and 3, OLMo 2, GLM-4, AFMoE).
    """
    added = []
    for block, projection in zip(blocks(model), output_projections(model), strict=True):
        sandwiched = hasattr(block, "post_feedforward_layernorm") or hasattr(block, "pre_mlp_layernorm")
        norm = getattr(block, "post_attention_layernorm" if sandwiched else "post_self_attn_layernorm", None)
        added.append(norm or projection)
    inputs, places = row_inputs(model, row)
    places = places[ends]
    outputs: list[Tensor] = []

    def collect(_: nn.Module, __: tuple, output: Tensor) -> None:
        # At least float32: bfloat16 would round the sum at every block. The identity hooks keep what is saved here out
        # of a checkpointed block, which runs again without this hook.
        with saved_tensors_hooks(lambda saved: saved, lambda saved: saved):
            outputs.append(output.flatten(0, -2)[places].to(torch.promote_types(output.dtype, torch.float32)))

    with hooked(*((module.register_forward_hook, collect) for module in added)):
        hidden_states(model, **inputs)
    return torch.stack(outputs).sum(0)


def noisy_embeddings(model: PreTrainedModel, size: float) -> contextlib.AbstractContextManager[None]:
    """Inside, and in this thread, Gaussian noise is added to token embeddings, `size` times their root mean square.

    After NEFTune (Jain et al. 2023, arXiv 2310.05914), § 2, which draws uniform noise of an absolute size.
    """

    def add_noise(_: nn.Module, __: tuple, embedded: Tensor) -> Tensor:
        return embedded + size * embedded.square().mean().sqrt() * torch.randn_like(embedded)

    return hooked((model.get_input_embeddings().register_forward_hook, add_noise))


def state_width(model: PreTrainedModel, attention_outputs: bool) -> int:
    """How many numbers `attention_sum` or the last states have; some models project those before their head (OPT)."""
    head = model.get_output_embeddings().weight
    return model.config.get_text_config().hidden_size if attention_outputs else head.shape[1]


@contextlib.contextmanager
def hooked(*hooks: tuple[Callable, Callable]) -> Iterator[None]:
    """Inside, hooks act on the passes of this thread; those of other threads, which may be generating, do not see them.

    `hooks` are pairs of a module's method that registers a hook, and the hook.
    """
    thread = threading.get_ident()

    def in_this_thread(hook: Callable) -> Callable:
        return lambda *arguments: hook(*arguments) if threading.get_ident() == thread else None

    with _REGISTRATION:
        handles = [register(in_this_thread(hook)) for register, hook in hooks]
    try:
        yield
    finally:
        with _REGISTRATION:
            for handle in handles:
                handle.remove()


def checkpoint_blocks(model: PreTrainedModel, dropout: bool = False) -> None:
    """From now on decoder blocks keep only their inputs, and run again in the backward pass; gradients stay exact.

    Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): a third more operations, and the memory of one block
    in place of all. A hook inside a block is not called again: it must not change what the block computes, and what it
    keeps for the backward pass must be saved outside the block's checkpoint, as `attention_sum` does. With `dropout`
    the random numbers of a block are the same both times.
    """
    # transformers has a switch of its own, which needs the model in training mode: with the base's dropout.
    for block in blocks(model):
        block.forward = partial(_recomputed, partial(type(block).forward, block), dropout)


def _recomputed(forward: Callable[..., Tensor], dropout: bool, *inputs: Tensor, **options: object) -> Tensor:
    # The backward pass comes after the `with` of the adapter's switches, on a device in another thread: the block sees
    # them as they are now. PyTorch sets back the one random generator, which other threads may be drawing from.
    seen = contextvars.copy_context()
    return checkpoint(seen.run, forward, *inputs, use_reentrant=False, preserve_rng_state=dropout, **options)
