"""An answer token by token against the same answer whole, and its text piece by piece against the whole text."""

from dataclasses import replace

import pytest
import torch
from conftest import make_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

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


def test_bytes_that_are_no_character_become_a_replacement_character(adapted_base, monkeypatch):
    """Byte tokens that break off within a character, behind a line feed, as Llama 2's vocabulary has them."""
    inner = Tokenizer(models.BPE({"a": 0, "<0x0A>": 1, "<0xF0>": 2, "<end>": 3}, [], byte_fallback=True))
    inner.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")
    base = replace(adapted_base, tokenizer=tokenizer)
    ids = iter([0, 1, 2, 0, 0, 3])
    monkeypatch.setattr("sempa.model.sampling.choose", lambda *_: torch.tensor([next(ids)]))
    text = "".join(piece for _, piece in stream_answer(base, [0], 20, 0.0, 1.0, 0, [3]))
    assert text == "a\n\N{REPLACEMENT CHARACTER}aa"


def test_an_end_of_turn_that_is_no_special_token_is_no_part_of_the_text(adapted_base, tokenizer, monkeypatch):
    plain = make_tokenizer(special=("<|im_start|>", "<|endoftext|>"))
    plain.add_tokens([AddedToken("<|im_end|>", special=False)])
    base = replace(adapted_base, tokenizer=plain)
    end = plain.convert_tokens_to_ids("<|im_end|>")
    assert end in end_tokens(base)
    for read in (
        lambda: "".join(piece for _, piece in stream_answer(base, [5], 20, 0.0, 1.0, 0, end_tokens(base))),
        lambda: sample(base, [[5]], max_new_tokens=20)[0][0].text,
    ):
        ids = iter([*plain("A dog.")["input_ids"], end])
        monkeypatch.setattr("sempa.model.sampling.choose", lambda *_, ids=ids: torch.tensor([next(ids)]))
        assert read() == "A dog."
