"""Attention inside a packed row: each family of tokens sees a shared prefix and itself, never its neighbours.

A dense `[length, length]` mask makes the row's cost grow with the square of its length, though nearly all of it is
masked. Here the row is cut into its families, which stand side by side as a small padded batch: cost grows with length.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Families:
    """A row of `prefix` shared tokens followed by families of `sizes` tokens each.

    `mask` `[families, widest, prefix + widest]` is true where a family's token (middle) may see a token of the
    prefix or of its own family (last); padding sees the prefix or, without one, the family's first token.
    """

    prefix: int
    sizes: tuple[int, ...]
    mask: Tensor


def packed_attention(query: Tensor, key: Tensor, value: Tensor, families: Families, scale: float) -> Tensor:
    """Softmax attention of a packed row, computed in float32 or better.

    Args:
        query: `[length, heads, d]`.
        key: `[length, groups, d]`, heads a multiple of groups (grouped-query attention).
        value: `[length, groups, d]`.
        families: how the row divides; `prefix + sum(sizes) = length`.
        scale: factor on the scores, mostly 1/√d.

    Returns:
        `[length, heads, d]` in the query's dtype.
    """
    prefix, sizes = families.prefix, families.sizes
    outputs = []
    if prefix:
        causal = torch.ones(1, prefix, prefix, dtype=torch.bool, device=query.device).tril()
        parts = (x[None, :prefix] for x in (query, key, value))
        outputs.append(_attend(*parts, causal, scale)[0])
    if sizes:
        padded = [pad_sequence(x[prefix:].split(sizes), batch_first=True) for x in (query, key, value)]
        keys, values = (
            torch.cat([x[None, :prefix].expand(len(sizes), -1, -1, -1), own], 1)
            for x, own in zip((key, value), padded[1:], strict=True)
        )
        attended = _attend(padded[0], keys, values, families.mask, scale)
        outputs += [family[:size] for family, size in zip(attended, sizes, strict=True)]
    return torch.cat(outputs)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """`[n, q, heads, d]` queries, `[n, k, groups, d]` keys and values, `[n, q, k]` mask → `[n, q, heads, d]`."""
    n, length, heads, d = query.shape
    groups = key.shape[2]
    dtype = torch.promote_types(query.dtype, torch.float32)
    # Heads of one group share its keys: they become further queries of it.
    grouped = query.to(dtype).view(n, length, groups, heads // groups, d).permute(0, 2, 3, 1, 4)
    keys, values = (x.to(dtype).transpose(1, 2) for x in (key, value))
    scores = grouped.reshape(n, groups, -1, d) @ (keys.transpose(2, 3) * scale)
    scores = scores.view(n, groups, heads // groups, length, -1).masked_fill(~mask[:, None, None], -torch.inf)
    weights = scores.softmax(-1).flatten(2, 3)
    attended = (weights @ values).view(n, groups, heads // groups, length, d).permute(0, 3, 1, 2, 4)
    return attended.reshape(n, length, heads, d).to(query.dtype)
