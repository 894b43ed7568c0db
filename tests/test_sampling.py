"""Sampling with a KV cache against full forwards token by token, nuclei against transformers', draws against numpy."""

import numpy as np
import pytest
import torch
from conftest import make_llama, with_adapter
from hypothesis import given
from hypothesis import strategies as st
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, TopPLogitsWarper
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sempa import SempaError
from sempa.batching.prompts import encode_texts, render_prompt
from sempa.model import sampling
from sempa.model.base import BaseModel, load_base
from sempa.model.lora import adapter_disabled
from sempa.model.sampling import choose, encode_prompts, end_tokens, sample, stream_answer

PROMPTS = [[5, 9, 200, 31, 8, 77, 12, 14, 90], [17], [300, 7, 41], [5, 9, 200, 31, 8]]


def make_gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=320, n_positions=64, n_embd=32, n_layer=2, n_head=4))


def make_gemma2():
    """Soft-capped logits and scores, and every other layer sees four tokens only."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
        final_logit_softcapping=3.0,
        attn_implementation="eager",
    )
    return Gemma2ForCausalLM(config)


@pytest.fixture(params=[make_llama, make_gpt2, make_gemma2])
def base(request, tokenizer):
    model = request.param().eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            # Far from uniform, so that a wrong position or a wrong neighbour would be seen.
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    return BaseModel(with_adapter(model, 0.3), tokenizer, "tiny")


def next_logprobs(base, ids):
    """log π of the next token after `ids`, float64, by a whole forward of the sequence alone."""
    with torch.no_grad():
        return base.model(torch.tensor([ids])).logits[0, -1].double().log_softmax(0)


def test_greedy_answers_and_their_logprobs_equal_full_forwards_token_by_token(base):
    answers = sample(base, PROMPTS, 2, 6, temperature=0, batch_size=5)
    for prompt, pair in zip(PROMPTS, answers, strict=True):
        assert pair[0].tokens == pair[1].tokens
        ids = list(prompt)
        for token, logprob in zip(pair[0].tokens, pair[0].logprobs.tolist(), strict=True):
            expected = next_logprobs(base, ids)
            assert token == expected.argmax().item()
            assert logprob == pytest.approx(expected[token].item(), abs=1e-4)
            ids.append(token)


def test_nothing_is_attended_to_over_an_empty_row_of_the_mask(tiny_folder, monkeypatch):
    """Padding stands on the left, where a causal mask alone shows it nothing; some kernels may then return NaN."""
    loaded, masks = load_base(str(tiny_folder), "float32", "cpu"), []

    def attend(*arguments, **options):
        masks.append(arguments[4])
        return sdpa_attention_forward(*arguments, **options)

    monkeypatch.setattr("sempa.model.forward.sdpa_attention_forward", attend)
    together = sample(loaded, PROMPTS, 1, 4, temperature=0, batch_size=len(PROMPTS))
    # Row 1, of one token, has its padding before it.
    assert not masks[0][1, 0, -1, 0]
    assert all(mask.any(-1).all() for mask in masks)
    for prompt, (answer,) in zip(PROMPTS, together, strict=True):
        ((alone,),) = sample(loaded, [prompt], 1, 4, temperature=0)
        assert answer.tokens == alone.tokens


def test_sampled_tokens_carry_the_untempered_logprobs_of_full_forwards(base):
    answers = sample(base, PROMPTS, 3, 5, temperature=1.7, top_p=0.9, seed=4)
    assert len({tuple(one.tokens) for few in answers for one in few}) > 8
    for prompt, few in zip(PROMPTS, answers, strict=True):
        for one in few:
            ids = list(prompt)
            for token, logprob in zip(one.tokens, one.logprobs.tolist(), strict=True):
                assert logprob == pytest.approx(next_logprobs(base, ids)[token].item(), abs=1e-4)
                ids.append(token)


def test_without_the_adapter_the_base_answers(base):
    answers = sample(base, PROMPTS, 1, 8, temperature=0)
    with adapter_disabled(base.model):
        off = sample(base, PROMPTS, 1, 8, temperature=0)
        for prompt, (one,) in zip(PROMPTS, off, strict=True):
            assert one.tokens[0] == next_logprobs(base, prompt).argmax().item()
    assert [one.tokens for (one,) in off] != [one.tokens for (one,) in answers]


def test_a_seed_fixes_the_answers_whatever_the_batch(base):
    def drawn(seed, batch_size):
        return [[one.tokens for one in few] for few in sample(base, PROMPTS, 5, 6, seed=seed, batch_size=batch_size)]

    whole = drawn(7, 64)
    assert whole == drawn(7, 3) == drawn(7, 1)
    assert whole != drawn(8, 64)
    assert all(len({tuple(tokens) for tokens in few}) > 1 for few in whole)


def test_an_end_of_turn_stops_its_row_and_no_other(base, monkeypatch):
    monkeypatch.setattr("sempa.model.sampling.end_tokens", lambda base: [])
    free = sample(base, PROMPTS, 6, 8, seed=2)
    assert not any(one.ended for few in free for one in few)
    # The token drawn most often becomes one of the two that end a turn.
    drawn = torch.tensor([token for few in free for one in few for token in one.tokens[:-1]])
    end = drawn.mode().values.item()
    monkeypatch.setattr("sempa.model.sampling.end_tokens", lambda base: [end, 319])
    stopped = sample(base, PROMPTS, 6, 8, seed=2)
    ended = 0
    for before, after in zip(free, stopped, strict=True):
        for one, other in zip(before, after, strict=True):
            cut = [i for i, token in enumerate(one.tokens) if token in (end, 319)]
            length = cut[0] + 1 if cut else 8
            assert other.tokens == one.tokens[:length]
            assert other.ended == bool(cut)
            torch.testing.assert_close(other.logprobs, one.logprobs[:length], atol=1e-5, rtol=0)
            ended += bool(cut)
    assert 0 < ended < 24


def test_whatever_model_or_tokenizer_calls_an_end_is_one(base):
    """A chat tokenizer's turn may end with another token than the model's own config says."""
    base.model.generation_config.eos_token_id = [7, 9]
    base.model.config.eos_token_id = 11
    assert end_tokens(base) == sorted({7, 9, 11, base.tokenizer.eos_token_id})
    base.model.generation_config.eos_token_id = base.model.config.eos_token_id = None
    assert end_tokens(base) == [base.tokenizer.eos_token_id]


def test_a_text_goes_through_the_chat_template(base):
    (ids,) = encode_texts(base.tokenizer, [render_prompt(base.tokenizer, "Hello.")])
    (text,), (tokens,) = sample(base, ["Hello.", ids], 1, 6, temperature=0)
    assert text.tokens == tokens.tokens
    assert text.text == base.tokenizer.decode(text.tokens, skip_special_tokens=True).strip()


def test_the_text_of_an_answer_has_no_special_token_no_end_and_no_blanks_around_it(base, monkeypatch):
    ids = base.tokenizer(" A<|im_start|> dog .", add_special_tokens=False)["input_ids"]
    drawn = iter(ids)
    monkeypatch.setattr("sempa.model.sampling.choose", lambda *_: torch.tensor([next(drawn)]))
    monkeypatch.setattr("sempa.model.sampling.end_tokens", lambda base: ids[-1:])
    ((answer,),) = sample(base, PROMPTS[:1], 1, 20)
    assert (answer.tokens, answer.text, answer.ended) == (ids, "A dog", True)
    drawn = iter(ids)
    streamed = list(stream_answer(base, PROMPTS[0], 20, 1.0, 1.0, 0, ids[-1:]))
    assert ([token for token, _ in streamed], "".join(text for _, text in streamed)) == (ids, " A dog ")


def test_sampling_runs_without_dropout_and_leaves_gradients_alone(base):
    base.model.train()
    for module in base.model.modules():
        if hasattr(module, "lora_A"):
            module.dropout = 0.5
    first, second = (sample(base, PROMPTS, 1, 4, temperature=0) for _ in range(2))
    assert [one.tokens for (one,) in first] == [one.tokens for (one,) in second]
    assert not first[0][0].logprobs.requires_grad
    # A loss may keep them for its backward pass.
    (first[0][0].logprobs * torch.ones(4, requires_grad=True)).sum().backward()


@given(st.integers(0, 10_000), st.sampled_from([0.25, 1.0, 3.0]), st.sampled_from([1.0, 0.95, 0.5, 1e-6]))
def test_choose_follows_the_tempered_nucleus(seed, temperature, top_p):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(1, 12, generator=generator)
    tempered = logits.double() / temperature
    expected = (TopPLogitsWarper(top_p)(None, tempered) if top_p < 1 else tempered).softmax(1)[0]
    draws = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    chosen = choose(logits.expand(2000, -1), draws, temperature, top_p)
    share = torch.bincount(chosen, minlength=12).double() / 2000
    assert (share - expected).abs().max() <= 1.01 / 2000
    assert not share[expected == 0].any()


def test_choose_inverts_the_distribution_function_as_numpy_does():
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(200, 50, generator=generator)
    draws = torch.rand(200, generator=generator, dtype=torch.float64)
    for row, chosen in enumerate(choose(logits, draws, 1.0, 1.0).tolist()):
        p = np.exp(logits[row].double().numpy())
        assert chosen == np.searchsorted(np.cumsum(p / p.sum()), draws[row].item(), side="right")


def test_choose_never_leaves_the_vocabulary_nor_takes_the_impossible():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(4, -1)
    draws = torch.tensor([0.0, 0.4999, 0.5, np.nextafter(1, 0)], dtype=torch.float64)
    assert choose(logits, draws, 1.0, 1.0).tolist() == [1, 1, 3, 3]
    # No temperature is too low to divide by.
    assert choose(torch.tensor([[-3.0, -1.0, -2.0]]), draws[:1], 1e-320, 1.0).tolist() == [1]


def test_the_longest_prompts_are_answered_first(tiny_llama, tokenizer, monkeypatch):
    lengths, grow = [], sampling._grow

    def watched(base, prompts, *rest):
        lengths.append([len(prompt) for prompt in prompts])
        return grow(base, prompts, *rest)

    monkeypatch.setattr(sampling, "_grow", watched)
    sample(BaseModel(tiny_llama, tokenizer, "tiny"), [[5], [5, 6, 7], [5, 6], [5, 6, 7]], 1, 2, batch_size=2)
    assert lengths == [[3, 3], [2, 1]]


def test_a_nucleus_that_is_reached_exactly_takes_no_further_token():
    draws = torch.tensor([0.9], dtype=torch.float64)
    assert choose(torch.zeros(1, 2), draws, 1.0, 0.5).tolist() == [0]


def test_a_prompt_may_fill_the_context_up_to_the_answer(tiny_llama, tokenizer):
    base = BaseModel(tiny_llama, tokenizer, "tiny")
    assert encode_prompts(base, [[1] * 2040], 8) == [[1] * 2040]
    with pytest.raises(SempaError, match="prompt 0: found 2,041 tokens"):
        encode_prompts(base, [[1] * 2041], 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens: found 0"),
        ({"temperature": -1}, "temperature: found -1"),
        ({"temperature": float("nan")}, "temperature: found nan"),
        ({"temperature": float("inf")}, "temperature: found inf"),
        ({"top_p": 0.0}, "top_p: found 0.0"),
        ({"top_p": 1.5}, "top_p: found 1.5"),
        ({"prompts": [[3], []]}, "prompt 1: found 0 tokens"),
        (
            {"max_new_tokens": 2040},
            "prompt 0: found 9 tokens, expected at least 1, and with 2,040 new ones at most 2,048, the model's context",
        ),
    ],
)
def test_what_cannot_be_sampled_is_refused(tiny_llama, tokenizer, changes, message):
    with pytest.raises(SempaError, match=message):
        sample(BaseModel(tiny_llama, tokenizer, "tiny"), **{"prompts": PROMPTS, **changes})
