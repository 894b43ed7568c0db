"""Uncertainty foreseen in one pass: the ridge against least squares, the states against transformers."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import make_llama
from hypothesis import given
from hypothesis import strategies as st

from sempa import SempaError, amortised
from sempa.amortised import amortise, foreseen, load_amortised, prompt_states, ridge, save_amortised
from sempa.cli import main
from sempa.embedder import Embedder
from sempa.lora import add_lora, lora_parameters
from sempa.prompts import encode_texts, render_prompt
from sempa.semantic_uncertainty import uncertainties
from sempa.statistics import spearman

PROMPTS = ["What is a dog?", "Who pets the cat?", "Is the ball red?", "Why?", "A man runs where?", "Say it again."]


@pytest.fixture(scope="module")
def embedder(tiny_folder):
    return Embedder(str(tiny_folder), dtype="float32", device="cpu")


def solved(states, scores, strength):
    """argmin Σ (U − b − w·h)² + λ ‖w‖² by least squares on the system with √λ rows appended, the bias left free."""
    n, width = states.shape
    system = np.block([[states, np.ones((n, 1))], [np.sqrt(strength) * np.eye(width), np.zeros((width, 1))]])
    solution = np.linalg.lstsq(system, np.concatenate([scores, np.zeros(width)]), rcond=None)[0]
    return solution[:-1], solution[-1]


def strengths(states):
    """The λ that are tried: the mean eigenvalue of the centred Gram matrix times 10^-4 … 10^3."""
    return np.square(states - states.mean(0)).sum() / len(states) * np.logspace(-4, 3, 29)


def left_out_errors(states, scores, strength):
    errors = []
    for place in range(len(scores)):
        kept = np.arange(len(scores)) != place
        weights, bias = solved(states[kept], scores[kept], strength)
        errors.append(scores[place] - bias - states[place] @ weights)
    return np.square(errors).sum()


@pytest.mark.parametrize(("n", "width", "seed"), [(5, 3, 0), (12, 4, 1), (7, 20, 2), (30, 6, 3)])
def test_the_map_is_the_ridge_whose_strength_foresees_the_left_out_best(n, width, seed):
    draw = np.random.default_rng(seed)
    states = draw.normal(size=(n, width)) + 5
    scores = states @ draw.normal(size=width) + draw.normal(size=n)
    errors = [left_out_errors(states, scores, strength) for strength in strengths(states)]
    best = strengths(states)[int(np.argmin(errors))]
    weights, bias = ridge(states, scores)
    wanted_weights, wanted_bias = solved(states, scores, best)
    np.testing.assert_allclose(weights, wanted_weights, rtol=1e-6, atol=1e-8)
    assert bias == pytest.approx(wanted_bias, rel=1e-6)


def test_a_linear_law_is_found_and_noise_is_answered_by_the_mean():
    draw = np.random.default_rng(0)
    states, law = draw.normal(size=(200, 8)), draw.normal(size=8)
    weights, bias = ridge(states, 3 + states @ law)
    np.testing.assert_allclose(weights, law, rtol=1e-3)
    assert bias == pytest.approx(3, abs=1e-3)
    noise = draw.normal(size=200)
    weights, bias = ridge(states, noise)
    assert np.linalg.norm(weights) < 0.15 * np.linalg.norm(law)
    assert bias == pytest.approx(noise.mean(), abs=0.05)


def test_what_is_foreseen_for_a_prompt_does_not_know_its_score():
    draw = np.random.default_rng(1)
    states, scores = draw.normal(size=(9, 5)).astype(np.float32), draw.normal(size=9)
    before = foreseen(states, scores)
    for place in range(9):
        changed = scores.copy()
        changed[place] += 100
        assert foreseen(states, changed)[place] == before[place]
        kept = np.arange(9) != place
        weights, bias = ridge(states[kept], scores[kept])
        assert before[place] == pytest.approx(bias + states[place].astype(np.float64) @ weights)
    assert np.ptp(before) > 0


@given(st.lists(st.integers(-5, 5), min_size=4, max_size=8), st.booleans())
def test_states_or_scores_that_are_all_alike_give_the_mean(scores, flat):
    states = np.ones((len(scores), 3)) if flat else np.arange(3.0 * len(scores)).reshape(-1, 3)
    if not flat:
        scores = [2] * len(scores)
    weights, bias = ridge(states, np.array(scores, dtype=np.float64))
    assert np.isfinite(weights).all()
    np.testing.assert_allclose(bias + states @ weights, np.mean(scores), atol=1e-6)


def test_the_state_is_the_one_that_is_about_to_answer(embedder, monkeypatch):
    monkeypatch.setattr(amortised, "_BATCH", 4)
    found = prompt_states(embedder.base, PROMPTS)
    model = make_llama(initializer_range=0.2).double()
    for prompt, state in zip(PROMPTS, found, strict=True):
        (ids,) = encode_texts(embedder.base.tokenizer, [render_prompt(embedder.base.tokenizer, prompt)])
        with torch.no_grad():
            wanted = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1].numpy()
        np.testing.assert_allclose(state, wanted, rtol=1e-4, atol=1e-5)


def test_the_map_is_fitted_to_sampled_uncertainty_and_needs_no_answer_afterwards(embedder, tmp_path, monkeypatch):
    fitted, sampled, left_out = amortise(embedder, PROMPTS, 4, max_new_tokens=5, seed=3)
    wanted = [one.semantic for one in uncertainties(embedder, PROMPTS, 4, max_new_tokens=5, seed=3)]
    assert sampled.tolist() == wanted
    states = prompt_states(embedder.base, PROMPTS)
    np.testing.assert_allclose(left_out, foreseen(states, sampled), rtol=1e-4, atol=1e-6)
    weights, bias = ridge(states, sampled)
    save_amortised(tmp_path / "map.safetensors", fitted)
    monkeypatch.setattr(amortised, "uncertainties", None)
    again = load_amortised(tmp_path / "map.safetensors")
    np.testing.assert_array_equal(again(embedder.base, PROMPTS), fitted(embedder.base, PROMPTS))
    np.testing.assert_allclose(again(embedder.base, PROMPTS), bias + states @ weights, rtol=1e-4, atol=1e-6)
    assert again(embedder.base, []).shape == (0,)


def test_another_model_or_adapter_is_refused(embedder, tiny_folder, tmp_path):
    fitted, _, _ = amortise(embedder, PROMPTS, 3, max_new_tokens=4)
    other = Embedder(str(tiny_folder), dtype="float32", device="cpu").base
    assert np.isfinite(fitted(other, PROMPTS)).all()
    add_lora(other.model, 2, 4.0)
    with torch.no_grad():
        for parameter in lora_parameters(other.model).values():
            parameter += 0.3
    with pytest.raises(SempaError, match=r"fitted to another model or adapter: .* \d+% off, expected at most 5%"):
        fitted(other, PROMPTS)
    narrow = dataclasses.replace(fitted, witness=np.ones(3, dtype=np.float32))
    with pytest.raises(SempaError, match="for states of width 3, the model's have 32"):
        narrow(embedder.base, PROMPTS)


def test_bad_input_is_told(embedder, tmp_path):
    with pytest.raises(SempaError, match="prompts: found 3, expected at least 4"):
        amortise(embedder, PROMPTS[:3])
    with pytest.raises(SempaError, match="n: found 1, expected at least 2"):
        amortise(embedder, PROMPTS, 1)
    with pytest.raises(SempaError, match=r"map: cannot be read"):
        load_amortised(tmp_path / "map")
    amortised.write_tensors(tmp_path / "map", {"weights": torch.ones(3)})
    with pytest.raises(SempaError, match=r"map: holds weights, expected a map that `sempa amortise` wrote"):
        load_amortised(tmp_path / "map")


def test_the_commands_fit_a_map_and_ask_it(tiny_folder, embedder, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    model = ["--model", str(tiny_folder), "--dtype", "float32", "--device", "cpu"]
    draws = ["--answers", "4", "--max-new-tokens", "5", "--seed", "3"]
    path = str(tmp_path / "map.safetensors")
    assert main(["amortise", *model, *draws, str(tmp_path / "prompts.txt"), path]) == 0
    out = capsys.readouterr().out
    fitted, sampled, left_out = amortise(embedder, PROMPTS, 4, max_new_tokens=5, seed=3)
    assert f"6 prompts, uncertainty {sampled.min():.4f} to {sampled.max():.4f}, mean {sampled.mean():.4f}" in out
    assert f"what was sampled {spearman(left_out, sampled):.1f}: {path}" in out
    assert main(["uncertainty", *model, "--one-pass", path, PROMPTS[1]]) == 0
    assert float(capsys.readouterr().out) == pytest.approx(fitted(embedder.base, PROMPTS[1:2])[0], abs=1e-4)
