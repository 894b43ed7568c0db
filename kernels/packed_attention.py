"""Attention inside a packed row: each branch of tokens sees a shared prefix and itself, never its neighbours.

A dense `[length, length]` mask makes the row's cost grow with the square of its length, though nearly all of it is
masked. Here the row is cut into its branches, which stand side by side as a small padded batch: cost grows with length.
Where a row holds several trees, each with a prefix of its own, it is cut into these first.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# A prefix of more tokens than this, which is a long text by itself, is attended to without holding all its scores.
_LONG_PREFIX = 1024
# On a CPU, softmax in 16-bit dtypes handles whole SIMD vectors at a time, and the remainder one number at a time.
_VECTOR = 32


@dataclass(frozen=True)
class PrefixGroup:
    """A row, or a part of one, of `prefix` shared tokens followed by branches of tokens that stand together.

    `place` `[branches, widest]` is the row offset of each branch's tokens (`length` where there is padding), `slot`
    `[length − prefix]` the way back: where in the flattened `place` each token went. `mask`
    `[branches, widest, prefix + widest]` is true where a branch's token (middle) may see a token of the prefix or of
    its own branch (last); padding sees the first column alone.
    """

    prefix: int
    place: Tensor
    slot: Tensor
    mask: Tensor

    @property
    def length(self) -> int:
        """How many tokens it spans."""
        return self.prefix + len(self.slot)

    def to(self, device: torch.device | str) -> "PrefixGroup":
        """The same on another device."""
        return PrefixGroup(self.prefix, self.place.to(device), self.slot.to(device), self.mask.to(device))


def make_prefix_group(prefix: int, sizes: Sequence[int], segments: Tensor, sees: Tensor) -> PrefixGroup:
    """Cut a row of `prefix` tokens and branches of `sizes` tokens.

    `segments` `[length]` is each token's segment, and the boolean `sees` `[segments, segments]` is true where the
    tokens of a segment (row) see those of another (column). Within a segment, tokens see what is before them.
    """
    length, widest = prefix + sum(sizes), max(sizes, default=0)
    place = torch.full((len(sizes), widest), length)
    mask = torch.zeros(len(sizes), widest, prefix + widest, dtype=torch.bool)
    mask[:, :, 0] = True
    begin = prefix
    for branch, size in enumerate(sizes):
        own = segments[begin : begin + size]
        place[branch, :size] = torch.arange(begin, begin + size)
        seen = sees[own]
        mask[branch, :size, :prefix] = seen[:, segments[:prefix]]
        mask[branch, :size, prefix : prefix + size] = seen[:, own].tril_()
        begin += size
    return PrefixGroup(prefix, place, (place < length).flatten().nonzero()[:, 0], mask)


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, prefix_groups: Sequence[PrefixGroup], scale: float
) -> Tensor:
    """Softmax attention of a packed row: products in the inputs' dtype, the softmax inside in float32 or better.

    Args:
        query: `[length, heads, d]`.
        key: `[length, kv_heads, d]`, heads a multiple of kv_heads (grouped-query attention).
        value: `[length, kv_heads, d]`.
        prefix_groups: how the row divides, from its first token to its last; no group sees another.
        scale: factor on the scores, mostly 1/√d.

    Returns:
        `[length, heads, d]` in the query's dtype.
    """
    lengths = [group.length for group in prefix_groups]
    outputs: list[Tensor] = []
    for group, *own in zip(prefix_groups, *(x.split(lengths) for x in (query * scale, key, value)), strict=True):
        outputs += _attend_group(*own, group)
    return torch.cat(outputs)


def _attend_group(query: Tensor, key: Tensor, value: Tensor, group: PrefixGroup) -> list[Tensor]:
    """Attention of one group of the row, its queries scaled: the prefix's outputs, then the branches'."""
    prefix, count = group.prefix, len(group.place)
    outputs = []
    if prefix:
        outputs.append(_attend_causally(query[:prefix], key[:prefix], value[:prefix]))
    if count:
        place = group.place.flatten() - prefix
        # Padding points behind the last token: at zeros.
        padded = (F.pad(x[prefix:], (0, 0, 0, 0, 0, 1)) for x in (query, key, value))
        queries, *own = (x.index_select(0, place).unflatten(0, group.place.shape) for x in padded)
        keys, values = (
            torch.cat([x[None, :prefix].expand(count, -1, -1, -1), o], 1)
            for x, o in zip((key, value), own, strict=True)
        )
        attended = _attend(queries, keys, values, group.mask)
        outputs.append(attended.flatten(0, 1).index_select(0, group.slot))
    return outputs


def _attend_causally(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """`[length, heads, d]` scaled queries, `[length, kv_heads, d]` keys, values → `[length, heads, d]`."""
    length, heads, _ = query.shape
    if length <= _LONG_PREFIX:
        causal = torch.ones(1, length, length, dtype=torch.bool, device=query.device).tril()
        return _attend(query[None], key[None], value[None], causal)[0]
    # Some heads share their keys.
    key, value = (x.repeat_interleave(heads // x.shape[1], 1) for x in (key, value))
    heads_first = (x.transpose(0, 1)[None] for x in (query, key, value))
    return F.scaled_dot_product_attention(*heads_first, is_causal=True, scale=1.0)[0].transpose(0, 1)


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """`[n, q, heads, d]` scaled queries, `[n, k, kv_heads, d]` keys, values, `[n, q, k]` mask → `[n, q, heads, d]`."""
    # Not `F.scaled_dot_product_attention`: with a mask and short branches its backward pass is slower on a CPU, in
    # bfloat16 by several times.
    n, length, heads, d = query.shape
    kv_heads = key.shape[2]
    if spare := -key.shape[1] % _VECTOR if query.element_size() < 4 else 0:
        key, value = (F.pad(x, (0, 0, 0, 0, 0, spare)) for x in (key, value))
        mask = F.pad(mask, (0, spare))
    # The heads that share keys become further queries of these.
    grouped = query.view(n, length, kv_heads, -1, d).permute(0, 2, 3, 1, 4).reshape(n, kv_heads, -1, d)
    scores = grouped @ key.permute(0, 2, 3, 1)
    bias = torch.zeros(mask.shape, dtype=scores.dtype, device=mask.device).masked_fill_(~mask, -torch.inf)
    scores.add_(bias.repeat(1, heads // kv_heads, 1)[:, None])
    attended = scores.softmax(-1) @ value.transpose(1, 2)
    return attended.view(n, kv_heads, -1, length, d).permute(0, 3, 1, 2, 4).reshape(n, length, heads, d)
