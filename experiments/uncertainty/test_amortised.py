"""Uncertainty predicted in one pass: the ridge against least squares, the states against transformers."""

import dataclasses
import json

import amortised
import numpy as np
import pytest
import torch
from amortised import amortise, leave_one_out, load_map, prompt_states, ridge, save_map
from conftest import make_llama
from hypothesis import given
from hypothesis import strategies as st
from semantic_uncertainty import Uncertainty, uncertainties
from uncertainty import main

from sempa import Embedder, SempaError
from sempa.batching.prompts import encode_texts, render_prompt
from sempa.evaluation.statistics import spearman
from sempa.io.streams import exit_code
from sempa.model.base import load_base
from sempa.model.lora import add_lora, interpolated, lora_parameters

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
def test_the_map_is_the_ridge_with_the_least_leave_one_out_error(n, width, seed):
    draw = np.random.default_rng(seed)
    states = draw.normal(size=(n, width)) + 5
    scores = states @ draw.normal(size=width) + draw.normal(size=n)
    errors = [left_out_errors(states, scores, strength) for strength in strengths(states)]
    best = strengths(states)[int(np.argmin(errors))]
    weights, bias = ridge(states, scores)
    wanted_weights, wanted_bias = solved(states, scores, best)
    np.testing.assert_allclose(weights, wanted_weights, rtol=1e-6, atol=1e-8)
    assert bias == pytest.approx(wanted_bias, rel=1e-6)


def test_a_linear_law_is_found_and_noise_gives_the_mean():
    draw = np.random.default_rng(0)
    states, law = draw.normal(size=(200, 8)), draw.normal(size=8)
    weights, bias = ridge(states, 3 + states @ law)
    np.testing.assert_allclose(weights, law, rtol=1e-3)
    assert bias == pytest.approx(3, abs=1e-3)
    noise = draw.normal(size=200)
    weights, bias = ridge(states, noise)
    assert np.linalg.norm(weights) < 0.15 * np.linalg.norm(law)
    assert bias == pytest.approx(noise.mean(), abs=0.05)


def test_a_prompts_own_score_does_not_enter_its_prediction():
    draw = np.random.default_rng(1)
    states, scores = draw.normal(size=(9, 5)).astype(np.float32), draw.normal(size=9)
    before = leave_one_out(states, scores)
    for place in range(9):
        changed = scores.copy()
        changed[place] += 100
        # But for the level of all, which is everybody's.
        assert leave_one_out(states, changed)[place] - changed.mean() == pytest.approx(before[place] - scores.mean())
        kept = np.arange(9) != place
        weights, bias = ridge(states[kept], scores[kept])
        slope = bias + states[place].astype(np.float64) @ weights - scores[kept].mean()
        assert before[place] == pytest.approx(scores.mean() + slope)
    assert np.ptp(before) > 0


def test_uninformative_states_do_not_rank_the_prompts_backwards():
    draw = np.random.default_rng(2)
    trials = [(draw.normal(size=(20, 40)), draw.normal(size=20)) for _ in range(60)]
    # With each fold's own mean this comes to −60.
    assert -30 < np.mean([spearman(leave_one_out(*trial), trial[1]) for trial in trials]) < 10


@given(st.lists(st.integers(-5, 5), min_size=4, max_size=8), st.booleans())
def test_equal_states_or_equal_scores_give_the_mean(scores, flat):
    states = np.ones((len(scores), 3)) if flat else np.arange(3.0 * len(scores)).reshape(-1, 3)
    if not flat:
        scores = [2] * len(scores)
    weights, bias = ridge(states, np.array(scores, dtype=np.float64))
    assert np.isfinite(weights).all()
    np.testing.assert_allclose(bias + states @ weights, np.mean(scores), atol=1e-6)


def test_the_state_is_the_one_that_predicts_the_answers_first_token(embedder):
    found = prompt_states(embedder.base, PROMPTS)
    model = make_llama(initializer_range=0.2).double()
    for prompt, state in zip(PROMPTS, found, strict=True):
        (ids,) = encode_texts(embedder.base.tokenizer, [render_prompt(embedder.base.tokenizer, prompt)])
        with torch.no_grad():
            wanted = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1].numpy()
        np.testing.assert_allclose(state, wanted, rtol=1e-4, atol=1e-5)


def test_the_map_is_fitted_to_sampled_uncertainty_and_needs_no_answer_afterwards(embedder, tmp_path, monkeypatch):
    draws = {"max_new_tokens": 5, "temperature": 2, "seed": 3}
    fitted, sampled, left_out = amortise(embedder, PROMPTS, 4, **draws)
    wanted = [one.semantic for one in uncertainties(embedder, PROMPTS, 4, **draws)]
    assert sampled.tolist() == wanted
    states = prompt_states(embedder.base, PROMPTS)
    np.testing.assert_allclose(left_out, leave_one_out(states, sampled), rtol=1e-4, atol=1e-6)
    weights, bias = ridge(states, sampled)
    save_map(tmp_path / "map.json", fitted)
    monkeypatch.setattr(amortised, "uncertainties", None)
    again = load_map(tmp_path / "map.json")
    about = (again.readout, again.layer, again.answers, again.max_new_tokens, again.temperature)
    assert about == ("prompteol", -1, 4, 5, 2.0)
    np.testing.assert_array_equal(again.predict(embedder.base, PROMPTS), fitted.predict(embedder.base, PROMPTS))
    np.testing.assert_allclose(again.predict(embedder.base, PROMPTS), bias + states @ weights, rtol=1e-4, atol=1e-6)


def test_a_map_knows_the_readout_and_layer_of_its_answers(tiny_folder):
    embedder = Embedder(str(tiny_folder), readout="mean", layer=1, dtype="float32", device="cpu")
    fitted, _, _ = amortise(embedder, PROMPTS, 3, max_new_tokens=4)
    assert (fitted.readout, fitted.layer) == ("mean", 1)


def test_another_model_precision_or_adapter_is_refused(embedder, tiny_folder):
    fitted, _, _ = amortise(embedder, PROMPTS, 3, max_new_tokens=4)
    other = Embedder(str(tiny_folder), dtype="float32", device="cpu").base
    np.testing.assert_array_equal(fitted.predict(other, PROMPTS), fitted.predict(embedder.base, PROMPTS))
    refused = pytest.raises(SempaError, match="fitted to another model, precision or adapter")
    add_lora(other.model, 2, 4.0)
    with refused:
        fitted.predict(other, PROMPTS)
    adapted = dataclasses.replace(fitted, model=amortised._identity(other))
    assert np.isfinite(adapted.predict(other, PROMPTS)).all()
    with interpolated(other.model, 0.9), refused:
        adapted.predict(other, PROMPTS)
    with torch.no_grad():
        list(lora_parameters(other.model).values())[-1][0, 0] += 1e-3
    with refused:
        adapted.predict(other, PROMPTS)
    with refused:
        fitted.predict(load_base(str(tiny_folder), "bfloat16", "cpu"), PROMPTS)


def test_prompts_that_cannot_be_fitted_are_refused(embedder):
    with pytest.raises(SempaError, match="prompts: found 3, expected at least 4"):
        amortise(embedder, PROMPTS[:3])
    with pytest.raises(SempaError, match="n: found 1, expected at least 2"):
        amortise(embedder, PROMPTS, 1)
    with pytest.raises(SempaError, match=r"all 6 prompts have the same uncertainty, 0\.0000, so there is nothing to"):
        amortise(embedder, PROMPTS, 3, max_new_tokens=4, temperature=1e-4)
    with pytest.raises(SempaError, match=r"prompt 1: found [\d,]+ tokens, expected at least 1, and with"):
        amortise(embedder, ["Why?", "x " * 5000, *PROMPTS])


def test_scores_that_differ_by_rounding_are_the_same(embedder, monkeypatch):
    """Whatever the instruction set makes of equal answers, it moves a score by a few float32 roundings at most."""
    noise = np.random.default_rng(0).uniform(-1, 1, len(PROMPTS))

    def scored(spread):
        return lambda *_, **__: [Uncertainty((), 0.25 + spread * x, 0.0, 0.0) for x in noise]

    for spread in (0, np.finfo(np.float64).eps, 4 * np.finfo(np.float32).eps):
        monkeypatch.setattr(amortised, "uncertainties", scored(spread))
        with pytest.raises(SempaError, match=r"all 6 prompts have the same uncertainty, 0\.2500"):
            amortise(embedder, PROMPTS)
    monkeypatch.setattr(amortised, "uncertainties", scored(1e-5))
    assert np.isfinite(amortise(embedder, PROMPTS)[0].bias)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": [1.0, float("nan")]},
        {"weights": [[1.0]]},
        {"weights": 1.0},
        {"weights": "many"},
        {"weights": [1.0, None]},
        {"bias": float("inf")},
        {"bias": [1.0, 2.0]},
        {"bias": None},
        {"layer": "last"},
        {"model": 3},
        {"extra": 1},
    ],
)
def test_a_file_that_holds_no_map_is_refused_in_a_sentence(embedder, tmp_path, change):
    fitted, _, _ = amortise(embedder, PROMPTS, 3, max_new_tokens=4)
    path = tmp_path / "map.json"
    save_map(path, fitted)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(SempaError, match=r"map\.json: is not a fitted map: \w") as told:
        load_map(path)
    assert "\n" not in str(told.value)


def test_a_file_of_another_kind_is_no_map(tmp_path, tiny_folder):
    with pytest.raises(SempaError, match=r"none\.json: cannot be read: No such file"):
        load_map(tmp_path / "none.json")
    for path in (tiny_folder / "model.safetensors", tiny_folder / "config.json"):
        with pytest.raises(SempaError, match="is not a fitted map"):
            load_map(path)


def test_the_commands_fit_a_map_and_ask_it(tiny_folder, embedder, tmp_path, capsys):
    lines = [json.dumps({"question": prompt}) for prompt in PROMPTS]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines) + "\n")
    model = ["--model", str(tiny_folder), "--dtype", "float32", "--device", "cpu"]
    sampling = ["--answers", "4", "--max-new-tokens", "5", "--temperature", "2", "--seed", "3"]
    prompts, path = [str(tmp_path / "prompts.jsonl"), "--field", "question"], str(tmp_path / "map.json")
    main(["fit", *model, *sampling, *prompts, path])
    out = capsys.readouterr().out
    fitted, sampled, left_out = amortise(embedder, PROMPTS, 4, max_new_tokens=5, temperature=2, seed=3)
    assert f"6 prompts, uncertainty {sampled.min():.4f} to {sampled.max():.4f}, mean {sampled.mean():.4f}" in out
    assert f"rho x 100 = {spearman(left_out, sampled):.1f}\nmap: {path}\n" in out
    main(["ask", *model, "--map", path, PROMPTS[1]])
    assert float(capsys.readouterr().out) == pytest.approx(fitted.predict(embedder.base, PROMPTS[1:2])[0], abs=1e-4)
    before = (tmp_path / "prompts.jsonl").read_bytes()
    for arguments, message in (
        (["fit", *model, *prompts, str(tmp_path)], "is not a regular file, so it cannot be the output"),
        (["fit", *model, *prompts, prompts[0]], "is the input itself, which would be lost"),
        (["ask", *model, "--map", path, "--readout", "mean", "Hi"], "readout: found mean, expected prompteol, as the"),
    ):
        assert exit_code("uncertainty.py", lambda arguments=arguments: main(arguments)) == 2
        assert message in capsys.readouterr().err
    assert (tmp_path / "prompts.jsonl").read_bytes() == before
