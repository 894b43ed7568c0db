"""An answer token by token against the same answer whole, and its text piece by piece against the whole text."""

import pytest
import torch
from conftest import make_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sempa import SempaError
from sempa.model.sampling import encode_prompts, end_tokens, sample
from sempa.model.streaming import IncrementalDecoder, stream_tokens

BYTES = make_tokenizer()


def stream(base, prompt, count, temperature=1.0, top_p=1.0, seed=0):
    return list(stream_tokens(base, prompt, count, temperature, top_p, seed, end_tokens(base)))


@pytest.mark.parametrize("temperature, top_p", [(0.0, 1.0), (1.0, 1.0), (0.7, 0.8)])
def test_the_tokens_are_those_of_the_whole_answer(adapted_base, temperature, top_p):
    (prompt,) = encode_prompts(adapted_base, ["Who pets a dog?"], 40)
    for seed in range(4):
        ((whole,),) = sample(adapted_base, [prompt], 1, 40, temperature, top_p, seed)
        assert stream(adapted_base, prompt, 40, temperature, top_p, seed) == whole.tokens


def test_a_stop_token_is_the_last_and_the_generator_needs_no_more_passes(adapted_base, monkeypatch):
    prompt = [5, 9, 200]
    free = list(stream_tokens(adapted_base, prompt, 12, 0.0, 1.0, 0, ()))
    assert len(free) == 12
    passes = []
    forward = adapted_base.model.base_model.forward
    monkeypatch.setattr(
        adapted_base.model.base_model, "forward", lambda *given, **named: passes.append(1) or forward(*given, **named)
    )
    stop = free[6]
    end = free.index(stop)
    assert list(stream_tokens(adapted_base, prompt, 12, 0.0, 1.0, 0, {stop})) == free[: end + 1]
    assert len(passes) == end + 1
    # Nothing runs before a token is asked for, and one pass for each that is.
    passes.clear()
    tokens = stream_tokens(adapted_base, prompt, 12, 0.0, 1.0, 0, ())
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
        stream_tokens(adapted_base, [1], **settings)


def pieces(tokenizer, ids):
    decoder = IncrementalDecoder(tokenizer)
    return [*(decoder.push(token) for token in ids), decoder.flush()]


@given(st.text())
def test_pieces_join_to_the_text_and_none_holds_half_a_character(text):
    ids = BYTES(text)["input_ids"]
    found = pieces(BYTES, ids)
    assert "".join(found) == BYTES.decode(ids, skip_special_tokens=True) == text
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in found)


@given(st.lists(st.integers(0, 319), max_size=40))
def test_any_tokens_join_to_what_the_tokenizer_makes_of_them(ids):
    ids = [token for token in ids if token < len(BYTES)]
    assert "".join(pieces(BYTES, ids)) == BYTES.decode(ids, skip_special_tokens=True)


def test_blanks_between_words_of_a_tokenizer_that_strips_the_first(tokenizer):
    words = {"▁A": 0, "▁man": 1, "▁": 2, "ner": 3}
    inner = Tokenizer(models.BPE(words, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    wordy = PreTrainedTokenizerFast(tokenizer_object=inner)
    assert pieces(wordy, [0, 1, 3, 1]) == ["A", " man", "ner", " man", ""]
