"""Packed rows equal separate sequences, lose nothing, and keep their neighbours apart."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)

from sempa.kernels import packed_attention
from sempa.logprobs import sentence_logprobs
from sempa.models import hidden_states, load_base
from sempa.packing import Row, fill_bins, pack_preferences, pack_sentences, shared_prefix
from sempa.prompts import Preference

SMALL = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
GPT2 = GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2)
CONFIGS = {
    "Llama": LlamaConfig(**SMALL, initializer_range=0.2),
    "Qwen2": Qwen2Config(**SMALL, initializer_range=0.2),
    "Qwen3": Qwen3Config(**SMALL, head_dim=8, initializer_range=0.2),
    "Gemma": GemmaConfig(**SMALL, head_dim=8, initializer_range=0.2),
    "Gemma2 (soft-capped)": Gemma2Config(**SMALL, head_dim=8, initializer_range=0.2),
    "Mistral": MistralConfig(**SMALL, head_dim=8, initializer_range=0.2),
    "Phi": PhiConfig(**SMALL | {"num_key_value_heads": 4}, initializer_range=0.2),
    "GPT-2": GPT2,
}

token_lists = st.lists(st.integers(0, 9), min_size=1, max_size=6)
preferences = st.lists(st.builds(Preference, token_lists, st.tuples(token_lists, token_lists)), min_size=1, max_size=8)


def saved_model(config, folder, tokenizer):
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_base(str(folder), "float32", "cpu").model


def example_preferences(count=7, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(length):
        return torch.randint(0, 320, (length,), generator=generator).tolist()

    start = draw(5)
    return [Preference(start + draw(3 + i), (draw(2 + i % 4), draw(1 + (3 * i) % 5)), line=i + 2) for i in range(count)]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_packed_row_gives_the_log_probabilities_of_separate_forwards(name, tmp_path, tokenizer):
    model = saved_model(CONFIGS[name], tmp_path, tokenizer)
    examples = example_preferences()
    for packed in pack_preferences(examples, range(len(examples)), 60):
        with torch.no_grad():
            together = sentence_logprobs(model, packed)
        for place, index in enumerate(packed.examples):
            for k, response in enumerate(examples[index].responses):
                tokens = torch.tensor([examples[index].prompt + response])
                with torch.no_grad():
                    logits = model(tokens).logits[0].double().log_softmax(-1)
                begin = len(examples[index].prompt)
                alone = sum(logits[begin + t - 1, token].item() for t, token in enumerate(response))
                assert together[place, k].item() == pytest.approx(alone, rel=2e-5, abs=2e-4)


@pytest.mark.parametrize("name", ["Llama", "Gemma", "GPT-2"])
def test_gradients_of_a_packed_row_equal_those_of_separate_forwards(name, tmp_path, tokenizer):
    model = saved_model(CONFIGS[name], tmp_path, tokenizer).double()
    model.requires_grad_(True)
    examples = example_preferences(4)
    together = torch.zeros((), dtype=torch.float64)
    for packed in pack_preferences(examples, range(4), 60):
        signs = torch.tensor([1.0, -1.0], dtype=torch.float64)
        together = together + (sentence_logprobs(model, packed) * signs).sum()
    packed_gradients = torch.autograd.grad(together, list(model.parameters()), allow_unused=True)
    alone = torch.zeros((), dtype=torch.float64)
    for example in examples:
        for sign, response in zip((1, -1), example.responses, strict=True):
            logits = model(torch.tensor([example.prompt + response])).logits[0].log_softmax(-1)
            places = torch.arange(len(response)) + len(example.prompt) - 1
            alone = alone + sign * logits[places, torch.tensor(response)].sum()
    separate_gradients = torch.autograd.grad(alone, list(model.parameters()), allow_unused=True)
    compared = 0
    for ours, theirs in zip(packed_gradients, separate_gradients, strict=True):
        if ours is not None and theirs is not None:
            # transformers normalises in float32 whatever the dtype, so float32 rounding is what may remain.
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-5)
            compared += 1
    assert compared > 10


def test_the_family_path_is_the_one_that_runs(tiny_folder, monkeypatch):
    base = load_base(str(tiny_folder), "float32", "cpu")
    calls = []
    monkeypatch.setattr("sempa.models.packed_attention", lambda *a: calls.append(a[0].shape) or packed_attention(*a))
    (packed,) = pack_preferences(example_preferences(3), range(3), 500)
    sentence_logprobs(base.model, packed)
    assert calls == [(len(packed.row.tokens), 4, 8)] * 2


@settings(max_examples=60)
@given(items=preferences, row_tokens=st.integers(1, 40))
def test_every_preference_is_packed_once_and_can_be_read_back(items, row_tokens):
    rows = pack_preferences(items, range(len(items)), row_tokens)
    assert sorted(index for row in rows for index in row.examples) == list(range(len(items)))
    for packed in rows:
        assert len(packed.row.tokens) <= row_tokens or len(packed.examples) == 1
        mask = packed.row.attention_mask()
        for place, index in enumerate(packed.examples):
            for k, response in enumerate(items[index].responses):
                mine = (packed.owner == 2 * place + k).nonzero()[:, 0]
                assert packed.target[mine].tolist() == response
                assert packed.lengths[place, k] == len(response)
                # What the last predicting state sees is the prompt and the response but its last token, in order.
                seen = mask[packed.source[mine[-1]]].nonzero()[:, 0]
                assert [packed.row.tokens[i] for i in seen] == items[index].prompt + response[:-1]
                assert [packed.row.positions[i] for i in seen] == list(range(len(seen)))


@settings(max_examples=60)
@given(sequences=st.lists(token_lists, min_size=1, max_size=8))
def test_packed_sentences_see_exactly_themselves(sequences):
    row, ends = pack_sentences(sequences)
    mask = row.attention_mask()
    for sequence, end in zip(sequences, ends, strict=True):
        assert [row.tokens[i] for i in mask[end].nonzero()[:, 0]] == sequence


@given(sizes=st.lists(st.integers(1, 50), max_size=30), capacity=st.integers(1, 60))
def test_bins_hold_everything_once_and_overflow_only_alone(sizes, capacity):
    bins = fill_bins(range(len(sizes)), lambda i: sizes[i], capacity)
    assert sorted(itertools.chain(*bins)) == list(range(len(sizes)))
    assert all(len(b) == 1 or sum(sizes[i] for i in b) <= capacity for b in bins)


@settings(max_examples=40)
@given(
    prefix=st.integers(0, 4),
    sizes=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=5),
    groups=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
)
def test_attention_by_families_equals_dense_attention_under_the_rows_mask(prefix, sizes, groups, seed):
    row = Row()
    root = row.add([0] * prefix)
    for family in sizes:
        top = row.add([1] * family[0], root)
        for branch in family[1:]:
            row.add([2] * branch, top)
    generator = torch.Generator().manual_seed(seed)

    def draw(heads):
        values = torch.randn(len(row.tokens), heads, 8, generator=generator, dtype=torch.float64)
        return values.requires_grad_()

    inputs = query, key, value = draw(4), draw(groups), draw(groups)
    ours = packed_attention(query, key, value, row.families(), 0.3)
    q, k, v = (x.transpose(0, 1) for x in inputs)
    k, v = (x.repeat_interleave(4 // groups, 0) for x in (k, v))
    dense = F.scaled_dot_product_attention(q, k, v, row.attention_mask(), scale=0.3).transpose(0, 1)
    torch.testing.assert_close(ours, dense, rtol=1e-10, atol=1e-12)
    upstream = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    for mine, other in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(dense, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


def test_a_family_whose_tokens_are_torn_apart_is_refused():
    row = Row()
    root = row.add([1])
    first = row.add([2], root)
    row.add([3], root)
    row.add([4], first)
    with pytest.raises(ValueError, match="one after another"):
        row.families()


def test_the_shared_prefix_leaves_every_sequence_a_token_of_its_own():
    assert shared_prefix([[1, 2, 3], [1, 2, 4]]) == [1, 2]
    assert shared_prefix([[1, 2], [1, 2]]) == [1]
    assert shared_prefix([[1]]) == []


def test_rows_of_an_evaluated_layer_other_than_the_last_are_its_hidden_states(tiny_llama):
    tokens = torch.tensor([[5, 6, 7]])
    states = tiny_llama(tokens, output_hidden_states=True).hidden_states
    for layer in (0, 1, -2):
        torch.testing.assert_close(hidden_states(tiny_llama, tokens, layer=layer), states[layer])
