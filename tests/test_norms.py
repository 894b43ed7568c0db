"""Our RMS norm is the models' own, to the last bit forward and to rounding backward."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, Qwen3Config
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from sempa.kernels import rms_norm
from sempa.model.layers import replace_norms

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}


def replaced(model):
    return sum("forward" in vars(module) for module in model.modules())


def test_gradients_are_exact():
    x = torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *a: rms_norm(*a, 1e-5), (x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-20, 1e-3, 1.0, 1e4])
def test_forward_is_transformers_own_to_the_last_bit_and_backward_no_further_from_the_truth(dtype, size):
    torch.manual_seed(0)
    theirs = LlamaRMSNorm(48, 1e-5).to(dtype)
    theirs.weight.data = torch.randn(48).to(dtype)
    x = (size * torch.randn(40, 48)).to(dtype)
    upstream = torch.randn(40, 48).to(dtype)
    results = []
    for norm, double in ((theirs, False), (lambda x: rms_norm(x, theirs.weight, 1e-5), False), (None, True)):
        given = (x.double() if double else x.clone()).requires_grad_()
        if double:
            out = given * (given.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * theirs.weight.double()
        else:
            out = norm(given)
        out.backward(upstream.to(out.dtype))
        results.append((out.detach(), given.grad))
    (their_out, their_grad), (our_out, our_grad), (_, truth) = results
    assert torch.equal(our_out, their_out)
    ours, peer = ((grad.double() - truth).norm() / truth.norm() for grad in (our_grad, their_grad))
    assert ours <= 1.5 * peer + torch.finfo(dtype).eps


@pytest.mark.parametrize(("config", "norms"), [(LlamaConfig(**SMALL), 5), (Qwen3Config(**SMALL), 9)])
def test_a_model_gives_the_same_logits_after_the_replacement(config, norms):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    names = list(model.state_dict())
    tokens = torch.randint(64, (2, 9))
    before = model(tokens).logits
    replace_norms(model)
    assert replaced(model) == norms
    assert torch.equal(model(tokens).logits, before)
    assert list(model.state_dict()) == names


def test_a_norm_that_multiplies_with_one_plus_its_weight_stays_as_it_is():
    model = AutoModelForCausalLM.from_config(Gemma2Config(**SMALL))
    replace_norms(model)
    assert replaced(model) == 0
