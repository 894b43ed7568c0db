"""Uncertainty of sampled answers: every score against whole forward passes in float64, and its bounds."""

import itertools

import numpy as np
import pytest
import semantic_uncertainty
import torch
from conftest import make_llama
from hypothesis import given
from hypothesis import strategies as st
from semantic_uncertainty import score_answers, uncertainties
from uncertainty import main

from sempa import Embedder, SempaError
from sempa.batching.prompts import encode_texts, render_prompt
from sempa.io.streams import exit_code
from sempa.model.sampling import Sample, sample

PROMPTS = ["What is a dog?", "Who pets the cat?"]


@pytest.fixture(scope="module")
def embedder(tiny_folder):
    return Embedder(str(tiny_folder), dtype="float32", device="cpu")


def made(tokens, logprobs=None, text="x"):
    """An answer as the sampler hands it over."""
    logprobs = torch.tensor([-0.5] * len(tokens) if logprobs is None else logprobs, dtype=torch.float32)
    return Sample(tokens, logprobs, text, True)


def disagreement(vectors):
    """1 − the mean over a double loop of scipy-free cosines, float64."""
    vectors = np.asarray(vectors, dtype=np.float64)
    cosines = [a @ b / np.sqrt((a @ a) * (b @ b)) for a, b in itertools.combinations(vectors, 2)]
    return 1 - sum(cosines) / len(cosines)


def test_all_three_scores_are_those_of_whole_forwards_in_float64(embedder):
    for prompt, found in zip(PROMPTS, uncertainties(embedder, PROMPTS, 5, max_new_tokens=6, seed=3), strict=True):
        base = embedder.base
        drawn = sample(base, PROMPTS, 5, 6, seed=3)[PROMPTS.index(prompt)]
        assert found.answers == tuple(one.text for one in drawn)
        assert len(set(found.answers)) > 1
        (ids,) = encode_texts(base.tokenizer, [render_prompt(base.tokenizer, prompt)])
        totals, means = [], []
        model = make_llama(initializer_range=0.2).double()
        for one in drawn:
            with torch.no_grad():
                logits = model(torch.tensor([ids + one.tokens])).logits
            logprobs = logits[0, len(ids) - 1 : -1].log_softmax(-1)
            told = [logprobs[place, token].item() for place, token in enumerate(one.tokens)]
            totals.append(sum(told))
            means.append(sum(told) / len(told))
        vectors = embedder.encode([one.text or "." for one in drawn])
        assert found.semantic == pytest.approx(disagreement(vectors), abs=1e-6)
        assert found.entropy == pytest.approx(-np.mean(totals), rel=1e-5)
        assert found.length_normalised == pytest.approx(-np.mean(means), rel=1e-5)


@given(
    vectors=st.lists(
        st.tuples(st.integers(-3, 3), st.integers(-3, 3), st.integers(-3, 3)).filter(any), min_size=2, max_size=9
    )
)
def test_disagreement_lies_between_nothing_and_n_over_n_minus_one(vectors):
    n = len(vectors)
    found = score_answers([made([1, 2])] * n, np.array(vectors, dtype=np.float32))
    assert 0 <= found.semantic <= n / (n - 1) + 1e-12
    assert found.semantic == pytest.approx(max(0, disagreement(vectors)), abs=1e-9)


def test_answers_that_are_all_alike_disagree_by_nothing_and_opposite_ones_by_the_bound():
    same = np.array([[0.3, -0.7, 0.1]] * 7, dtype=np.float32)
    found = score_answers([made([4])] * 7, same)
    assert 0 <= found.semantic < 1e-12
    assert (found.length_normalised, found.entropy) == (0.5, 0.5)
    poles = np.array([[1.0, 0], [-1, 0]], dtype=np.float32)
    assert score_answers([made([4])] * 2, poles).semantic == pytest.approx(2)


def test_length_normalisation_weighs_answers_alike_whatever_their_length():
    few = [made([1], [-3.0]), made([1, 2, 3, 4], [-1.0] * 4)]
    found = score_answers(few, np.ones((2, 2)))
    assert found.length_normalised == pytest.approx((3 + 1) / 2)
    assert found.entropy == pytest.approx((3 + 4) / 2)


def test_a_model_that_says_one_thing_is_sure_and_one_that_says_anything_is_not(embedder):
    (cold,) = uncertainties(embedder, PROMPTS[:1], 6, max_new_tokens=6, temperature=1e-3)
    (hot,) = uncertainties(embedder, PROMPTS[:1], 6, max_new_tokens=6, temperature=3.0)
    assert len(set(cold.answers)) == 1
    assert cold.semantic == pytest.approx(0, abs=1e-12)
    assert hot.semantic > cold.semantic + 1e-3
    assert hot.entropy > cold.entropy


def test_answers_without_a_word_are_compared_too(embedder, monkeypatch):
    drawn = [[made([2], text=""), made([2], text=""), made([5, 2], text="A dog.")]]
    monkeypatch.setattr(semantic_uncertainty, "sample", lambda *_, **__: drawn)
    (found,) = uncertainties(embedder, PROMPTS[:1], 3)
    vectors = embedder.encode([".", ".", "A dog."])
    assert found.semantic == pytest.approx(disagreement(vectors), abs=1e-6)
    assert found.semantic > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 1}, "n: found 1, expected at least 2 answers to compare"),
        ({"n": 0}, "n: found 0, expected at least 2 answers to compare"),
        ({"temperature": 0}, "temperature: found 0, expected more than 0"),
        ({"temperature": float("nan")}, "temperature: found nan, expected more than 0"),
        ({"max_new_tokens": 0}, "max_new_tokens: found 0, expected at least 1"),
    ],
)
def test_draws_that_cannot_be_compared_are_refused(embedder, change, message):
    with pytest.raises(SempaError, match=message):
        uncertainties(embedder, PROMPTS, **change)


def test_the_command_prints_the_answers_and_the_three_scores(tiny_folder, embedder, capsys):
    options = ["--model", str(tiny_folder), "--dtype", "float32", "--answers", "3", "--max-new-tokens", "4"]
    main(["ask", *options, "--seed", "2", PROMPTS[0]])
    out = capsys.readouterr().out
    (found,) = uncertainties(embedder, PROMPTS[:1], 3, max_new_tokens=4, seed=2)
    answers, table = out.split("\n\nUncertainty\n")
    assert answers.split("\n") == [" ".join(answer.split()) for answer in found.answers]
    printed = [float(line.split()[-1]) for line in table.splitlines()[1:]]
    expected = [found.semantic, found.length_normalised, found.entropy]
    assert printed == pytest.approx(expected, abs=1e-4)


def test_bad_input_ends_with_one_sentence_and_exit_code_2(tiny_folder, capsys):
    model = ["--model", str(tiny_folder), "--dtype", "float32"]
    for options, message in (
        (["--answers", "1"], "n: found 1, expected at least 2 answers to compare\n"),
        (["--seed", "-1"], "argument --seed: found -1, expected a whole number from 0 to 2,147,483,647 (see "),
    ):
        assert exit_code("program", lambda options=options: main(["ask", *model, *options, PROMPTS[0]])) == 2
        (line,) = capsys.readouterr().err.splitlines(keepends=True)
        assert line.startswith(f"program: {message}")
