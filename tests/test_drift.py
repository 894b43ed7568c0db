"""Perplexity, KL and agreement against full float64 logits; greedy answers against transformers' own."""

import json
import math
import statistics

import pytest
import scipy.stats
import torch
from conftest import adapt, make_llama, with_adapter
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from sempa import SempaError
from sempa.batching.prompts import encode_texts, render_prompt
from sempa.cli import main
from sempa.evaluation import drift as module
from sempa.evaluation import measure
from sempa.evaluation.drift import generate_side_by_side, measure_drift, token_drift
from sempa.evaluation.eval_texts import EvalText, ScoredTokens
from sempa.model.adapter_files import save_adapter
from sempa.model.base import BaseModel
from sempa.model.lora import adapter_disabled, add_lora
from sempa.model.sampling import Sample, sample

SEQUENCES = [
    ScoredTokens([5, 9, 200, 31, 8, 77], 1),
    ScoredTokens([1, 2, 3, 4, 5, 6, 7, 8, 9], 6),
    ScoredTokens([300, 7], 1),
    ScoredTokens([11, 12, 13, 14, 15, 16], 5),
]


@pytest.fixture
def adapted(tiny_llama):
    return adapt(tiny_llama, 0.3)


def plain(model, sequences):
    nll_base = nll_aligned = kl = agree = count = 0
    for one in sequences:
        tokens = torch.tensor([one.tokens])
        with torch.no_grad():
            with adapter_disabled(model):
                base = model(tokens).logits[0].double().log_softmax(-1)
            aligned = model(tokens).logits[0].double().log_softmax(-1)
        for target in range(one.first, len(one.tokens)):
            row = target - 1
            nll_base -= base[row, one.tokens[target]].item()
            nll_aligned -= aligned[row, one.tokens[target]].item()
            kl += torch.nn.functional.kl_div(aligned[row], base[row], reduction="sum", log_target=True).item()
            agree += int(base[row].argmax() == aligned[row].argmax())
            count += 1
    return nll_base / count, nll_aligned / count, kl / count, agree / count, count


@pytest.mark.parametrize("chunk", [1, 640, 1 << 23])
def test_the_measures_equal_plain_float64_arithmetic_whatever_the_chunk(adapted, monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk)
    measured = token_drift(adapted, SEQUENCES, "text")
    base, aligned, kl, agreement, count = plain(adapted, SEQUENCES)
    assert measured["tokens"] == count == 10
    assert measured["base_perplexity"] == pytest.approx(torch.tensor(base).exp().item(), rel=1e-4)
    assert measured["aligned_perplexity"] == pytest.approx(torch.tensor(aligned).exp().item(), rel=1e-4)
    assert measured["kl"] == pytest.approx(kl, rel=1e-3)
    assert kl > 0.01
    assert measured["agreement"] == pytest.approx(agreement)
    assert measured["change"] == pytest.approx(measured["aligned_perplexity"] / measured["base_perplexity"] - 1)


def test_the_change_of_perplexity_has_its_standard_error_over_the_sequences(adapted):
    generator = torch.Generator().manual_seed(0)

    def sequences(lengths):
        rows = (torch.randint(0, 300, (length,), generator=generator).tolist() for length in lengths)
        return [ScoredTokens(tokens, 1) for tokens in rows]

    def change(chosen):
        base, aligned, *_ = plain(adapted, chosen)
        return aligned - base

    equal = sequences([9] * 12)
    measured = token_drift(adapted, equal, "text")
    expected = scipy.stats.sem([change([one]) for one in equal]) * math.exp(change(equal))
    assert measured["change_stderr"] == pytest.approx(expected, rel=1e-3)
    # Of unequal lengths: the jackknife.
    unequal = sequences(torch.randint(3, 30, (40,), generator=generator).tolist())
    parts = [(change([one]) * (len(one.tokens) - 1), len(one.tokens) - 1) for one in unequal]
    changes, counts = map(sum, zip(*parts, strict=True))
    without = [math.exp((changes - own) / (counts - count)) for own, count in parts]
    jackknife = math.sqrt((len(unequal) - 1) * statistics.pvariance(without))
    assert token_drift(adapted, unequal, "text")["change_stderr"] == pytest.approx(jackknife, rel=0.1)
    assert math.isnan(token_drift(adapted, unequal[:1], "text")["change_stderr"])


def test_an_adapter_that_does_nothing_has_no_kl_and_full_agreement(tiny_llama):
    add_lora(tiny_llama, 2, 4)
    measured = token_drift(tiny_llama, SEQUENCES, "text")
    assert (measured["kl"], measured["change"], measured["agreement"]) == (0.0, 0.0, 1.0)


def test_nothing_to_score_is_refused(tiny_llama):
    with pytest.raises(SempaError, match="notes: no token to score"):
        token_drift(tiny_llama, [ScoredTokens([3], 1)], "notes")


def greedy_answer(base, prompt, max_new_tokens):
    ((answer,),) = sample(base, [prompt], max_new_tokens=max_new_tokens, temperature=0)
    return answer.text


def test_the_greedy_answer_is_that_of_transformers(adapted, tokenizer):
    base = BaseModel(adapted, tokenizer, "tiny")
    (ids,) = encode_texts(tokenizer, [render_prompt(tokenizer, "Say something.")])
    tokens = torch.tensor([ids])
    greedy = GenerationConfig(max_new_tokens=9, do_sample=False, eos_token_id=2, pad_token_id=0)
    expected = adapted.generate(tokens, attention_mask=torch.ones_like(tokens), generation_config=greedy)[0, len(ids) :]
    assert greedy_answer(base, "Say something.", 9) == tokenizer.decode(expected, skip_special_tokens=True).strip()


def test_generations_switch_the_adapter_off_for_the_base(adapted, tokenizer):
    base = BaseModel(adapted, tokenizer, "tiny")
    first, second = generate_side_by_side(base, ["Say something.", "What is it?"], 6)
    assert (first["prompt"], second["prompt"]) == ("Say something.", "What is it?")
    assert first["aligned"] == greedy_answer(base, "Say something.", 6)
    with adapter_disabled(adapted):
        assert first["base"] == greedy_answer(base, "Say something.", 6)
    assert first["base"] != first["aligned"]


def test_the_unchanged_fraction_counts_equal_tokens_before_the_first_difference(tiny_llama, tokenizer, monkeypatch):
    def drawn(tokens):
        return [[Sample(tokens, torch.zeros(len(tokens)), "", False)]]

    answers = iter([drawn([5, 6, 7, 8]), drawn([5, 6, 9, 8, 8])])
    monkeypatch.setattr(module, "sample", lambda *_, **__: next(answers))
    (one,) = generate_side_by_side(BaseModel(tiny_llama, tokenizer, "tiny"), ["a"], 6)
    assert one["unchanged"] == 0.5


def test_an_adapter_that_does_nothing_leaves_every_greedy_token_unchanged(tiny_llama, tokenizer):
    add_lora(tiny_llama, 2, 4)
    answers = generate_side_by_side(BaseModel(tiny_llama, tokenizer, "tiny"), ["a", "longer than that", "b c"], 6)
    assert [answer["unchanged"] for answer in answers] == [1.0, 1.0, 1.0]


def test_a_text_longer_than_the_window_is_scored_whole(adapted, tokenizer, monkeypatch):
    base = BaseModel(adapted, tokenizer, "tiny")
    text = EvalText(" ".join(["A man pets a dog."] * 30))
    (whole,) = measure_drift(base, {"long": [text]})
    monkeypatch.setattr(module, "LONGEST_WINDOW", 64)
    (cut,) = measure_drift(base, {"long": [text]})
    assert cut["tokens"] == whole["tokens"] > 200
    # The later windows see less of the text.
    assert cut["base_perplexity"] != pytest.approx(whole["base_perplexity"], rel=1e-3)


def test_a_text_longer_than_a_short_context_is_scored_in_windows(tokenizer):
    config = GPT2Config(vocab_size=320, n_positions=32, n_embd=32, n_layer=2, n_head=4)
    base = BaseModel(GPT2LMHeadModel(config).eval(), tokenizer, "gpt2")
    text = "A man pets a dog. " * 20
    (row,) = measure_drift(base, {"long": [EvalText(text)]})
    assert row["tokens"] == len(tokenizer(text)["input_ids"]) - 1 > 32


def test_the_command_measures_texts_and_answers(tiny_folder, tmp_path, capsys):
    texts, out = tmp_path / "a.jsonl", tmp_path / "out.json"
    texts.write_text(json.dumps({"text": "A man pets a dog."}) + "\n")
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("A man\n\nA dog\n")
    command = ["evaluate", "--model", str(tiny_folder), "--dtype", "float32", "--adapter", str(_adapter(tmp_path))]
    command += ["--builtin-pairs", "0", "--texts", str(texts), "--prompts", str(prompts), "--max-new-tokens", "4"]
    assert main([*command, "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    for word in (str(texts), "KL (nats)", "unchanged before the first difference"):
        assert word in shown
    report = json.loads(out.read_text())
    *_, own = report["drift"]
    assert (own["text"], own["tokens"]) == (str(texts), 5)
    assert own["kl"] > 0
    assert [answer["prompt"] for answer in report["generations"]] == ["A man", "A dog"]
    assert main([*command, "--limit", "1", "--json", str(out)]) == 0
    assert len(json.loads(out.read_text())["generations"]) == 1
    assert main([*command, "--limit", "0"]) == 2
    assert "limit: found 0" in capsys.readouterr().err


def _adapter(folder):
    save_adapter(with_adapter(make_llama(), 0.3), folder / "adapter", "tiny")
    return folder / "adapter"


def test_preference_compares_best_with_worst_and_a_tie_is_no_preference(adapted_base, monkeypatch):
    reference = torch.tensor([[-5.0, 0.0, -5.0], [-4.0, -9.0, -6.0], [-3.0, -9.0, -1.0], [-2.0, 0.0, -2.5]])
    policy = torch.tensor([[-4.0, -9.0, -6.0], [-4.0, 0.0, -6.0], [-1.0, 0.0, -1.0], [-3.0, 0.0, -2.5]])
    sides = iter([reference, policy])
    monkeypatch.setattr(measure, "response_logprobs", lambda *_: next(sides))
    # Margins of the base 0, 2, −2, 0.5; of the policy 2, 2, 0, −0.5; they grew by 2, 0, 2, −1.
    assert measure.measure_preference(adapted_base, [None] * 4, 1024, 0.5) == {
        "triplets": 4,
        "base_accuracy": 0.5,
        "aligned_accuracy": 0.5,
        "reward_accuracy": 0.5,
        "reward_margin": pytest.approx(0.5 * 0.75),
    }
