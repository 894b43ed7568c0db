"""The places inside a decoder that readouts touch: its blocks, the heads' outputs, and the state after any layer."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from sempa.errors import SempaError
from sempa.model.base import hidden_states

# What the architectures call the layer that mixes the heads' outputs (Llama, GPT-2, OPT and MPT, GPT-NeoX and Phi).
_OUTPUT_PROJECTIONS = ("o_proj", "c_proj", "out_proj", "dense")
# PyTorch numbers hooks one after another: two threads at once might get the same number, and one hook would be gone.
_NUMBERED = threading.Lock()


class _ReachedError(Exception):
    """Carries a hidden state out of a forward pass whose rest nobody needs."""

    def __init__(self, hidden: Tensor) -> None:
        self.hidden = hidden


def depth(model: PreTrainedModel) -> int:
    """The number of decoder blocks."""
    return model.config.get_text_config().num_hidden_layers


def scaled(index: int, depth: int) -> int:
    """A block or layer that a paper gives for LLaMA2-7B's 32 blocks, at the same share of `depth`, rounded half up."""
    return (2 * index * depth + 32) // 64


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks, first to last; raises `SempaError` for an architecture that has no such list."""
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth(model):
            return module
    raise SempaError(f"{type(model).__name__}: no list of {depth(model)} decoder blocks found to read or steer")


def output_projection(model: PreTrainedModel, layer: int) -> nn.Module:
    """The linear layer of block `layer` whose input is the attention heads' outputs, concatenated.

    Raises `SempaError` for an architecture that has none by a known name.
    """
    for name, module in blocks(model)[layer].named_modules():
        *parents, own = name.split(".")
        # `Conv1D` of GPT-2 goes by the same name in attention and MLP.
        if own in _OUTPUT_PROJECTIONS and any("att" in parent for parent in parents):
            return module
    raise SempaError(f"{type(model).__name__}: no output projection of the attention heads found to steer")


def states_at(model: PreTrainedModel, layers: Sequence[int], places: Tensor, **inputs: object) -> list[Tensor]:
    """`hidden_states[layer]` of transformers' count at the flat offsets `places` `[m]`, for each layer: `[m, D]` each.

    Only what these states depend on runs: no block behind the highest layer, and in the last block before it the MLP
    for them alone. `inputs` are those of `hidden_states`; a layer counts from 0, the embedding output, to
    the model's depth, the last one, which alone has passed the final norm.
    """
    stack, highest = blocks(model), max(layers)
    states: dict[int, Tensor] = {}

    def keep(hidden: Tensor, layer: int) -> Tensor:
        states[layer] = hidden.flatten(0, 1)[places]
        return hidden

    with contextlib.ExitStack() as hooks:
        for layer in {*layers} - {highest}:
            hooks.enter_context(edited_input(stack[layer], functools.partial(keep, layer=layer)))
        if highest and hasattr(stack[highest - 1], "mlp"):
            hooks.enter_context(only_at(stack[highest - 1].mlp, places))
        if highest == len(stack):
            keep(hidden_states(model, **inputs), highest)
        else:
            with input_of(stack[highest]) as reached:
                hidden_states(model, **inputs)
            keep(reached[0], highest)
    return [states[layer] for layer in layers]


@contextlib.contextmanager
def hooked(register: Callable[[Callable], RemovableHandle], hook: Callable) -> Iterator[None]:
    """Inside, the hook is in place for passes of this thread; those of others, which may be generating, do not meet it.

    `register` is a module's method that takes a hook.
    """
    own = threading.get_ident()
    with _NUMBERED:
        handle = register(lambda *arguments: hook(*arguments) if threading.get_ident() == own else None)
    try:
        yield
    finally:
        with _NUMBERED:
            handle.remove()


@contextlib.contextmanager
def input_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, a forward pass ends where it comes to `module`; the list then holds that module's input."""
    found: list[Tensor] = []

    def stop(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        raise _ReachedError(arguments[0])

    with hooked(module.register_forward_pre_hook, stop):
        try:
            yield found
        except _ReachedError as reached:
            found.append(reached.hidden)


def edited_input(module: nn.Module, edit: Callable[[Tensor], Tensor]) -> AbstractContextManager[None]:
    """Inside, `module` sees `edit` of its input."""
    return hooked(module.register_forward_pre_hook, lambda _, arguments: (edit(arguments[0]), *arguments[1:]))


@contextlib.contextmanager
def only_at(module: nn.Module, places: Tensor) -> Iterator[None]:
    """Inside, `module`, which treats each token alone, runs for those at the flat offsets `places`; others get 0."""
    shape: list[int] = []

    def narrow(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        shape[:] = arguments[0].shape[:2]
        return tuple(argument.flatten(0, 1)[None, places] for argument in arguments)

    def widen(_: nn.Module, __: tuple, output: Tensor | tuple) -> Tensor | tuple:
        # Some mixtures of experts hand out their router's scores too.
        narrow, *rest = output if isinstance(output, tuple) else (output,)
        wide = narrow.new_zeros(*shape, narrow.shape[-1])
        wide.flatten(0, 1)[places] = narrow[0]
        return (wide, *rest) if rest else wide

    with hooked(module.register_forward_pre_hook, narrow), hooked(module.register_forward_hook, widen):
        yield
