"""Rows that run at the same time have the results of one after another, and threads are afterwards as before."""

import threading
import time

import numpy as np
import pytest
import torch
from conftest import weights
from test_terms import TERMS, trained, whole_step
from transformers import LlamaConfig, LlamaForCausalLM

from sempa.embedding import embedder
from sempa.embedding.embedder import embed
from sempa.model.base import load_base
from sempa.model.lanes import count_lanes, in_lanes
from sempa.training import loop as training
from sempa.training.metrics import read_metrics
from sempa.training.reference import Reference
from sempa.training.terms import add_terms, one_by_one


@pytest.fixture
def threads():
    """Eight threads for an operation, whatever the machine has."""
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield 8
    torch.set_num_threads(before)


@pytest.mark.parametrize(("lanes", "share"), [(1, 8), (2, 4), (3, 2), (8, 1), (20, 1)])
def test_results_come_in_order_from_lanes_that_share_the_threads(threads, lanes, share):
    seen, running, most = [], set(), []

    def run(item):
        seen.append((torch.get_num_threads(), torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
        running.add(item)
        most.append(len(running))
        time.sleep(0.01 * (item % 3))
        running.remove(item)
        return -item

    with torch.no_grad():
        assert list(in_lanes(run, range(25), lanes)) == [-item for item in range(25)]
    assert set(seen) == {(share, False, False)}
    assert max(most) <= lanes
    assert lanes == 1 or max(most) > 1
    with torch.inference_mode():
        assert list(in_lanes(lambda _: torch.is_inference_mode_enabled(), range(3), lanes)) == [True] * 3
    assert list(in_lanes(lambda _: torch.is_grad_enabled(), range(3), lanes)) == [True] * 3
    # Here, and in threads that begin now, operations have all threads again.
    found = [torch.get_num_threads()]
    other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert found == [8, 8]


@pytest.mark.parametrize("lanes", [1, 2])
def test_an_error_in_a_lane_ends_the_rest(threads, lanes):
    begun = []

    def run(item):
        begun.append(item)
        if item == 3:
            raise ValueError("the third")
        time.sleep(0.01)
        return item

    with pytest.raises(ValueError, match="the third"):
        list(in_lanes(run, range(400), lanes))
    assert len(begun) < 300
    assert torch.get_num_threads() == 8


def test_lanes_are_for_bfloat16_on_a_processor_and_for_models_that_keep_nothing_of_a_pass(tiny_folder, threads):
    base = load_base(str(tiny_folder), "bfloat16", "cpu", emulate=True)
    assert [count_lanes(base.model, passes) for passes in (0, 1, 3, 100)] == [1, 1, 3, 8]
    with torch.autocast("cpu"):
        assert count_lanes(base.model, 3) == 1
    assert count_lanes(base.model.float(), 3) == 1
    sizes = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    rotation = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    growing = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, rope_parameters=rotation)).bfloat16()
    assert count_lanes(growing, 3) == 1


@pytest.mark.parametrize("readout", ["prompteol", "mean", "contrastive-prompting", "token-prepending"])
def test_embeddings_are_those_of_one_lane(tiny_folder, monkeypatch, readout):
    """Steering and reading hook into the model, in each lane for its own pass."""
    base = load_base(str(tiny_folder), "float32", "cpu")
    sentences = [f"{' '.join(['A man pets a dog'] * (1 + i % 5))} {i}" for i in range(40)]
    expected = embed(base, sentences, 4, readout=readout)
    asked = []
    monkeypatch.setattr(embedder, "count_lanes", lambda model, passes: asked.append(passes) or 4)
    for _ in range(3):
        np.testing.assert_allclose(embed(base, sentences, 4, readout=readout), expected, rtol=1e-4, atol=1e-6)
    assert asked == [10] * 3


@pytest.mark.parametrize("lanes", [2, 3])
def test_a_step_in_lanes_has_the_metrics_and_gradients_of_one_pass(tiny_folder, triplets, few_words, lanes):
    config, base, terms = whole_step(tiny_folder, triplets, "float32")
    parameters = trained(base)
    expected = add_terms(config, base.model, terms)
    gradients = [parameter.grad.clone() for parameter in parameters]
    before = None
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = None
        found = add_terms(config, base.model, terms, lanes)
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-6)
        # Whichever lane is first, the gradients are added in the same order.
        again = [parameter.grad for parameter in parameters]
        assert before is None or all(torch.equal(*pair) for pair in zip(before, again, strict=True))
        before = again


def test_in_lanes_the_policy_starts_as_its_base_to_the_last_bit(tiny_folder, triplets, few_words, threads):
    config, base, terms = whole_step(tiny_folder, triplets, "bfloat16")
    assert not one_by_one(config, base.model)
    blocks, called = base.model.model.layers, []
    blocks[0].register_forward_hook(lambda *_: called.append(1))
    for passes in (5, 3):
        found = add_terms(config, base.model, terms, lanes=3)
        assert base.model.training
        assert [found[name] for name in ("rewards/margins", "rewards/chosen", "neutral_kl")] == [0.0] * 3
        # The base reads its two rows once, and is known afterwards.
        assert len(called) == passes
        called.clear()


@pytest.mark.parametrize("settings", [{}, {"objective": "online-ipo", "beta": 0.5}], ids=["all terms", "online"])
def test_a_training_in_lanes_is_that_of_one_lane(setting, tmp_path, few_words, monkeypatch, settings):
    settings = TERMS | {"lora_dropout": 0.0, "row_tokens": 150, "batch_size": 8} | settings
    one, _ = setting("one", **settings)
    lanes, real = [], training.add_terms

    def add(config, model, terms, count):
        lanes.append((count, sum(len(term.rows) for term in terms)))
        return real(config, model, terms, count)

    monkeypatch.setattr(training, "add_terms", add)
    monkeypatch.setattr(training, "count_lanes", lambda model, passes: min(passes, 2))
    two, _ = setting("two", **settings)
    assert {count for count, _ in lanes} == {2}
    for name, parameter in weights(one).items():
        torch.testing.assert_close(weights(two)[name], parameter, rtol=1e-2, atol=1e-5)
    first, second = (read_metrics(tmp_path / run / "metrics.jsonl")[0] for run in ("one", "two"))
    for name in ("loss", "contrast_loss", "neutral_kl", "grad_norm"):
        assert second[name] == pytest.approx(first[name], rel=1e-3, abs=1e-6)
    again, _ = setting("again", **settings)
    assert all(torch.equal(a, b) for a, b in zip(weights(two).values(), weights(again).values(), strict=True))


def test_dropout_and_sharing_keep_rows_one_by_one(setting, few_words, monkeypatch):
    lanes, real = set(), training.add_terms
    monkeypatch.setattr(training, "count_lanes", lambda model, passes: 2)
    monkeypatch.setattr(training, "add_terms", lambda *a: lanes.add(a[-1]) or real(*a))
    setting(**TERMS | {"lora_dropout": 0.1})
    assert lanes == {1}


def test_a_reference_computed_on_other_threads_is_another(tiny_folder, threads):
    base = load_base(str(tiny_folder), "bfloat16", "cpu", emulate=True)
    paths = [Reference(base, [], 0, lanes=lanes).path for lanes in (1, 2, 3, 8)]
    assert len(set(paths)) == 4
