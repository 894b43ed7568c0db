"""Perplexity, KL and agreement against full float64 logits; the texts themselves; GSM8K files."""

import json

import pytest
import torch
from conftest import SHARED

from sempa import SempaError
from sempa import retention as module
from sempa.lora import adapter_disabled, add_lora, lora_parameters
from sempa.models import BaseModel
from sempa.retention import (
    encode_conversations,
    encode_passages,
    generate,
    generate_side_by_side,
    measure_retention,
    read_gsm8k,
)
from sempa.unseen_text import CONVERSATIONS, GENERATION_PROMPTS, PASSAGES

SEQUENCES = [([5, 9, 200, 31, 8, 77], 1), ([1, 2, 3, 4, 5, 6, 7, 8, 9], 4), ([300, 7], 1)]


@pytest.fixture
def adapted(tiny_llama):
    with torch.no_grad():
        for parameter in tiny_llama.parameters():
            parameter.mul_(8)
    add_lora(tiny_llama, 2, 4)
    with torch.no_grad():
        for parameter in lora_parameters(tiny_llama).values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return tiny_llama


def plain(model, sequences):
    nll_base = nll_aligned = kl = agree = count = 0
    for ids, start in sequences:
        tokens = torch.tensor([ids])
        with torch.no_grad():
            with adapter_disabled(model):
                base = model(tokens).logits[0, start - 1 : -1].double().log_softmax(-1)
            aligned = model(tokens).logits[0, start - 1 : -1].double().log_softmax(-1)
        for row, target in enumerate(ids[start:]):
            nll_base -= base[row, target].item()
            nll_aligned -= aligned[row, target].item()
            kl += torch.nn.functional.kl_div(aligned[row], base[row], reduction="sum", log_target=True).item()
            agree += int(base[row].argmax() == aligned[row].argmax())
            count += 1
    return nll_base / count, nll_aligned / count, kl / count, agree / count, count


@pytest.mark.parametrize("chunk", [1, 640, 1 << 23])
def test_the_measures_equal_plain_float64_arithmetic_whatever_the_chunk(adapted, monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk)
    measured = measure_retention(adapted, SEQUENCES, "text")
    base, aligned, kl, agreement, count = plain(adapted, SEQUENCES)
    assert measured.tokens == count == 11
    assert measured.base_perplexity == pytest.approx(torch.tensor(base).exp().item(), rel=1e-4)
    assert measured.aligned_perplexity == pytest.approx(torch.tensor(aligned).exp().item(), rel=1e-4)
    assert measured.kl == pytest.approx(kl, rel=1e-3)
    assert kl > 0.01
    assert measured.agreement == pytest.approx(agreement)
    assert measured.change == pytest.approx(measured.aligned_perplexity / measured.base_perplexity - 1)


def test_an_adapter_that_does_nothing_has_no_kl_and_full_agreement(tiny_llama):
    add_lora(tiny_llama, 2, 4)
    measured = measure_retention(tiny_llama, SEQUENCES, "text")
    assert (measured.kl, measured.change, measured.agreement) == (0.0, 0.0, 1.0)


def test_of_a_conversation_exactly_the_answer_is_scored(tokenizer):
    for (ids, start), (_, answer) in zip(encode_conversations(tokenizer, CONVERSATIONS), CONVERSATIONS, strict=True):
        assert tokenizer.decode(ids[start:]) == f"{answer}<|im_end|>\n"
        assert tokenizer.decode(ids[:start]).endswith("<|im_start|>assistant\n")


def test_of_a_passage_all_but_the_first_token_is_scored(tokenizer):
    (ids, start), *_ = encode_passages(tokenizer, PASSAGES)
    assert start == 1
    assert tokenizer.decode(ids) == PASSAGES[0]


def test_generations_switch_the_adapter_off_for_the_base(adapted, tokenizer):
    base = BaseModel(adapted, tokenizer, "tiny")
    (answers,) = generate_side_by_side(base, ["Say something."], 6)
    assert answers["aligned"] == generate(base, "Say something.", 6)
    with adapter_disabled(adapted):
        assert answers["base"] == generate(base, "Say something.", 6)
    assert answers["base"] != answers["aligned"]


def test_the_unseen_texts_are_many_distinct_and_share_no_long_phrase():
    assert len(PASSAGES) >= 16
    assert len(CONVERSATIONS) >= 14
    assert len(set(GENERATION_PROMPTS)) >= 4
    seen = {}
    for text in (*PASSAGES, *(f"{q} {a}" for q, a in CONVERSATIONS)):
        words = text.split()
        for i in range(len(words) - 7):
            phrase = " ".join(words[i : i + 8])
            assert seen.setdefault(phrase, text) == text
    assert all(60 <= len(p.split()) <= 130 for p in PASSAGES)


def test_gsm8k_answers_lose_their_calculator_marks(tmp_path):
    path = tmp_path / "gsm8k.jsonl"
    lines = [{"question": "How many?", "answer": "2+3=<<2+3=5>>5, 5*2=<<5*2=10>>10.\n#### 10"}] * 3
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert read_gsm8k(path) == [("How many?", "2+3=5, 5*2=10.\n#### 10")] * 3
    assert len(read_gsm8k(path, limit=2)) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"{", "gsm8k.jsonl:1: expected a JSON object"),
        (b'{"question": "a"}', "gsm8k.jsonl:1: expected"),
        (b'{"question": "a", "answer": 3}', "must be text"),
        (b"[]", "gsm8k.jsonl:1: expected"),
        (b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_a_wrong_gsm8k_file_is_refused_with_its_line(tmp_path, content, message):
    path = tmp_path / "gsm8k.jsonl"
    path.write_bytes(content)
    with pytest.raises(SempaError, match=message):
        read_gsm8k(path)


def test_a_missing_gsm8k_file_is_named(tmp_path):
    with pytest.raises(SempaError, match=r"nowhere: cannot be read: No such file"):
        read_gsm8k(tmp_path / "nowhere")


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real GSM8K is not beside the project")
def test_the_real_gsm8k_file_is_read_whole():
    problems = read_gsm8k(SHARED / "generation" / "gsm8k_test.jsonl")
    assert len(problems) == 1319
    assert not any("<<" in answer or ">>" in answer for _, answer in problems)
