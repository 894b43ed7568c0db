"""LoRA against PEFT in both directions, its gradients in float64, and the reference as the adapter switched off."""

import json
import math

import pytest
import torch
from conftest import adapt, make_llama
from safetensors.torch import load_file, save_file
from test_architectures import ARCHITECTURES
from transformers import AutoModelForCausalLM, FalconConfig, FalconForCausalLM
from transformers.pytorch_utils import Conv1D

from sempa import SempaError
from sempa.io.files import read_tensors, write_tensors
from sempa.model.adapter_files import adapter_readout, load_adapter, read_adapter, save_adapter
from sempa.model.lora import (
    LoraLinear,
    adapter_disabled,
    adapter_dropout,
    adapter_fingerprint,
    add_lora,
    interpolated,
    lora_layers,
    lora_parameters,
    remove_adapter,
)

# Separate and fused projections, tied and untied heads, transposed layers.
CONFIGS = {name: ARCHITECTURES[name] for name in ("Llama", "Gemma2", "Phi-3", "GPT-2")}
TOKENS = torch.arange(12)[None] * 7 % 320


def build(name):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(CONFIGS[name]).eval()


def randomise(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in lora_parameters(model).values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize("name", CONFIGS)
def test_peft_loads_a_saved_adapter_and_gives_the_same_logits(name, tmp_path):
    peft = pytest.importorskip("peft")
    model = build(name)
    add_lora(model, 4, 16)
    randomise(model)
    save_adapter(model, tmp_path, "base-model")
    theirs = peft.PeftModel.from_pretrained(build(name), tmp_path).eval()
    assert not torch.allclose(logits(model), logits(build(name)), atol=1e-3)
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_saved_by_peft_loads_and_gives_the_same_logits(name, tmp_path):
    peft = pytest.importorskip("peft")
    theirs = peft.get_peft_model(build(name), peft.LoraConfig(r=3, lora_alpha=6, target_modules="all-linear"))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter_name, parameter in theirs.named_parameters():
            if "lora_" in parameter_name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    theirs.eval().save_pretrained(tmp_path)
    model = build(name)
    load_adapter(model, tmp_path)
    torch.testing.assert_close(logits(model), logits(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_linear_layer_of_the_blocks_is_adapted_and_nothing_else(name):
    model = build(name)
    head = model.get_output_embeddings()
    expected = {
        n for n, module in model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    }
    add_lora(model, 2, 4)
    adapted = {n for n, module in model.named_modules() if isinstance(module, LoraLinear)}
    assert adapted == expected
    assert len(adapted) >= 8
    assert not isinstance(model.get_output_embeddings(), LoraLinear)


def test_switching_the_adapter_off_gives_the_base_model_bit_for_bit():
    base = logits(build("Llama"))
    model = build("Llama")
    add_lora(model, 4, 16)
    assert torch.equal(logits(model), base)
    randomise(model)
    assert not torch.equal(logits(model), base)
    with pytest.raises(KeyError), adapter_disabled(model):
        assert torch.equal(logits(model), base)
        raise KeyError
    assert not torch.equal(logits(model), base)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("transposed", [False, True])
def test_numerical_differentiation_agrees_with_the_fused_product(dropout, transposed):
    torch.manual_seed(0)
    linear = Conv1D(4, 6) if transposed else torch.nn.Linear(6, 4)
    layer = LoraLinear(linear.double().requires_grad_(False), 2, 3.0, dropout)
    x = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    low = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)
    high = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)

    def forward(x, low, high):
        torch.manual_seed(3)
        del layer.lora_A, layer.lora_B
        layer.lora_A, layer.lora_B = low, high
        with adapter_dropout(layer):
            return layer(x)

    assert torch.autograd.gradcheck(forward, (x, low, high))


def test_the_weights_of_the_adapter_are_float32_on_a_bfloat16_model_and_so_are_its_gradients():
    model = build("Llama").bfloat16().requires_grad_(False)
    add_lora(model, 4, 16)
    model(TOKENS).logits.float().square().mean().backward()
    for name, parameter in lora_parameters(model).items():
        assert parameter.dtype == torch.float32
        assert parameter.grad.dtype == torch.float32
        # B starts at zero, so at the start only B has a gradient.
        assert bool(parameter.grad.any()) == name.endswith("lora_B.weight")


def test_dropout_keeps_the_mean_and_only_runs_where_it_is_switched_on():
    linear = torch.nn.Linear(64, 8, bias=False).requires_grad_(False)
    layer = LoraLinear(linear, 2, 2.0, 0.5)
    torch.nn.init.normal_(layer.lora_A)
    torch.nn.init.normal_(layer.lora_B)
    x = torch.randn(1, 64)
    torch.manual_seed(0)
    with adapter_dropout(layer):
        dropped = layer(x.expand(20000, 64))
    assert not torch.equal(dropped[0], dropped[1])
    exact = layer(x)[0]
    torch.testing.assert_close(dropped.mean(0), exact, rtol=0.05, atol=0.5)
    assert torch.equal(layer.train()(x), layer.eval()(x))


def test_equal_seeds_give_equal_adapters_and_other_seeds_others():
    models = [build("Llama") for _ in range(3)]
    for model, seed in zip(models, (5, 5, 6), strict=True):
        add_lora(model, 4, 16, seed=seed)
    first, same, other = ([p for n, p in lora_parameters(m).items() if "lora_A" in n] for m in models)
    assert all(torch.equal(a, b) for a, b in zip(first, same, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_the_first_weights_have_pefts_spread(tiny_llama):
    add_lora(tiny_llama, 16, 4)
    for name, layer in lora_layers(tiny_llama).items():
        bound = layer.lora_A.shape[1] ** -0.5
        assert 0.9 * bound < layer.lora_A.abs().max() <= bound, name


def test_an_interpolated_adapter_lies_between_base_and_policy_and_is_saved_so(tmp_path):
    model = build("Llama")
    add_lora(model, 4, 16)
    randomise(model)
    layer = model.model.layers[0].mlp.up_proj
    x = torch.randn(3, 32)
    base, policy = layer.base(x), layer(x)
    with interpolated(model, 0.25):
        torch.testing.assert_close(layer(x), 0.75 * base + 0.25 * policy)
        between = logits(model)
        save_adapter(model, tmp_path, "base-model")
    torch.testing.assert_close(layer(x), policy)
    assert read_adapter(tmp_path)[0]["lora_alpha"] == 4.0
    loaded = build("Llama")
    load_adapter(loaded, tmp_path)
    assert torch.equal(logits(loaded), between)


@pytest.fixture
def saved(tmp_path):
    model = build("Llama")
    add_lora(model, 4, 16)
    save_adapter(model, tmp_path, "base-model")
    return tmp_path


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("peft_type", "IA3", "peft_type is not LORA"),
        ("use_dora", True, "use_dora is True, but only plain LoRA can be loaded"),
        ("use_rslora", True, "use_rslora is True, but only plain LoRA can be loaded"),
        ("rank_pattern", {"q_proj": 2}, "rank_pattern is {'q_proj': 2}"),
        ("modules_to_save", ["lm_head"], "modules_to_save is "),
        ("bias", "lora_only", "bias is 'lora_only'"),
        # PEFT rewrites the base with these, each time it loads the adapter.
        ("init_lora_weights", "pissa_niter_4", "init_lora_weights is 'pissa_niter_4'"),
        ("init_lora_weights", "olora", "init_lora_weights is 'olora'"),
        ("alora_invocation_tokens", [7, 8], "alora_invocation_tokens is "),
        ("use_something_new", {"a": 1}, "use_something_new is "),
        ("r", 0, "r is 0, but the tensors have rank 4"),
        ("lora_alpha", 0, "expected lora_alpha above 0"),
        ("lora_alpha", math.inf, "expected lora_alpha above 0"),
        ("r", 8, "r is 8, but the tensors have rank 4"),
        ("r", 4.0, "r is 4.0, but the tensors have rank 4"),
    ],
)
def test_an_adapter_config_that_cannot_be_honoured_is_named(saved, key, value, message):
    path = saved / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(SempaError, match=message):
        load_adapter(build("Llama"), saved)


def test_an_adapter_of_another_kind_is_named_though_it_has_no_rank(saved):
    path = saved / "adapter_config.json"
    path.write_text(json.dumps({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3}))
    with pytest.raises(SempaError, match="peft_type is not LORA"):
        load_adapter(build("Llama"), saved)


def test_an_adapter_config_that_is_nested_too_deeply_is_one_sentence(saved):
    for name in ("adapter_config.json", "readout.json"):
        (saved / name).write_text("[" * 100_000)
    with pytest.raises(SempaError, match="nested too deeply"):
        read_adapter(saved)
    with pytest.raises(SempaError, match=r"readout\.json: expected a JSON object"):
        adapter_readout(saved)


def test_an_adapter_of_eight_bits_is_read(saved):
    path = saved / "adapter_model.safetensors"
    eight = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(path).items()}
    save_file(eight, path)
    assert {tensor.dtype for tensor in read_adapter(saved)[1].values()} == {torch.float8_e4m3fn}


@pytest.mark.parametrize("init", [True, "gaussian", "orthogonal", "eva"])
def test_a_config_as_peft_writes_it_is_plain_lora(saved, init):
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    path = saved / "adapter_config.json"
    written = peft.LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj"], init_lora_weights=init).to_dict()
    written |= {"peft_type": "LORA", "target_modules": ["q_proj"]}
    path.write_text(json.dumps(written))
    assert read_adapter(saved)[0]["r"] == 4


def test_an_adapter_with_dropout_gives_the_same_twice(tmp_path):
    trained = build("Llama")
    add_lora(trained, 4, 16, dropout=0.5)
    randomise(trained)
    save_adapter(trained, tmp_path, "base-model")
    assert read_adapter(tmp_path)[0]["lora_dropout"] == 0.5
    model = build("Llama")
    load_adapter(model, tmp_path)
    assert torch.equal(logits(model), logits(model))


def test_an_adapter_with_numbers_that_are_not_finite_is_refused(saved):
    tensors = read_tensors(saved / "adapter_model.safetensors")
    first = min(tensors)
    for number in (math.nan, math.inf):
        tensors[first][0, 0] = number
        write_tensors(saved / "adapter_model.safetensors", tensors)
        with pytest.raises(SempaError, match=f"{first} holds numbers that are not finite"):
            read_adapter(saved)


def test_an_adapter_has_no_config_before_its_weights(tmp_path, monkeypatch):
    def full(*_):
        raise SempaError("No space left on device")

    monkeypatch.setattr("sempa.model.adapter_files.write_tensors", full)
    model = build("Llama")
    add_lora(model, 4, 16)
    with pytest.raises(SempaError, match="No space left"):
        save_adapter(model, tmp_path, "base-model")
    assert not (tmp_path / "adapter_config.json").exists()


def test_an_adapter_of_other_layers_or_shapes_is_refused(saved):
    tensors = read_tensors(saved / "adapter_model.safetensors")
    last = sorted(tensors)[-1]
    for damaged in ({n: t for n, t in tensors.items() if n != last}, {**tensors, last: tensors[last][:1]}):
        write_tensors(saved / "adapter_model.safetensors", damaged)
        with pytest.raises(SempaError, match=r"adapter and model differ in their layers|has shape"):
            load_adapter(build("Llama"), saved)


def test_missing_damaged_and_foreign_adapters_are_named(saved, tmp_path):
    with pytest.raises(SempaError, match=r"nowhere.*cannot be read"):
        read_adapter(tmp_path / "nowhere")
    with pytest.raises(SempaError, match=r"blocks have no linear layer 'model.layers"):
        load_adapter(build("GPT-2"), saved)
    (saved / "adapter_model.safetensors").write_bytes(b"not tensors")
    with pytest.raises(SempaError, match="cannot be read"):
        read_adapter(saved)


def test_an_adapter_of_the_head_is_refused(tmp_path):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    get_peft_model(build("Llama"), config).save_pretrained(tmp_path, save_embedding_layers=False)
    with pytest.raises(SempaError, match="the base model's blocks have no linear layer 'lm_head'"):
        load_adapter(build("Llama"), tmp_path)


def test_a_second_adapter_is_refused(tmp_path):
    model = make_llama()
    add_lora(model, 2, 4)
    save_adapter(model, tmp_path, "source")
    layers = lora_layers(model).keys()
    for add in (lambda: add_lora(model, 2, 4), lambda: load_adapter(model, tmp_path)):
        with pytest.raises(SempaError, match="holds an adapter already; `remove_adapter` takes it off"):
            add()
    assert lora_layers(model).keys() == layers
    remove_adapter(model)
    load_adapter(model, tmp_path)


def test_the_fingerprint_of_an_adapter_tells_its_scale(tiny_llama):
    adapt(tiny_llama, 1.0)
    whole = adapter_fingerprint(tiny_llama)
    with pytest.raises(KeyError), interpolated(tiny_llama, 0.5):
        assert adapter_fingerprint(tiny_llama) != whole
        raise KeyError
    assert adapter_fingerprint(tiny_llama) == whole


def test_dropout_runs_where_it_is_switched_on_in_evaluation_mode_too():
    layer = LoraLinear(torch.nn.Linear(64, 8), 2, 2.0, 0.5).eval()
    for weight in (layer.lora_A, layer.lora_B):
        torch.nn.init.normal_(weight)
    with adapter_dropout(layer):
        once, again = layer(torch.ones(1, 64)), layer(torch.ones(1, 64))
    assert not torch.equal(once, again)


def test_blocks_without_plain_linear_layers_are_refused():
    """Falcon multiplies by hand; without this an optimizer of nothing would say that it is empty."""
    model = FalconForCausalLM(FalconConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4))
    with pytest.raises(SempaError, match="FalconForCausalLM: found no plain linear layers"):
        add_lora(model, 4, 8.0)


def test_an_adapter_of_rank_zero_is_refused(tiny_llama, tmp_path):
    add_lora(tiny_llama, 2, 4.0)
    save_adapter(tiny_llama, tmp_path, "base")
    remove_adapter(tiny_llama)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(config | {"r": 0}))
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    empty = {name: t[:0] if "lora_A" in name else t[:, :0] for name, t in tensors.items()}
    save_file({name: t.contiguous() for name, t in empty.items()}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(SempaError, match="r is 0, but the tensors have rank 0"):
        load_adapter(tiny_llama, tmp_path)
