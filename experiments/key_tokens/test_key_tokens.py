"""Key tokens: the head's own distribution by plain transformers, presence by hand, whatever the architecture."""

import json
import math

import key_tokens as keytokens
import numpy as np
import pytest
import torch
from conftest import adapt, make_llama
from key_tokens import KeyTokens, key_tokens, main, summarise, summary_table, word_table
from scipy.stats import entropy as scipy_entropy
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    OPTConfig,
    OPTForCausalLM,
)

from sempa import SempaError
from sempa.io.streams import exit_code
from sempa.model.adapter_files import save_adapter
from sempa.model.base import BaseModel

SMALL = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SENTENCES = ["A man pets a dog.", "The cat ignores the boy.", "A girl is here."]


def models():
    torch.manual_seed(0)
    yield "llama", make_llama(initializer_range=0.3)
    yield "granite", GraniteForCausalLM(GraniteConfig(**SMALL, initializer_range=0.3, logits_scaling=3.0))
    gemma = Gemma2Config(**SMALL, head_dim=8, initializer_range=0.3, final_logit_softcapping=2.0, pad_token_id=0)
    yield "gemma2", Gemma2ForCausalLM(gemma)
    yield "gpt2", GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3))
    neox = {k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
    yield "gpt-neox", GPTNeoXForCausalLM(GPTNeoXConfig(**neox, initializer_range=0.3))
    bloom = BloomConfig(vocab_size=320, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.3)
    yield "bloom", BloomForCausalLM(bloom)
    opt = OPTConfig(
        vocab_size=320,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        word_embed_proj_dim=32,
        init_std=0.3,
    )
    yield "opt", OPTForCausalLM(opt)


def hidden_and_logits(model, tokenizer):
    """All layers' states at the last token, and the model's own logits there, by plain transformers."""
    hidden, logits = [], []
    for sentence in SENTENCES:
        tokens = tokenizer(sentence, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            output = model.eval()(tokens, output_hidden_states=True)
        hidden.append(torch.stack([layer[0, -1] for layer in output.hidden_states]))
        logits.append(output.logits[0, -1].double())
    return torch.stack(hidden).numpy(), torch.stack(logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name, model", list(models()), ids=[name for name, _ in models()])
def test_tokens_probabilities_and_entropy_are_those_of_the_models_own_logits(name, model, dtype, tokenizer):
    model = model.to(dtype)
    states, logits = hidden_and_logits(model, tokenizer)
    found = key_tokens(BaseModel(model, tokenizer, ""), SENTENCES, states[:, -1], top=7)
    exact = logits.softmax(-1)
    best = exact.sort(dim=-1, descending=True)
    assert found.ids.tolist() == best.indices[:, :7].tolist()
    np.testing.assert_allclose(found.probabilities, best.values[:, :7], rtol=2e-4)
    np.testing.assert_allclose(found.entropy, scipy_entropy(exact.numpy(), axis=1), rtol=2e-4)
    assert found.tokens == [[tokenizer.decode([i]) for i in row] for row in found.ids.tolist()]


def test_chunks_do_not_change_anything(monkeypatch, tokenizer, tiny_llama):
    base = BaseModel(tiny_llama, tokenizer, "")
    vectors = np.random.default_rng(0).standard_normal((11, 32)).astype(np.float32)
    whole = key_tokens(base, ["x"] * 11, vectors)
    for elements in (1, 320 * 4):
        monkeypatch.setattr(keytokens, "_CHUNK_ELEMENTS", elements)
        parts = key_tokens(base, ["x"] * 11, vectors)
        assert parts.ids.tolist() == whole.ids.tolist()
        np.testing.assert_allclose(parts.entropy, whole.entropy, rtol=1e-6)


def with_head(model, rows):
    """The model with a head that is zero but for the given tokens: the i-th of them reads the embedding's entry i."""
    head = torch.zeros(320, 32)
    for place, token in enumerate(rows):
        head[token, place] = 1.0
    model.lm_head.weight = torch.nn.Parameter(head, requires_grad=False)
    return model


def test_presence_is_by_id_and_by_the_words_lower_case_form(tokenizer):
    texts = [" dog", "a", ".", " cat", "A", " man"]
    named = [ids for text in texts for ids in tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert len(named) == len(texts)
    vector = np.zeros((1, 32), dtype=np.float32)
    vector[0, :6] = np.arange(20, 14, -1)
    base = BaseModel(with_head(make_llama(), named), tokenizer, "")
    found = key_tokens(base, ["A Man pets a dog."], vector, top=6)
    assert found.ids.tolist() == [named]
    assert found.tokens == [texts]
    # The sentence has "A" and " a", but no "a", and no small " man"; the full stop is a token of it, but no word.
    assert found.by_id.tolist() == [[True, False, True, False, True, False]]
    assert found.by_word.tolist() == [[True, True, False, False, True, True]]
    p = np.exp(np.concatenate([np.arange(20, 14, -1.0), np.zeros(314)]))
    assert found.entropy[0] == pytest.approx(scipy_entropy(p), rel=1e-5)


def test_entropy_is_log_of_the_vocabulary_for_a_zero_embedding_and_zero_for_a_sure_one(tokenizer):
    vectors = np.zeros((2, 32), dtype=np.float32)
    vectors[1, 0] = 1e6
    found = key_tokens(BaseModel(with_head(make_llama(), [5]), tokenizer, ""), ["a", "b"], vectors, top=1)
    assert found.entropy[0] == pytest.approx(math.log(320), rel=1e-5)
    assert found.entropy[1] == 0
    assert (found.probabilities[1], found.ids[1]) == (1, 5)


def example(by_id, by_word, entropy):
    ids = np.zeros(np.shape(by_id), dtype=int)
    tokens = [["x"] * ids.shape[1] for _ in ids]
    return KeyTokens(ids, tokens, ids.astype(float), np.array(entropy, np.float32), np.array(by_id), np.array(by_word))


def test_the_summary_counts_fractions_and_hits():
    by_id = [[True, False, False], [False, False, False]]
    by_word = [[True, True, False], [False, True, True]]
    summary = summarise(example(by_id, by_word, [1.0, 2.5]))
    assert summary == {
        "share_by_id": pytest.approx(1 / 6),
        "share_by_word": pytest.approx(4 / 6),
        "hit_by_id": 0.5,
        "hit_by_word": 1.0,
        "entropy": 1.75,
    }


def test_a_table_is_of_a_regular_sample_of_the_sentences(monkeypatch, tokenizer, tiny_llama):
    monkeypatch.setattr(keytokens, "_SAMPLE", 4)
    base = BaseModel(tiny_llama, tokenizer, "")
    sentences = [f"sentence {i}" for i in range(10)]
    random = np.random.default_rng(0)
    sides = {side: random.standard_normal((10, 32)).astype(np.float32) for side in ("base", "aligned")}
    lines = summary_table(base, "pairs", sentences, sides).splitlines()
    assert lines[0] == "pairs: top 10 of 4 sentences"
    summaries = [summarise(key_tokens(base, sentences[::3], sides[side][::3].copy())) for side in sides]
    for line, key in zip(lines[2:], summaries[0], strict=True):
        assert line.split() == [key, *(f"{summary[key]:.4f}" for summary in summaries)]


def test_a_sentences_table_shows_both_sides(tokenizer, tiny_llama):
    base = BaseModel(adapt(tiny_llama, 1.0), tokenizer, "")
    random = np.random.default_rng(0)
    sides = {side: random.standard_normal(32).astype(np.float32) for side in ("base", "aligned")}
    lines = word_table(base, SENTENCES[0], sides, 4).splitlines()
    assert lines[0] == SENTENCES[0]
    for side, column in (("base", 0), ("aligned", 1)):
        found = key_tokens(base, SENTENCES[:1], sides[side][None], top=4)
        assert lines[2].split()[2 + column] == f"{found.entropy[0]:.2f}"
        for rank in range(4):
            assert json.dumps(found.tokens[0][rank], ensure_ascii=False) in lines[4 + rank]
            assert f"{100 * found.probabilities[0, rank]:.1f} %" in lines[4 + rank]


def test_the_program_prints_sentences_and_tasks(tiny_folder, tmp_path, capsys):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("sentence1,sentence2,score\nA dog.,A cat.,3\nA man.,A boy.,4\n")
    model = ["--model", str(tiny_folder), "--dtype", "float32"]
    main([*model, "--sts", str(pairs), "--top", "3", *SENTENCES])
    titles = [block.splitlines()[0] for block in capsys.readouterr().out.split("\n\n")]
    assert titles == [*SENTENCES, "pairs: top 10 of 4 sentences"]
    for arguments, message in (
        ([], "give sentences"),
        ([" "], "sentence 0: is empty"),
        (["a", "--top", "0"], "top: found 0"),
    ):
        assert exit_code("program", lambda arguments=arguments: main([*model, *arguments])) == 2
        assert message in capsys.readouterr().err


def test_the_program_shows_the_base_beside_the_adapter(tiny_folder, tmp_path, capsys):
    save_adapter(adapt(make_llama(), 1.0), tmp_path, str(tiny_folder))
    shown = []
    for adapter in ([], ["--adapter", str(tmp_path)]):
        main(["--model", str(tiny_folder), "--dtype", "float32", *adapter, "--top", "3", SENTENCES[0]])
        shown.append([line.split() for line in capsys.readouterr().out.splitlines()])
    (base,), (same, aligned) = (lines[2][2:] for lines in shown)
    assert base == same != aligned


def test_wrong_arguments_are_named(tokenizer, tiny_llama):
    base = BaseModel(tiny_llama, tokenizer, "")
    with pytest.raises(SempaError, match="top: found 0, expected 1 to 320"):
        key_tokens(base, ["a"], np.zeros((1, 32), np.float32), top=0)
    with pytest.raises(SempaError, match="top: found 321"):
        key_tokens(base, ["a"], np.zeros((1, 32), np.float32), top=321)
