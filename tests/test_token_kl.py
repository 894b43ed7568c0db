"""The divergence from a reference against float64 arithmetic and torch's own KL, in values and gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from sempa.kernels import token_kl

LOOSE = {"rtol": 1e-5, "atol": 1e-6}


def plain(hidden, reference, weight, bias=None, softcap=None):
    def log_probabilities(states):
        logits = states @ weight.T
        if bias is not None:
            logits = logits + bias
        if softcap is not None:
            logits = softcap * torch.tanh(logits / softcap)
        return logits.log_softmax(-1)

    policy, base = log_probabilities(hidden), log_probabilities(reference)
    return F.kl_div(policy, base, reduction="none", log_target=True).sum(-1)


def problem(rows=7, width=5, vocabulary=11, dtype=torch.float64, scale=1.0, apart=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    reference, step = torch.randn(2, rows, width, generator=generator, dtype=torch.float64) * scale
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
    return (reference + apart * step).to(dtype), reference.to(dtype), weight.to(dtype)


def value_and_gradient(function, hidden):
    hidden = hidden.detach().clone().requires_grad_()
    value = function(hidden)
    upstream = torch.linspace(-1, 2, len(value), dtype=value.dtype)
    return value.detach(), torch.autograd.grad(value, hidden, upstream)[0]


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("chunk_rows", [1, 3, 7, 100])
def test_value_and_gradient_equal_torchs_kl_div_in_float64(softcap, with_bias, chunk_rows):
    hidden, reference, weight = problem()
    bias = torch.linspace(-1, 1, 11, dtype=torch.float64) if with_bias else None
    ours = value_and_gradient(
        lambda h: token_kl(h, reference, weight, bias=bias, softcap=softcap, chunk_rows=chunk_rows), hidden
    )
    theirs = value_and_gradient(lambda h: plain(h, reference, weight, bias, softcap), hidden)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_numerical_differentiation_agrees_with_the_backward_pass(softcap):
    hidden, reference, weight = problem()
    bias = torch.linspace(-1, 1, 11, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda h: token_kl(h, reference, weight, bias=bias, softcap=softcap, chunk_rows=2), hidden.requires_grad_()
    )


@settings(max_examples=40)
@given(
    rows=st.integers(0, 9),
    width=st.integers(1, 8),
    vocabulary=st.integers(1, 40),
    scale=st.sampled_from([1e-3, 1.0, 30.0, 1e4]),
    chunk_rows=st.integers(1, 10),
    seed=st.integers(0, 9999),
)
def test_float32_is_within_rounding_of_float64_at_any_shape_and_scale(rows, width, vocabulary, scale, chunk_rows, seed):
    hidden, reference, weight = problem(rows, width, vocabulary, torch.float32, scale, seed=seed)
    value, gradient = value_and_gradient(lambda h: token_kl(h, reference, weight, chunk_rows=chunk_rows), hidden)
    exact, exact_gradient = value_and_gradient(lambda h: plain(h, reference.double(), weight.double()), hidden.double())
    logit_size = float((hidden.abs().double() @ weight.abs().double().T).max()) if rows else 0.0
    assert value.dtype == torch.float32
    assert (value >= 0).all()
    # A logit's own float32 rounding δ is all that may separate them. In the policy's logits it changes KL by δ at most,
    # in the reference's by δ Σ p' |r − KL|, r = log p'/p: near a tie of the reference, small steps move much mass.
    theirs, ours = ((x.double() @ weight.double().T).log_softmax(1) for x in (reference, hidden.detach()))
    spread = (theirs.exp() * (theirs - ours - exact.detach()[:, None]).abs()).sum(1)
    allowed = 1e-5 * exact + 4e-7 * logit_size * (1 + spread) + 1e-6
    assert ((value.double() - exact).abs() <= allowed).all()
    if scale <= 1:
        torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_equal_hidden_states_diverge_by_exactly_nothing(dtype, softcap):
    hidden, _, weight = problem(37, 16, 301, dtype, 5.0)
    value, gradient = value_and_gradient(
        lambda h: token_kl(h, hidden.clone(), weight, softcap=softcap, chunk_rows=8), hidden
    )
    assert (value == 0).all()
    assert (gradient == 0).all()


def test_a_divergence_near_zero_is_several_times_as_exact_as_the_textbook_sum():
    # 1e-4 off in every state: KL is about 1e-8, where log-probabilities of size 8 have steps of 1e-6.
    hidden, reference, weight = problem(64, 32, 2000, torch.float32, 0.5, apart=1e-4, seed=2)
    exact = plain(hidden.double(), reference.double(), weight.double())
    ours, textbook = (
        (value.double() - exact).abs().max() for value in (f(hidden, reference, weight) for f in (token_kl, plain))
    )
    assert exact.max() < 1e-7
    assert ours < 1e-7
    # Even so, what rounding may leave is no divergence below zero.
    assert (token_kl(hidden, reference, weight) >= 0).all()
    assert 4 * ours < textbook


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_ten_thousand_stay_finite_and_exact(dtype):
    # Policy and reference are certain: of the same token, of different tokens, and the policy undecided.
    hidden, reference = torch.tensor([[1e4], [1e4], [0.0]]).to(dtype), torch.tensor([[1e4], [-1e4], [1e4]]).to(dtype)
    weight = torch.tensor([[1.0], [0.0], [-1.0]], dtype=dtype)
    large = float(hidden[0])
    value, gradient = value_and_gradient(lambda h: token_kl(h, reference, weight), hidden)
    torch.testing.assert_close(value, torch.tensor([0.0, 2 * large, math.log(3)]))
    # Σ (p − p') u: nothing, from −1 to 1, and from the mean 0 to the reference's 1.
    expected = torch.tensor([0.0, 2.0, -1.0]) * torch.linspace(-1, 2, 3)
    torch.testing.assert_close(gradient[:, 0].float(), expected, rtol=5e-3, atol=0)


def test_bfloat16_is_no_worse_than_plain_pytorch_in_bfloat16():
    hidden, reference, weight = problem(64, 48, 500, torch.bfloat16, 0.3, seed=3)
    exact = value_and_gradient(lambda h: plain(h, reference.double(), weight.double()), hidden.double())
    ours = value_and_gradient(lambda h: token_kl(h, reference, weight, chunk_rows=17), hidden)
    theirs = value_and_gradient(lambda h: plain(h, reference, weight), hidden)
    assert ours[1].dtype == torch.bfloat16
    for mine, other, truth in zip(ours, theirs, exact, strict=True):
        own_error = (mine.double() - truth).abs().max()
        assert own_error <= (other.double() - truth).abs().max()
        assert own_error < 0.02 * truth.abs().max()


def test_what_is_kept_for_the_backward_pass_is_the_size_of_the_hidden_states():
    hidden, reference, weight = problem(16, 6, 4096, torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        token_kl(hidden.requires_grad_(), reference, weight).sum().backward()
    assert max(saved) <= hidden.numel()


def test_non_contiguous_inputs_and_inputs_without_gradient_are_fine():
    hidden, reference, weight = problem(6)
    exact = plain(hidden, reference, weight)
    views = hidden.T.contiguous().T, reference.repeat_interleave(2, 0)[::2], weight.repeat_interleave(2, 0)[::2]
    result = token_kl(*views, chunk_rows=4)
    assert not result.requires_grad
    torch.testing.assert_close(result, exact)
    assert token_kl(hidden[:0], reference[:0], weight).shape == (0,)


def test_under_autocast_the_products_are_of_its_dtype_and_the_gradient_of_the_inputs():
    hidden, reference, weight = problem(9, 16, 60, torch.float32, 0.3)
    half = value_and_gradient(lambda h: token_kl(h, reference.bfloat16(), weight.bfloat16()), hidden.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        found = value_and_gradient(lambda h: token_kl(h, reference, weight), hidden)
    assert found[1].dtype == torch.float32
    for mine, other in zip(found, half, strict=True):
        torch.testing.assert_close(mine, other.float(), rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_whole_it_gives_the_same_values_and_gradients(backend):
    hidden, reference, weight = problem(9, 16, 60, torch.float32, 0.3)

    def score(h):
        return token_kl(h * 2, reference, weight, chunk_rows=4)

    compiled = torch.compile(score, backend=backend, fullgraph=True)
    for mine, other in zip(value_and_gradient(compiled, hidden), value_and_gradient(score, hidden), strict=True):
        torch.testing.assert_close(mine, other)
    torch._dynamo.reset()


def test_without_gradients_a_chunk_costs_two_products(monkeypatch):
    hidden, reference, weight = problem(9, dtype=torch.float32)
    products = []
    product = torch.mm
    monkeypatch.setattr(torch, "mm", lambda *a, **o: products.append(o) or product(*a, **o))
    token_kl(hidden.requires_grad_(), reference, weight, chunk_rows=3)
    with torch.no_grad():
        token_kl(hidden, reference, weight, chunk_rows=3)
    assert len(products) == 3 * 3 + 3 * 2


def test_a_gradient_step_brings_the_policy_nearer_to_the_reference():
    hidden, reference, weight = problem(5, 8, 30, torch.float32, 0.3)
    value, _ = value_and_gradient(lambda h: token_kl(h, reference, weight), hidden)
    hidden.requires_grad_()
    (pull,) = torch.autograd.grad(token_kl(hidden, reference, weight).sum(), hidden)
    assert (token_kl(hidden - 0.05 * pull, reference, weight) < value).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(3)}, r"hidden \[N, D\] and weight \[V, D\], found \(3,\) and \(4, 3\)"),
        ({"weight": torch.zeros(4, 9)}, r"found \(2, 3\) and \(4, 9\)"),
        ({"reference_hidden": torch.zeros(1, 3)}, r"hidden \(2, 3\) torch\.float32, found \(1, 3\)"),
        ({"reference_hidden": torch.zeros(2, 3).double()}, r"found \(2, 3\) torch\.float64"),
        ({"weight": torch.zeros(4, 3, dtype=torch.bfloat16)}, "one floating dtype"),
        ({"weight": torch.zeros(4, 3, requires_grad=True)}, "weight requires a gradient"),
        ({"reference_hidden": torch.zeros(2, 3, requires_grad=True)}, "reference_hidden requires a gradient"),
        ({"bias": torch.zeros(3)}, r"bias of shape \(4,\), found \(3,\)"),
        ({"bias": torch.zeros(4, requires_grad=True)}, "bias requires a gradient"),
        ({"softcap": 0.0}, "softcap > 0, found 0"),
        ({"softcap": float("inf")}, "softcap > 0, found inf"),
        ({"chunk_rows": 0}, "chunk_rows >= 1, found 0"),
    ],
)
def test_bad_arguments_are_named_with_what_was_found(change, message):
    arguments = {
        "hidden": torch.zeros(2, 3),
        "reference_hidden": torch.zeros(2, 3),
        "weight": torch.zeros(4, 3),
    } | change
    with pytest.raises(ValueError, match=message):
        token_kl(**arguments)
    if "requires a gradient" in message:
        with torch.no_grad():
            assert (token_kl(**arguments) == 0).all()
