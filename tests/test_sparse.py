"""Sparse codes and their loss against dense arithmetic over the whole vocabulary, in values and gradients."""

from importlib import import_module
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sempa.kernels import decode, sparse_code, token_directions
from sempa.losses import spod_loss


def chunks_of(rows, head):
    """Inside, so many rows of scores are held at one time."""
    return mock.patch.object(import_module("sempa.kernels.sparse_code"), "CHUNK_ELEMENTS", rows * len(head))


def problem(rows=6, width=5, vocabulary=23, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.float64}
    # Output embeddings far from centred, as real ones are.
    head = torch.randn(vocabulary, width, **draw) + 2 * torch.randn(width, **draw)
    return torch.randn(rows, width, **draw).to(dtype), head.to(dtype)


def directions(head):
    return F.normalize(head - head.mean(0), dim=1, eps=1e-30)


def dense(embedding, head, k):
    """Values of the code and of the rest, `[n, V]` each, written out."""
    activations = (embedding @ directions(head).T).relu()
    inside = torch.zeros_like(activations).scatter(1, activations.topk(k, 1).indices, 1)
    return activations * inside, activations * (1 - inside)


@settings(max_examples=40)
@given(
    rows=st.integers(0, 7),
    # In one dimension all directions tie.
    width=st.integers(2, 8),
    vocabulary=st.integers(1, 40),
    chunk_rows=st.integers(1, 8),
    share=st.floats(0, 1),
    seed=st.integers(0, 9999),
)
def test_the_code_is_the_largest_centred_products_at_any_shape(rows, width, vocabulary, chunk_rows, share, seed):
    embedding, head = problem(rows, width, vocabulary, seed=seed)
    k = 1 + round(share * (vocabulary - 1))
    with chunks_of(chunk_rows, head):
        code = sparse_code(embedding, token_directions(head), k)
        decoded = decode(code.values, code.indices, token_directions(head))
    chosen, rest = dense(embedding, head, k)
    assert code.indices.shape == code.values.shape == (rows, k)
    scattered = torch.zeros_like(chosen).scatter(1, code.indices, code.values)
    torch.testing.assert_close(scattered, chosen, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(code.rest, rest.square().sum(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(decoded, chosen @ directions(head), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("k", [1, 4, 23])
def test_gradients_are_those_of_the_dense_formula_with_the_choice_held(k):
    embedding, head = problem()

    def ours(h):
        with chunks_of(4, head):
            values, indices, rest = sparse_code(h, token_directions(head), k)
            return torch.cat([decode(values, indices, token_directions(head)), rest[:, None]], 1)

    def theirs(h):
        chosen, rest = dense(h, head, k)
        return torch.cat([chosen @ directions(head), rest.square().sum(1, keepdim=True)], 1)

    weights = torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found, expected = (
        torch.autograd.grad((function(x) * weights).sum(), x)[0]
        for function in (ours, theirs)
        for x in (embedding.clone().requires_grad_(),)
    )
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    assert torch.autograd.gradcheck(ours, embedding.requires_grad_())


def test_bfloat16_heads_choose_in_bfloat16_and_weigh_in_float32():
    embedding, head = problem(20, 48, 700, torch.bfloat16, seed=3)
    code = sparse_code(embedding.requires_grad_(), token_directions(head), 12)
    exact = embedding.double() @ directions(head.double()).T
    assert code.values.dtype == code.rest.dtype == torch.float32
    torch.testing.assert_close(code.values.double(), exact.gather(1, code.indices), rtol=1e-4, atol=1e-3)
    # What was not chosen may be larger than what was by the rounding of a bfloat16 logit only.
    others = exact.scatter(1, code.indices, -torch.inf).amax(1)
    assert (
        code.values.amin(1)
        > others - 2**-8 * (embedding.double() @ head.double().T).abs().amax(1) * token_directions(head).scale.max()
    ).all()
    (pull,) = torch.autograd.grad(code.rest.sum(), embedding)
    weights = exact.relu().scatter(1, code.indices, 0)
    expected = 2 * weights @ directions(head.double())
    assert F.cosine_similarity(pull.double(), expected).min() > 0.999


def test_nothing_of_the_vocabularys_size_is_kept_for_the_backward_pass():
    embedding, head = problem(8, 4, 5000, torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        code = sparse_code(embedding.requires_grad_(), token_directions(head), 3)
        (code.values.sum() + code.rest.sum()).backward()
    assert max(saved) <= 8 * 3 * 4


def test_an_embedding_that_is_one_centred_token_is_its_own_code():
    _, head = problem(1, 40, 40)
    head = torch.linalg.qr(head).Q
    token = head[7] - head.mean(0)
    code = sparse_code(token[None], token_directions(head), 1)
    assert code.indices.item() == 7
    torch.testing.assert_close(decode(code.values, code.indices, token_directions(head))[0], token)
    reconstruction, sparsity = spod_loss(3 * token[None], head, 1)
    # The centred rows of an orthonormal head are a simplex: all other tokens are below the average.
    torch.testing.assert_close(torch.cat([reconstruction, sparsity]), torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("k", [1, 5, 23])
def test_the_loss_is_one_minus_cosine_and_the_share_of_energy_outside_the_code(k):
    embedding, head = problem()
    chosen, rest = dense(embedding, head, k)
    decoded = chosen @ directions(head)
    expected = 1 - F.cosine_similarity(decoded, embedding), rest.square().sum(1) / (chosen + rest).square().sum(1)
    for mine, other in zip(spod_loss(embedding, head, k), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-12)
    # No scale: a longer embedding has the same key tokens.
    for mine, other in zip(spod_loss(100 * embedding, token_directions(head), k), expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-12)
    assert torch.autograd.gradcheck(lambda h: spod_loss(h, head, k), embedding.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_an_embedding_above_whose_average_no_token_lies_has_an_empty_code_and_no_gradient(dtype):
    head = torch.zeros(4, 6, dtype=dtype)
    head[:, :3] = torch.randn(4, 3)
    # Along an axis that no output embedding has, and a usual one beside it.
    embedding = torch.tensor([[0.0, 0, 0, 0, 0, 1], [1.0, 1, 0, 0, 0, 0]], dtype=dtype, requires_grad=True)
    reconstruction, sparsity = spod_loss(embedding, head, 2)
    assert (reconstruction[0], sparsity[0]) == (1, 0)
    (reconstruction + sparsity).sum().backward()
    assert not embedding.grad[0].any() and embedding.grad[1].isfinite().all()


@pytest.mark.parametrize("term", [0, 1])
def test_descending_either_term_lowers_it(term):
    embedding, head = problem(16, 24, 300, torch.float32)
    before = spod_loss(embedding, head, 8)[term].mean().item()
    embedding.requires_grad_()
    optimizer = torch.optim.Adam([embedding], lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        spod_loss(embedding, head, 8)[term].mean().backward()
        optimizer.step()
    assert spod_loss(embedding, head, 8)[term].mean().item() < 0.8 * before


def test_codes_grow_more_faithful_with_k():
    embedding, head = problem(16, 24, 300)
    losses = [spod_loss(embedding, head, k) for k in (1, 4, 16, 64)]
    for term in range(2):
        means = [loss[term].mean().item() for loss in losses]
        assert means == sorted(means, reverse=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_token_directions_are_centred_and_of_length_one_and_the_mean_itself_has_none(dtype):
    head = problem(1, 6, 50)[1].to(dtype)
    tokens = token_directions(head.requires_grad_())
    found = (head.detach() - tokens.mean) * tokens.scale[:, None]
    torch.testing.assert_close(found.double(), directions(head.detach().double()), rtol=1e-5, atol=1e-6)
    assert not (tokens.head.requires_grad or tokens.mean.requires_grad or tokens.scale.requires_grad)
    assert token_directions(torch.ones(3, 2)).scale.tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"embedding": torch.zeros(3)}, r"floating embeddings \[n, 3\], found torch.float32 \(3,\)"),
        ({"embedding": torch.zeros(2, 4)}, r"found torch.float32 \(2, 4\)"),
        ({"embedding": torch.zeros(2, 3, dtype=torch.int64)}, "found torch.int64"),
        ({"k": 0}, "k from 1 to the vocabulary's 4, found 0"),
        ({"k": 5}, "found 5"),
    ],
)
def test_bad_arguments_are_named_with_what_was_found(change, message):
    tokens = token_directions(torch.eye(4, 3))
    with pytest.raises(ValueError, match=message):
        sparse_code(**{"embedding": torch.zeros(2, 3), "tokens": tokens, "k": 2} | change)
    for head in (torch.zeros(3), torch.zeros(4, 3, dtype=torch.int64)):
        with pytest.raises(ValueError, match=r"floating head \[V, D\], found torch"):
            token_directions(head)


def test_embeddings_and_codes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="spod_loss needs embeddings with a direction, found one of length 0 in row 1"):
        spod_loss(torch.tensor([[1.0, 0], [0, 0]]), torch.eye(2), 1)
    with pytest.raises(ValueError, match=r"values and indices \[n, k\], found \(2, 1\) \(2, 2\)"):
        decode(torch.ones(2, 1), torch.tensor([[0, 1], [2, 4]]), token_directions(torch.eye(9)))


def test_what_a_code_leaves_out_can_be_differentiated_once_not_twice():
    embedding, head = problem()
    embedding.requires_grad_()
    rest = sparse_code(embedding, token_directions(head), 3).rest
    (gradient,) = torch.autograd.grad(rest.square().sum(), embedding, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
