"""Recomputed blocks have the gradients of kept ones, wherever and whenever the backward pass runs."""

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from test_architectures import ARCHITECTURES
from test_step_gradients import ALPHA, EVERYTHING, LOSSES, RANK, TEXTS, make_config, run_step
from transformers import AutoModelForCausalLM

from sempa.batching.packing import pack_sentence_rows, pack_texts
from sempa.losses import all_pairs_infonce_loss
from sempa.model.base import load_base
from sempa.model.forward import depth, row_states
from sempa.model.layers import attention_sum, blocks, checkpoint_blocks
from sempa.model.lora import adapter_disabled, adapter_dropout, add_lora, lora_layers, lora_parameters

DROPOUT = 0.3


@pytest.fixture
def pair(tiny_folder):
    """Two equal models in float64 with a random adapter that drops inputs; the blocks of the second are recomputed."""
    base = load_base(str(tiny_folder), "float32", "cpu")
    randomly_adapt(base.model)
    base.model.double()
    other = replace(base, model=copy.deepcopy(base.model))
    checkpoint_blocks(other.model, dropout=True)
    return base, other


def randomly_adapt(model):
    add_lora(model, RANK, ALPHA, DROPOUT)
    generator = torch.Generator().manual_seed(1)
    for parameter in lora_parameters(model).values():
        parameter.data.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


def set_dropout(bases, dropout):
    for base in bases:
        for layer in lora_layers(base.model).values():
            layer.dropout = dropout


def passes(model, run):
    """How many times the first block runs in `run`."""
    count = []
    handle = blocks(model)[0].input_layernorm.register_forward_hook(lambda *_: count.append(1))
    run()
    handle.remove()
    return len(count)


def assert_equal_gradients(found, expected):
    assert found.keys() == expected.keys()
    for name, wanted in expected.items():
        # Behind the last attention no weight counts for a sum of attention outputs.
        assert (found[name] is None) == (wanted is None)
        if wanted is not None:
            assert (found[name] - wanted).abs().max() <= 1e-12 * wanted.abs().max(), name


@pytest.mark.parametrize("dropout", [0.0, DROPOUT])
@pytest.mark.parametrize("losses", LOSSES.values(), ids=LOSSES.keys())
def test_a_step_has_the_same_gradients(losses, dropout, pair, monkeypatch):
    config = replace(make_config(losses, 130), lora_dropout=dropout)
    set_dropout(pair, dropout)
    (_, _, kept, expected), (_, _, recomputed, found) = (run_step(config, base, monkeypatch) for base in pair)
    assert recomputed == kept
    assert_equal_gradients(found, expected)


def test_losses_side_by_side_have_the_same_gradients(pair, monkeypatch):
    set_dropout(pair, 0.0)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        (*_, expected), (*_, found) = (run_step(make_config(EVERYTHING, 130), base, monkeypatch) for base in pair)
    finally:
        torch.set_num_threads(before)
    assert_equal_gradients(found, expected)


def last_states(model):
    (row,) = pack_sentence_rows(TEXTS, 10_000)
    return row_states(model, row.packed)[row.ends]


def summed_attention(model):
    (row,) = pack_sentence_rows(TEXTS, 10_000)
    return attention_sum(model, row.packed, row.ends)


def states_before_the_last_block(model):
    (row,) = pack_texts(TEXTS, 10_000)
    return row_states(model, row, depth(model) - 1)


READ = [last_states, summed_attention, states_before_the_last_block]


def contrast(read, model):
    first, second, third = read(model)[:3, None].double()
    return all_pairs_infonce_loss(first, second, third, 0.2, torch.arange(3)).mean()


def gradients(model, value):
    parameters = lora_parameters(model)
    found = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    return {name: grad for name, grad in zip(parameters, found, strict=True) if grad is not None}


def directly(run):
    return run()


def with_the_adapter_off(run):
    with adapter_disabled(None):
        return run()


def with_dropout_and_other_random_numbers(run):
    torch.manual_seed(9)
    with adapter_dropout(None):
        return run()


def in_another_thread(run):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


PLACES = [directly, with_the_adapter_off, with_dropout_and_other_random_numbers, in_another_thread]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("read", READ)
@pytest.mark.parametrize("dropout", [False, True])
def test_the_backward_pass_sees_the_switches_of_the_forward_pass(read, place, dropout, pair):
    """It comes after the `with` blocks are left, inside others, or in another thread."""
    results = []
    for base in pair:
        torch.manual_seed(5)
        if dropout:
            with adapter_dropout(base.model):
                value = contrast(read, base.model)
        else:
            value = contrast(read, base.model)
        results.append(place(lambda base=base, value=value: gradients(base.model, value)))
    expected, found = results
    assert len(expected) >= RANK * depth(pair[0].model)
    assert_equal_gradients(found, expected)


@pytest.mark.parametrize("read", READ)
def test_a_block_keeps_its_inputs_alone_and_runs_twice(read, pair):
    kept, counts = [], []
    for base in pair:
        weights = {weight.untyped_storage()._cdata for weight in base.model.parameters()}
        saved = {}

        def keep(tensor, saved=saved, weights=weights):
            if tensor.untyped_storage()._cdata not in weights:
                saved[tensor.untyped_storage()._cdata] = tensor
            return tensor

        def run(base=base, keep=keep):
            with torch.autograd.graph.saved_tensors_hooks(keep, torch.detach):
                value = contrast(read, base.model)
            gradients(base.model, value)

        counts.append(passes(base.model, run))
        kept.append(sum(tensor.untyped_storage().nbytes() for tensor in saved.values()))
    assert counts == [1, 2]
    # What is left is the loss's, on five short texts.
    assert kept[1] < kept[0] / 8
    with torch.no_grad():
        assert passes(pair[1].model, lambda: read(pair[1].model)) == 1


@pytest.mark.parametrize("dropout", [False, True])
def test_the_random_generator_is_set_back_for_dropout_alone(tiny_folder, monkeypatch, dropout):
    """Another thread may draw the contrast's noise from it meanwhile."""
    model, calls, set_state = load_base(str(tiny_folder), "float32", "cpu").model, [], torch.set_rng_state
    randomly_adapt(model)
    checkpoint_blocks(model, dropout)
    value = contrast(last_states, model)
    monkeypatch.setattr(torch, "set_rng_state", lambda state: calls.append(1) or set_state(state))
    gradients(model, value)
    assert bool(calls) == dropout


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_every_architecture_has_the_same_gradients(name):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[name]).eval().requires_grad_(False)
    randomly_adapt(model)
    tokens = torch.tensor([[5, 6, 7, 8, 9, 10, 11, 12]])

    def found():
        torch.manual_seed(1)
        return gradients(model, model(tokens, use_cache=False).logits.float().logsumexp(-1).sum())

    expected = found()
    checkpoint_blocks(model)
    assert_equal_gradients(found(), expected)


def test_training_recomputes_where_the_config_says_so(setting):
    kept, _ = setting("kept", epochs=0.5)
    recomputed, _ = setting("recomputed", epochs=0.5, checkpoint_activations=True)
    expected, found = (lora_parameters(base.model) for base in (kept, recomputed))
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    for base, count in ((kept, 1), (recomputed, 2)):
        assert passes(base.model, lambda base=base: gradients(base.model, last_states(base.model).sum())) == count
