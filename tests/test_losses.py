"""The objectives against closed forms; test_logprobs.py compares the whole path with TRL."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sempa.losses import dpo_loss, nll_per_token

logps = st.lists(st.floats(-500, 0), min_size=4, max_size=4)


def tensors(values):
    return [torch.tensor([v], dtype=torch.float64) for v in values]


@given(values=logps, beta=st.floats(0.01, 2))
def test_the_loss_is_minus_log_sigmoid_of_the_reward_margin(values, beta):
    pc, pr, rc, rr = values
    margin = beta * ((pc - rc) - (pr - rr))
    expected = math.log1p(math.exp(-abs(margin))) + max(-margin, 0)
    losses, chosen, rejected = dpo_loss(*tensors(values), beta)
    assert losses.item() == pytest.approx(expected, rel=1e-12, abs=1e-300)
    assert chosen.item() == pytest.approx(beta * (pc - rc))
    assert rejected.item() == pytest.approx(beta * (pr - rr))


@given(values=logps, shift=st.floats(-50, 50), beta=st.floats(0.01, 2))
def test_a_term_of_the_prompt_alone_cancels(values, shift, beta):
    pc, pr, rc, rr = values
    moved = dpo_loss(*tensors((pc + shift, pr + shift, rc, rr)), beta)[0]
    torch.testing.assert_close(moved, dpo_loss(*tensors(values), beta)[0], rtol=1e-6, atol=1e-9)


@given(values=logps, beta=st.floats(0.01, 2))
def test_the_gradient_of_the_reward_margin_is_minus_sigma_of_minus_margin(values, beta):
    policy = [t.requires_grad_() for t in tensors(values[:2])]
    reference = tensors(values[2:])
    dpo_loss(*policy, *reference, beta)[0].sum().backward()
    margin = beta * ((values[0] - values[2]) - (values[1] - values[3]))
    weight = -beta / (1 + math.exp(margin)) if margin < 700 else 0.0
    assert policy[0].grad.item() == pytest.approx(weight, rel=1e-9, abs=1e-300)
    assert policy[1].grad.item() == pytest.approx(-weight, rel=1e-9, abs=1e-300)


def test_rewards_carry_no_gradient():
    policy = torch.zeros(3, requires_grad=True)
    _, chosen, rejected = dpo_loss(policy, policy, torch.zeros(3), torch.zeros(3), 0.1)
    assert not chosen.requires_grad
    assert not rejected.requires_grad


def test_at_the_start_of_training_the_loss_is_log_two_whatever_the_reference():
    reference = torch.tensor([-3.0, -400.0]), torch.tensor([-90.0, -1.0])
    losses, *_ = dpo_loss(*reference, *reference, 0.1)
    torch.testing.assert_close(losses, torch.full((2,), math.log(2)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_margins_neither_overflow_nor_lose_their_gradient(dtype):
    policy = torch.tensor([-1e4, 1e4], dtype=dtype, requires_grad=True)
    zero = torch.zeros(2, dtype=dtype)
    losses, *_ = dpo_loss(policy, zero, zero, zero, 1.0)
    losses.sum().backward()
    torch.testing.assert_close(losses.detach(), torch.tensor([1e4, 0.0], dtype=dtype))
    torch.testing.assert_close(policy.grad, torch.tensor([-1.0, 0.0], dtype=dtype))


def test_shapes_that_would_broadcast_and_a_beta_of_zero_are_refused():
    row, one = torch.zeros(3), torch.zeros(1)
    with pytest.raises(ValueError, match=r"one shape \[batch\], found \[\(1,\), \(3,\)\]"):
        dpo_loss(row, row, one, one, 0.1)
    with pytest.raises(ValueError, match="beta > 0, found 0"):
        dpo_loss(row, row, row, row, 0)


def test_the_anchor_is_the_mean_surprise_per_token():
    torch.testing.assert_close(
        nll_per_token(torch.tensor([-6.0, -5.0]), torch.tensor([3, 10])), torch.tensor([2.0, 0.5])
    )


@pytest.mark.parametrize("counts", [(3, 1), (2,), ()])
def test_an_anchor_of_other_counts_than_log_probabilities_is_refused(counts):
    with pytest.raises(ValueError, match=r"of one shape \[batch\], found \(3,\) and"):
        nll_per_token(torch.zeros(3), torch.ones(counts))


def test_the_anchors_gradient_is_minus_one_over_the_number_of_tokens():
    logprobs = torch.tensor([-6.0, -5e4, 0.0], dtype=torch.float64, requires_grad=True)
    tokens = torch.tensor([3, 10, 1])
    assert torch.autograd.gradcheck(lambda x: nll_per_token(x, tokens), logprobs)
    (gradient,) = torch.autograd.grad(nll_per_token(logprobs, tokens).sum(), logprobs)
    torch.testing.assert_close(gradient, -1 / tokens.double())
