"""An answer token by token against the same answer whole, and its text piece by piece against the whole text."""

import pytest
import torch

from sempa import SempaError
from sempa.model.sampling import encode_prompts, end_tokens, sample, stream_answer


def stream(base, prompt, count, temperature=1.0, top_p=1.0, seed=0, stop_ids=()):
    return [token for token, _ in stream_answer(base, prompt, count, temperature, top_p, seed, stop_ids)]


@pytest.mark.parametrize("temperature, top_p", [(0.0, 1.0), (1.0, 1.0), (0.7, 0.8)])
def test_the_tokens_are_those_of_the_whole_answer(adapted_base, temperature, top_p):
    (prompt,) = encode_prompts(adapted_base, ["Who pets a dog?"], 40)
    for seed in range(4):
        ((whole,),) = sample(adapted_base, [prompt], 1, 40, temperature, top_p, seed)
        found = stream(adapted_base, prompt, 40, temperature, top_p, seed, end_tokens(adapted_base))
        assert found == whole.tokens


def test_a_stop_token_is_the_last_and_the_generator_needs_no_more_passes(adapted_base, monkeypatch):
    prompt = [5, 9, 200]
    free = stream(adapted_base, prompt, 12, 0.0)
    assert len(free) == 12
    passes = []
    forward = adapted_base.model.base_model.forward
    monkeypatch.setattr(
        adapted_base.model.base_model, "forward", lambda *given, **named: passes.append(1) or forward(*given, **named)
    )
    stop = free[6]
    end = free.index(stop)
    assert stream(adapted_base, prompt, 12, 0.0, stop_ids={stop}) == free[: end + 1]
    assert len(passes) == end + 1
    # Nothing runs before a token is asked for, and one pass for each that is.
    passes.clear()
    tokens = stream_answer(adapted_base, prompt, 12, 0.0, 1.0, 0, ())
    assert not passes
    next(tokens)
    next(tokens)
    assert len(passes) == 2
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"max_new_tokens": 0}, "max_new_tokens: found 0"),
        ({"temperature": -1.0}, "temperature: found -1.0"),
        ({"top_p": 0.0}, "top_p: found 0.0"),
    ],
)
def test_numbers_out_of_range_are_refused_before_the_first_token(adapted_base, changes, message):
    settings = {"max_new_tokens": 4, "temperature": 1.0, "top_p": 1.0, "seed": 0, "stop_ids": ()} | changes
    with pytest.raises(SempaError, match=message):
        stream_answer(adapted_base, [1], **settings)


def test_the_texts_join_to_the_whole_and_none_holds_half_a_character(adapted_base, tokenizer, monkeypatch):
    text = "Who pets a dog? 🎵 Ünsere\n\nKatze, 猫."
    ids = iter(tokenizer(text)["input_ids"] + end_tokens(adapted_base)[:1])
    monkeypatch.setattr("sempa.model.sampling.choose", lambda *_: torch.tensor([next(ids)]))
    pieces = [piece for _, piece in stream_answer(adapted_base, [5], 200, 0.0, 1.0, 0, end_tokens(adapted_base))]
    assert "".join(pieces) == text and pieces[-1] == ""
    assert len(set(pieces)) > 10 and not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
