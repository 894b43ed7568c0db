"""Packed rows equal separate sequences, lose nothing, and keep their neighbours apart."""

import importlib
import itertools

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from sempa.batching.packing import PackedRow, fill_bins, pack_preferences, pack_sentence_rows, pack_texts, shared_prefix
from sempa.batching.prompts import Preference
from sempa.kernels import packed_attention

token_lists = st.lists(st.integers(0, 9), min_size=1, max_size=6)
preferences = st.lists(st.builds(Preference, token_lists, st.tuples(token_lists, token_lists)), min_size=1, max_size=8)


@settings(max_examples=60)
@given(items=preferences, row_tokens=st.integers(1, 40))
@example(items=[Preference([0, 0, 0, i], ([1], [2])) for i in (1, 2, 3)], row_tokens=5)
def test_every_preference_is_packed_once_and_can_be_read_back(items, row_tokens):
    rows = pack_preferences(items, row_tokens)
    assert sorted(index for row in rows for index in row.examples) == list(range(len(items)))
    for packed in rows:
        assert len(packed.packed.tokens) <= row_tokens or len(packed.examples) == 1
        mask = packed.packed.attention_mask()
        for place, index in enumerate(packed.examples):
            for k, response in enumerate(items[index].responses):
                mine = (packed.owner == 2 * place + k).nonzero()[:, 0]
                assert packed.target[mine].tolist() == response
                assert packed.lengths[place, k] == len(response)
                # What the last predicting state sees is the prompt and the response but its last token, in order.
                seen = mask[packed.source[mine[-1]]].nonzero()[:, 0]
                assert [packed.packed.tokens[i] for i in seen] == items[index].prompt + response[:-1]
                assert [packed.packed.positions[i] for i in seen] == list(range(len(seen)))


@settings(max_examples=60)
@given(sequences=st.lists(token_lists, min_size=1, max_size=8), row_tokens=st.integers(1, 40))
@example(sequences=[[0, 0], [0], [0]], row_tokens=1)
def test_packed_sentences_see_exactly_themselves(sequences, row_tokens):
    rows = pack_sentence_rows(sequences, row_tokens)
    assert sorted(member for packed in rows for member in packed.members) == list(range(len(sequences)))
    for packed in rows:
        assert len(packed.packed.tokens) <= row_tokens or len(packed.members) == 1
        mask = packed.packed.attention_mask()
        for member, end in zip(packed.members, packed.ends, strict=True):
            assert [packed.packed.tokens[i] for i in mask[end].nonzero()[:, 0]] == sequences[member]


def test_a_row_of_sentences_shares_all_that_its_own_sentences_begin_with():
    """Not only what the batch begins with: six sentences and eight, which differ in their third token."""
    long, short = (
        [[0, 0, kind, *[7] * 7, *range(10 * i, 10 * i + size)] for i in range(count)]
        for kind, size, count in ((1, 9, 6), (2, 5, 8))
    )
    rows = pack_sentence_rows([*long, *short], 110)
    assert [len(row.packed.tokens) for row in rows] == [10 + 6 * 9, 10 + 8 * 5]


def test_prompts_of_like_size_share_a_row_so_that_nothing_is_padded():
    prompts = [[1, *[2 + i] * (3 if i % 7 else 30)] for i in range(28)]
    rows = pack_preferences([Preference(prompt, ([5, 7], [6, 7])) for prompt in prompts], 140)
    assert len(rows) == 2
    groups = [group for row in rows for group in row.packed.prefix_groups()]
    slots = sum(group.place.numel() for group in groups)
    assert slots == sum(len(prompt) - 1 + 2 for prompt in prompts)


@settings(max_examples=60)
@given(items=preferences)
def test_a_row_taken_apart_holds_every_sequence_once_and_finds_every_token(items):
    for packed in pack_preferences(items, 60):
        tokens, places = packed.packed.separate()
        # A response's last token is predicted, and never read.
        sequences = [items[i].prompt + response[:-1] for i in packed.examples for response in items[i].responses]
        assert len(tokens) == len(sequences)
        assert tokens.shape[1] == max(map(len, sequences))
        for row, sequence in zip(tokens.tolist(), sequences, strict=True):
            assert row[: len(sequence)] == sequence
        assert tokens.flatten()[places].tolist() == packed.packed.tokens
        assert (places % tokens.shape[1]).tolist() == packed.packed.positions


@given(sizes=st.lists(st.integers(1, 50), max_size=30), capacity=st.integers(1, 60))
def test_bins_hold_everything_once_and_overflow_only_alone(sizes, capacity):
    bins = fill_bins(sizes, capacity)
    assert sorted(itertools.chain(*bins)) == list(range(len(sizes)))
    assert all(len(b) == 1 or sum(sizes[i] for i in b) <= capacity for b in bins)


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=10), capacity=st.integers(50, 120))
def test_bins_are_as_few_and_then_as_equally_full_as_in_this_order_they_can_be(sizes, capacity):
    """Against every way to cut the items, longest first, into runs."""
    ordered = sorted(sizes, reverse=True)
    best = min(
        (len(cuts) + 1, max(sum(ordered[a:b]) for a, b in itertools.pairwise((0, *cuts, len(ordered)))))
        for n in range(len(ordered))
        for cuts in itertools.combinations(range(1, len(ordered)), n)
        if all(sum(ordered[a:b]) <= capacity for a, b in itertools.pairwise((0, *cuts, len(ordered))))
    )
    bins = [[sizes[place] for place in places] for places in fill_bins(sizes, capacity)]
    assert (len(bins), max(map(sum, bins))) == best


def draw_row(prefix, branches, row=None):
    row = row or PackedRow()
    root = row.add([0] * prefix)
    for trunk, *leaves in branches:
        top = row.add([1] * trunk, root)
        for leaf in leaves:
            row.add([2] * leaf, top)
    return row


def draw_forest(trees):
    """Several trees in one row, none of which sees another."""
    row = PackedRow()
    for tree in trees:
        draw_row(*tree, row)
    return row


# A prefix and what stands below it, as sizes; without branches it is a text alone.
trees = st.tuples(st.integers(0, 4), st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), max_size=5))
forests = st.lists(trees, min_size=1, max_size=4).filter(lambda drawn: any(a or b for a, b in drawn))


@settings(max_examples=60)
@given(
    drawn=forests,
    groups=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
)
@example(drawn=[(2, [[1, 2], [3]]), (3, []), (2, []), (0, [[2], [1]])], groups=2, seed=0)
def test_packed_attention_equals_dense_attention_under_the_rows_mask(drawn, groups, seed):
    row = draw_forest(drawn)
    generator = torch.Generator().manual_seed(seed)

    def draw(heads):
        values = torch.randn(len(row.tokens), heads, 8, generator=generator, dtype=torch.float64)
        return values.requires_grad_()

    inputs = query, key, value = draw(4), draw(groups), draw(groups)
    ours = packed_attention(query, key, value, row.prefix_groups(), 0.3)
    q, k, v = (x.transpose(0, 1) for x in inputs)
    k, v = (x.repeat_interleave(4 // groups, 0) for x in (k, v))
    dense = F.scaled_dot_product_attention(q, k, v, row.attention_mask(), scale=0.3).transpose(0, 1)
    torch.testing.assert_close(ours, dense, rtol=1e-10, atol=1e-12)
    upstream = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    for mine, other in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(dense, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


def test_a_long_prefix_is_attended_to_without_all_its_scores_at_once(monkeypatch):
    """A text that stands alone is all prefix; its memory must not grow with the square of its length."""
    length, heads = 1500, 4
    row = draw_row(length - 5, [[2, 3]])
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(length, count, 8, generator=generator, dtype=torch.float64).requires_grad_()
        for count in (heads, 2, 2)
    ]
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
            result = function(*arguments, **(keywords or {}))
            sizes.extend(
                x.numel() for x in pytree.tree_leaves(result) if isinstance(x, torch.Tensor) and x.is_floating_point()
            )
            return result

    results = []
    for limit in (1024, length):
        monkeypatch.setattr(importlib.import_module("sempa.kernels.packed_attention"), "_LONG_PREFIX", limit)
        sizes.clear()
        with Sizes():
            attended = packed_attention(*inputs, row.prefix_groups(), 0.3)
        assert (max(sizes) < length**2) == (limit < length)
        results.append([attended, *torch.autograd.grad(attended.square().sum(), inputs)])
    for ours, dense in zip(*results, strict=True):
        torch.testing.assert_close(ours, dense, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-7)])
@pytest.mark.parametrize("scale", [0.1, 30.0])
def test_packed_attention_rounds_no_more_than_its_dtype(dtype, tolerance, scale):
    """Against float64 arithmetic on the same rounded inputs, relative to the length of each head's output."""
    row = PackedRow()
    root = row.add([0] * 5)
    for size in (3, 7, 4):
        row.add([2] * 2, row.add([1] * size, root))
    generator = torch.Generator().manual_seed(1)
    query, key, value = (torch.randn(len(row.tokens), heads, 8, generator=generator).to(dtype) for heads in (4, 2, 2))
    ours = packed_attention(query, key, value, row.prefix_groups(), scale).double()
    exact = packed_attention(query.double(), key.double(), value.double(), row.prefix_groups(), scale)
    # The scores are rounded to the dtype, too: a large scale makes that an absolute error before the softmax.
    rounding = max(1.0, scale * 8)
    assert (ours - exact).norm() < tolerance * rounding * exact.norm()


def test_a_branch_whose_tokens_are_torn_apart_is_refused():
    row = PackedRow()
    root = row.add([1])
    first = row.add([2], root)
    row.add([3], root)
    row.add([4], first)
    with pytest.raises(ValueError, match="one after another"):
        row.prefix_groups()


def test_a_tree_whose_tokens_are_torn_apart_is_refused():
    row = PackedRow()
    first = row.add([1])
    row.add([2])
    row.add([3], first)
    with pytest.raises(ValueError, match="one after another"):
        row.prefix_groups()


@given(drawn=forests)
def test_trees_of_one_row_stand_side_by_side_and_see_nothing_of_each_other(drawn):
    rows = [draw_row(*tree) for tree in drawn]
    joined = draw_forest(drawn)
    assert joined.tokens == [token for row in rows for token in row.tokens]
    assert joined.positions == [position for row in rows for position in row.positions]
    masks = (row.attention_mask() for row in rows if row.tokens)
    assert torch.equal(joined.attention_mask(), torch.block_diag(*masks).bool())
    begins = itertools.accumulate((len(row.tokens) for row in rows), initial=0)
    ends = [begin + end if end >= 0 else -1 for row, begin in zip(rows, begins, strict=False) for end in row.ends]
    assert joined.ends == ends


def test_texts_that_share_nothing_stand_side_by_side_and_each_tree_apart():
    """Not one branch as long as a whole tree: attention would pad every text to it."""
    row = draw_forest([(3, []), (2, []), (5, [[4], [3, 1]]), (2, [])])
    parts = row.prefix_groups()
    assert [(part.prefix, tuple(part.place.shape), part.length) for part in parts] == [
        (0, (2, 3), 5),
        (5, (2, 4), 13),
        (0, (1, 2), 2),
    ]


def test_the_shared_prefix_leaves_every_sequence_a_token_of_its_own():
    assert shared_prefix([[1, 2, 3], [1, 2, 4]]) == [1, 2]
    assert shared_prefix([[1, 2], [1, 2]]) == [1]
    assert shared_prefix([[1]]) == []


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=9), min_size=1, max_size=5), st.integers(1, 8))
def test_texts_in_rows_lose_no_token(texts, row_tokens):
    rows = pack_texts(texts, row_tokens)
    assert all(0 < len(row.tokens) <= row_tokens for row in rows)
    assert sorted(token for row in rows for token in row.tokens) == sorted(token for text in texts for token in text)
