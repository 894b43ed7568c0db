"""The adapter's scale: the largest whose divergence from the base stays within the budget, whatever was trained."""

import json
import math
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
import yaml
from conftest import divergences, make_tokenizer, weights
from hypothesis import given
from hypothesis import strategies as st
from test_architectures import ARCHITECTURES, saved_model

from sempa import SempaError
from sempa.cli import main
from sempa.evaluation.budget import divergence, fit_scale, largest_scale
from sempa.model.adapter_files import load_adapter
from sempa.model.base import load_base
from sempa.model.lora import interpolated, lora_layers
from sempa.training import base_samples as module
from sempa.training.base_samples import base_samples, sample_texts

SLACK = 1 / 1024


@given(st.floats(0.001, 200), st.floats(1, 3), st.floats(0.002, 0.1))
def test_bisection_finds_the_largest_scale_within_the_budget(size, power, budget):
    exact = (budget / size) ** (1 / power)
    try:
        found = largest_scale(lambda scale: size * scale**power, budget)
    except SempaError as error:
        assert exact < SLACK
        assert "lower learning_rate" in str(error)
        return
    assert size * found**power <= budget
    assert found == 1.0 or exact - SLACK <= found <= exact


@pytest.mark.parametrize("exact", [1.0, 0.5, 1023 / 1024, 1 / 1024])
def test_a_budget_may_be_spent_to_the_last_digit(exact):
    assert largest_scale(lambda scale: scale / exact, 1.0) == exact


def test_a_divergence_that_is_no_number_is_beyond_any_budget():
    assert largest_scale(lambda scale: math.nan if scale > 0.5 else scale, 1.0) == 0.5


@pytest.mark.parametrize(
    ("scale", "model"),
    [(0.0, "adapted_base"), (0.5, "adapted_base"), (1.0, "adapted_base"), (1.0, "adapted_granite")],
)
def test_the_divergence_is_that_of_whole_distributions(scale, model, request, few_samples):
    """Against softmax over full logits in float64, one sampled text after the other."""
    base = request.getfixturevalue(model)
    texts = sample_texts(base, held_out=True)
    with interpolated(base.model, scale):
        expected = torch.cat([divergences(base.model, text) for text in texts]).mean().item()
    found = divergence(base, base_samples(base, held_out=True), scale)
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-7)
    assert (found > 1e-3) == (scale > 0)


def test_what_measures_the_divergence_is_not_trained_on(adapted_base, few_samples):
    trained, held_out = sample_texts(adapted_base), sample_texts(adapted_base, held_out=True)
    assert trained
    assert held_out
    # No prompt has texts on both sides.
    starts = [{tuple(text[:6]) for text in texts} for texts in (trained, held_out)]
    assert not starts[0] & starts[1]


def test_samples_of_the_base_are_the_bases_whatever_the_adapter(adapted_base, few_samples, tmp_path, monkeypatch):
    texts = []
    for scale in (0.0, 1.0):
        monkeypatch.setattr(module, "cache_folder", lambda scale=scale: tmp_path / str(scale))
        with interpolated(adapted_base.model, scale):
            texts.append(sample_texts(adapted_base))
    assert texts[0] == texts[1]


def test_samples_of_other_weights_or_another_dtype_are_others(adapted_base, few_samples, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path)
    model = adapted_base.model
    for number, change in enumerate((model.eval, lambda: model.lm_head.weight.data.add_(1e-3), model.bfloat16), 1):
        change()
        sample_texts(adapted_base)
        assert len(list(tmp_path.rglob("*.safetensors"))) == number


def test_the_first_rows_hold_texts_of_all_lengths(adapted_base, monkeypatch):
    """Conversations are longer than running text, and a short run takes the first rows alone."""
    monkeypatch.setattr(module, "sample_texts", lambda *_: [[5] * length for length in range(1, 65)])
    rows = [Counter(sample.packed.segments).values() for sample in base_samples(adapted_base)]
    assert sum(map(sum, rows)) == sum(range(1, 65))
    assert len(rows) >= 16
    first = [length for row in rows[: len(rows) // 2] for length in row]
    assert min(first) <= 16
    assert max(first) >= 48
    assert 0.7 < sum(first) / len(first) / 32.5 < 1.4


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "GPT-2"])
def test_a_learning_rate_that_is_too_high_costs_no_more_than_the_budget(
    name, tmp_path, few_samples, triplets_file, capsys
):
    folder, run = tmp_path / "base", tmp_path / "run"
    saved_model(ARCHITECTURES[name], folder, make_tokenizer())
    settings = {
        **{"model": str(folder), "dtype": "float32", "device": "cpu", "triplets": str(triplets_file)},
        **{"output": str(run), "learning_rate": 0.3, "kl_budget": 0.02, "held_out": 0, "dev_pairs": 20},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    assert main(["train", str(tmp_path / "config.yaml")]) in (0, None)
    budget = json.loads((run / "report.json").read_text())["budget"]
    base = load_base(str(folder), "float32", "cpu")
    load_adapter(base.model, run / "adapter")
    samples = base_samples(base, held_out=True)
    whole = divergence(base, samples, 1 / budget["scale"])
    assert whole > 0.02 >= divergence(base, samples, 1.0) > 0
    assert divergence(base, samples, 1 + SLACK / budget["scale"]) > 0.02
    curve = budget["curve"]
    assert [point["scale"] for point in curve] == sorted({0.0, 0.25, 0.5, 0.75, 1.0, budget["scale"]})
    assert curve[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert curve[-1]["kl"] == pytest.approx(whole, rel=1e-3)
    assert "(saved)" in capsys.readouterr().out


def test_no_budget_saves_all_that_was_trained_and_each_scale_has_its_own_score(adapted_base, few_samples):
    layer = next(iter(lora_layers(adapted_base.model).values()))
    whole = layer.scale
    scale, curve = fit_scale(adapted_base, 0.0, lambda: layer.scale / whole)
    assert scale == 1.0
    assert [point["scale"] for point in curve] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert [point["score"] for point in curve] == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_a_divergence_that_falls_as_the_adapter_grows_is_warned_of(adapted_base, few_samples, monkeypatch):
    def fit(values, budget):
        def kl(base, samples, scale):
            return np.interp(scale, (0.0, 0.25, 0.5, 0.75, 1.0), values)

        monkeypatch.setattr("sempa.evaluation.budget.divergence", kl)
        return fit_scale(adapted_base, budget, lambda: 50.0)[0]

    with pytest.warns(UserWarning, match="does not grow with the adapter's scale"):
        assert 0.5 < fit([0.0, 0.2, 0.1, 0.3, 0.4], 0.25) < 0.75
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # One that stays where it is does not fall.
        assert 0.5 < fit([0.0, 0.1, 0.1, 0.3, 0.4], 0.25) < 0.75
        # What is within the budget as a whole does not depend on it.
        assert fit([0.0, 0.2, 0.1, 0.3, 0.4], 0.5) == 1.0
        assert fit([0.0, 0.2, 0.1, 0.3, 0.4], 0.0) == 1.0


def test_training_is_the_same_with_any_budget(setting):
    without, _ = setting("without")
    within, _ = setting("within", kl_budget=0.001)
    assert all(torch.equal(a, b) for a, b in zip(weights(without).values(), weights(within).values(), strict=True))


def test_samples_of_other_prompts_are_others(adapted_base, few_samples, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "cache_folder", lambda: tmp_path)
    first = sample_texts(adapted_base)
    monkeypatch.setattr(module, "OPENINGS", module.OPENINGS[::-1])
    assert sample_texts(adapted_base) != first
