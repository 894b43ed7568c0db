"""Samples of the mixture against whole forward passes of policy and reference, and at both ends against `sample`."""

import pytest
import torch
from mixture import sample_mixture

from sempa import SempaError
from sempa.model.lora import adapter_disabled
from sempa.model.sampling import choose, end_tokens, sample

PROMPTS = [[5, 9, 200, 31, 8, 77, 12, 14, 90], [17], [300, 7, 41], [5, 9, 200, 31, 8]]


def log_mixture(base, ids, fraction):
    """log π of the next token after `ids`, float64, by passes over the sequence alone."""
    with torch.no_grad():
        policy = base.model(torch.tensor([ids])).logits[0, -1].double().log_softmax(0)
        with adapter_disabled(base.model):
            reference = base.model(torch.tensor([ids])).logits[0, -1].double().log_softmax(0)
    weights = policy.exp() ** (1 - fraction) * reference.exp() ** fraction
    return (weights / weights.sum()).log()


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0])
def test_each_token_is_drawn_from_the_mixture_of_whole_forward_passes(adapted_base, fraction):
    answers = sample_mixture(adapted_base, PROMPTS, 3, 5, seed=4, reference_fraction=fraction)
    draws = torch.rand(4, 3, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    assert len({tuple(answer.tokens) for few in answers for answer in few}) > 8
    for prompt, few, chances in zip(PROMPTS, answers, draws, strict=True):
        assert len(few) == 3
        for answer, row in zip(few, chances, strict=True):
            ids = list(prompt)
            for token, logprob, chance in zip(answer.tokens, answer.logprobs.tolist(), row):
                expected = log_mixture(adapted_base, ids, fraction)
                assert token == choose(expected[None], chance[None], 1.0, 1.0).item()
                assert logprob == pytest.approx(expected[token].item(), abs=1e-4)
                ids.append(token)


def test_the_ends_of_the_mixture_are_policy_and_reference(adapted_base):
    policy, reference = (sample_mixture(adapted_base, PROMPTS, 2, 12, 1, fraction) for fraction in (0.0, 1.0))
    expected = sample(adapted_base, PROMPTS, 2, 12, seed=1)
    with adapter_disabled(adapted_base.model):
        frozen = sample(adapted_base, PROMPTS, 2, 12, seed=1)
    for found, wanted in ((policy, expected), (reference, frozen)):
        for few, others in zip(found, wanted, strict=True):
            assert [(one.tokens, one.text, one.ended) for one in few] == [(o.tokens, o.text, o.ended) for o in others]
    assert policy != reference


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_a_weight_that_is_none_is_refused(adapted_base, fraction):
    with pytest.raises(SempaError, match=r"reference_fraction: found .*, expected 0 \(policy\) to 1 \(reference\)"):
        sample_mixture(adapted_base, PROMPTS, reference_fraction=fraction)


def test_an_answer_may_end_with_its_last_token(adapted_base, monkeypatch):
    end = end_tokens(adapted_base)[0]
    drawn = iter([7, end])
    monkeypatch.setattr("mixture.choose", lambda *_, **__: torch.tensor([next(drawn)]))
    ((answer,),) = sample_mixture(adapted_base, PROMPTS[:1], 1, 2)
    assert (answer.tokens, answer.ended) == ([7, end], True)


def test_an_end_that_is_an_ordinary_token_is_not_part_of_the_text(adapted_base, monkeypatch):
    ends = [*end_tokens(adapted_base), *range(100, 220)]
    monkeypatch.setattr(adapted_base.model.generation_config, "eos_token_id", ends)
    found = sample_mixture(adapted_base, PROMPTS, 2, 12, seed=1, reference_fraction=0.0)
    expected = sample(adapted_base, PROMPTS, 2, 12, seed=1)
    assert [[answer.text for answer in few] for few in found] == [[answer.text for answer in few] for few in expected]
