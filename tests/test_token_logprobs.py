"""The gatherer against float64 arithmetic, plain PyTorch and TRL, in values and gradients, on extreme inputs too."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sempa.kernels import token_logprobs


def plain(hidden, weight, targets, bias=None, softcap=None):
    logits = hidden @ weight.T
    if bias is not None:
        logits = logits + bias
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    return logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]


def problem(rows=7, width=5, vocabulary=11, dtype=torch.float64, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = (torch.randn(rows, width, generator=generator, dtype=torch.float64) * scale).to(dtype)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64).to(dtype)
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    return hidden, weight, targets


def gradients(function, *inputs):
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    output = function(*leaves)
    upstream = torch.linspace(-1, 2, output.numel(), dtype=output.dtype)
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream)]


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("chunk_rows", [1, 3, 100])
def test_values_and_all_gradients_equal_the_plain_formula_in_float64(softcap, with_bias, chunk_rows):
    hidden, weight, targets = problem()
    bias = torch.linspace(-1, 1, 11, dtype=torch.float64)
    inputs = (hidden, weight, bias) if with_bias else (hidden, weight)

    def ours(h, w, b=None):
        return token_logprobs(h, w, targets, bias=b, softcap=softcap, chunk_rows=chunk_rows)

    def theirs(h, w, b=None):
        return plain(h, w, targets, b, softcap)

    for mine, other in zip(gradients(ours, *inputs), gradients(theirs, *inputs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_numerical_differentiation_agrees_with_the_backward_pass(softcap):
    hidden, weight, targets = problem()
    bias = torch.zeros(11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda h, w, b: token_logprobs(h, w, targets, bias=b, softcap=softcap, chunk_rows=2),
        (hidden.requires_grad_(), weight.requires_grad_(), bias),
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
    hidden, weight, targets = problem(rows, width, vocabulary, torch.float32, scale, seed)

    def ours(h):
        return token_logprobs(h, weight, targets, chunk_rows=chunk_rows)

    value, gradient = gradients(ours, hidden)
    exact = plain(hidden.double(), weight.double(), targets)
    logit_size = float((hidden.abs().double() @ weight.abs().double().T).max()) if rows else 0.0
    assert value.dtype == torch.float32
    # A logit's own float32 rounding is all that may separate them.
    torch.testing.assert_close(value.double(), exact, rtol=1e-5, atol=4e-7 * logit_size + 1e-6)
    if scale <= 1:
        exact_gradient = gradients(lambda h: plain(h, weight.double(), targets), hidden.double())[1]
        torch.testing.assert_close(gradient.double(), exact_gradient, rtol=1e-4, atol=1e-5)


def test_logits_of_ten_thousand_and_targets_at_both_ends_stay_finite_and_exact():
    hidden = torch.tensor([[1.0], [-1.0], [1.0]]) * 1e4
    weight = torch.tensor([[1.0], [0.0], [-1.0]])
    targets = torch.tensor([0, 0, 2])
    value, gradient = gradients(lambda h: token_logprobs(h, weight, targets), hidden)
    torch.testing.assert_close(value, torch.tensor([0.0, -2e4, -2e4]))
    # ∂/∂h = u_y − Σ p u: 0 where the target has all the mass, else u_y minus the winner's embedding.
    upstream = torch.linspace(-1, 2, 3)
    torch.testing.assert_close(gradient[:, 0], torch.tensor([0.0, 2.0, -2.0]) * upstream)


def test_bfloat16_is_no_worse_than_plain_pytorch_in_bfloat16():
    hidden, weight, targets = problem(64, 48, 500, torch.bfloat16, 1.0, 3)
    exact = gradients(lambda h: plain(h, weight.double(), targets), hidden.double())
    ours = gradients(lambda h: token_logprobs(h, weight, targets, chunk_rows=17), hidden)
    theirs = gradients(lambda h: plain(h, weight, targets), hidden)
    for mine, other, truth in zip(ours, theirs, exact, strict=True):
        own_error = (mine.double() - truth).abs().max()
        assert own_error <= (other.double() - truth).abs().max()
        assert own_error < 0.02 * truth.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_trl_selective_log_softmax_gives_the_same_log_probabilities(dtype):
    utils = pytest.importorskip("trl.trainer.utils")
    hidden, weight, targets = problem(33, 24, 300, dtype, 1.0, 5)
    theirs = utils.selective_log_softmax((hidden @ weight.T).float(), targets)
    torch.testing.assert_close(token_logprobs(hidden, weight, targets), theirs, rtol=1e-5, atol=1e-5)


def test_a_frozen_head_gets_no_gradient_and_keeps_nothing_of_the_logits():
    hidden, weight, targets = problem(16, 6, 4096, torch.float32)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.numel()) or t, lambda t: t):
        token_logprobs(hidden.requires_grad_(), weight, targets).sum().backward()
    assert weight.grad is None
    assert max(saved) <= hidden.numel()


def test_non_contiguous_inputs_and_inputs_without_gradient_are_fine():
    hidden, weight, targets = problem(6, 5, 11)
    exact = plain(hidden, weight, targets)
    hidden_view, weight_view = hidden.T.contiguous().T, weight.repeat_interleave(2, 0)[::2]
    result = token_logprobs(hidden_view, weight_view, targets)
    assert not result.requires_grad
    torch.testing.assert_close(result, exact)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(3)}, r"hidden \[N, D\]"),
        ({"weight": torch.zeros(4, 9)}, r"found \(2, 3\) and \(4, 9\)"),
        ({"weight": torch.zeros(4, 3, dtype=torch.bfloat16)}, "one floating dtype"),
        ({"targets": torch.tensor([0, 4])}, r"targets in \[0, 4\), found 0 to 4"),
        ({"targets": torch.tensor([-1, 0])}, "found -1 to 0"),
        ({"targets": torch.tensor([0])}, r"shape \(2,\)"),
        ({"targets": torch.tensor([0, 1], dtype=torch.int32)}, "int64"),
        ({"bias": torch.zeros(3)}, r"bias of shape \(4,\)"),
        ({"softcap": 0.0}, "softcap > 0"),
        ({"chunk_rows": 0}, "chunk_rows >= 1"),
    ],
)
def test_bad_arguments_are_named_with_what_was_found(change, message):
    arguments = {"hidden": torch.zeros(2, 3), "weight": torch.zeros(4, 3), "targets": torch.tensor([0, 1])} | change
    with pytest.raises(ValueError, match=message):
        token_logprobs(**arguments)
