"""The forward pass: hidden states of packed rows, each token as in its own sequence."""

import sys
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sempa.batching.packing import PackedRow
from sempa.kernels import PrefixGroup, packed_attention

# Our attention's name among those of transformers.
ATTENTION = "sempa"


def hidden_states(
    model: PreTrainedModel,
    tokens: Tensor,
    positions: Tensor | None = None,
    mask: Tensor | None = None,
    prefix_groups: Sequence[PrefixGroup] | None = None,
    layer: int | None = None,
) -> Tensor:
    """Last hidden states `[rows, length, D]` of token ids `[rows, length]`, past the final norm, in the model's dtype.

    A packed row brings `positions` `[1, length]`, a boolean `mask` `[1, 1, length, length]` and its `prefix_groups`;
    without them every token sees all before it. With `layer` they are the states after another layer: 0 is the
    embedding output, the model's depth the last layer, whose states alone have passed the final norm.
    """
    packed = {} if positions is None else {"position_ids": positions}
    if mask is not None and model.config._attn_implementation == "eager":
        # Eager attention adds the mask to its scores.
        lowest = torch.finfo(model.dtype).min
        packed |= {"attention_mask": torch.zeros_like(mask, dtype=model.dtype).masked_fill(~mask, lowest)}
    elif mask is not None:
        # An architecture that does not hand `prefix_groups` on to its attention still has the mask.
        packed |= {"attention_mask": mask, "prefix_groups": prefix_groups}
    is_last = layer in (None, depth(model))
    output = model.base_model(input_ids=tokens, use_cache=False, output_hidden_states=not is_last, **packed)
    return output.last_hidden_state if is_last else output.hidden_states[layer]


def row_states(model: PreTrainedModel, row: PackedRow, layer: int | None = None) -> Tensor:
    """Hidden states `[length, D]` of a packed row's tokens after a layer (the last), each as in its own sequence."""
    inputs, places = row_inputs(model, row)
    return hidden_states(model, **inputs, layer=layer).flatten(0, 1)[places]


def row_inputs(model: PreTrainedModel, row: PackedRow) -> tuple[dict[str, object], Tensor]:
    """What `hidden_states` takes for a row, and where its tokens lie in the flattened output: `[length]`, int64.

    Each sequence runs in a row of its own where the architecture takes no block mask (`load_base` checks that) or where
    a sequence is longer than the attention window: slower, with the same result. A warning says so.
    """
    takes_block_mask, window = getattr(model, "takes_block_mask", True), attention_window(model)
    longest, places = max(row.positions) + 1, torch.arange(len(row.tokens), device=model.device)
    if longest == len(places):
        # A single sequence takes a causal pass, which needs no mask of length x length.
        return {"tokens": torch.tensor([row.tokens], device=model.device)}, places
    if takes_block_mask and longest <= window:
        return row.inputs(model.device), places
    reason = f"attends to {window:,} tokens at most" if takes_block_mask else "takes no block mask"
    message = f"{type(model).__name__} {reason}: sequences run in separate rows: slower, the same result"
    warnings.warn(message, stacklevel=1)  # once, whoever calls
    tokens, places = row.separate()
    return {"tokens": tokens.to(model.device)}, places.to(model.device)


def attention_window(model: PreTrainedModel) -> int:
    """How many tokens back the narrowest attention layer sees (Mistral, Gemma), itself included."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or ("sliding_attention", "chunked_attention")
    names = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
    windows = [getattr(config, name, None) for kind, name in names.items() if kind in kinds]
    return min(filter(None, windows), default=sys.maxsize)


def depth(model: PreTrainedModel) -> int:
    """The number of decoder blocks."""
    return model.config.get_text_config().num_hidden_layers


def context_length(model: PreTrainedModel) -> int:
    """How many tokens the model can read at once, by its config; `sys.maxsize` where it does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    prefix_groups: Sequence[PrefixGroup] | None = None,
    **options: object,
) -> tuple[Tensor, None]:
    """transformers' attention interface: `[1, heads, length, d]` in, `[1, length, heads, d]` out."""
    # Latent attention (DeepSeek) has narrower values than keys, which packed attention does not know.
    if prefix_groups is None or value.shape[-1] != key.shape[-1]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    scale = scaling or query.shape[-1] ** -0.5
    rows = (x[0].transpose(0, 1) for x in (query, key, value))
    return packed_attention(*rows, prefix_groups, scale)[None], None


def _mask(*arguments: object, **options: object) -> Tensor | None:
    """transformers' mask, in which padding on the left sees all: where it sees nothing, cuDNN's softmax may be NaN."""
    mask = sdpa_mask(*arguments, **options)
    return mask if mask is None else mask | ~mask.any(-1, keepdim=True)


AttentionInterface.register(ATTENTION, _attend)
AttentionMaskInterface.register(ATTENTION, _mask)
