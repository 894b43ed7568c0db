"""Sentences that share a pass embed as they do alone, and hooks of one thread are not seen by another."""

import copy
import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from readout_oracle import BARE, CLEAN, DEPTH, SENTENCES, TEXTS, eol, ids_of

from sempa.embedding.embed import ROW_TOKENS, embed
from sempa.embedding.readouts import READOUTS, make_prompts, read
from sempa.embedding.readouts.plain import Prompt
from sempa.model.forward import hidden_states
from sempa.model.layers import blocks

HOOKED = ("contrastive-prompting", "token-prepending", "attention-sum")


def padded_by_transformers(oracle, texts, side):
    """The usual way: a padded batch, an attention mask, and positions that count a sentence's own tokens."""
    tokenizer = copy.deepcopy(oracle.tokenizer)
    tokenizer.padding_side = side
    batch = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
    mask = batch["attention_mask"]
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    # In float64 transformers' mask overflows its float32 softmax where padding sees nothing at all.
    plain = copy.deepcopy(oracle.plain).float()
    with torch.no_grad():
        hidden = plain(**batch, position_ids=positions, output_hidden_states=True).hidden_states[-1]
    last = mask.shape[1] - 1 if side == "left" else mask.sum(1) - 1
    return hidden[torch.arange(len(texts)), last].numpy()


@pytest.mark.parametrize("name", ["Llama", "GPT-2", "Gemma3"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_left_and_right_padding_give_the_same_embedding(oracles, name, side):
    oracle = oracles(name)
    base = dataclasses.replace(oracle.base, tokenizer=copy.deepcopy(oracle.base.tokenizer))
    base.tokenizer.padding_side = side
    for readout, texts in (("prompteol", [eol(text) for text in CLEAN]), ("last", BARE)):
        wanted = padded_by_transformers(oracle, texts, side)
        vectors = embed(base, SENTENCES, readout=readout)
        np.testing.assert_allclose(vectors, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("name", ["Llama", "Bloom (ALiBi)"])
def test_neither_batch_size_nor_order_nor_neighbours_matter(oracles, name, readout):
    base = oracles(name).base
    wanted = embed(base, SENTENCES, batch_size=1, readout=readout)
    for size in (2, 3, 100):
        vectors = embed(base, SENTENCES, batch_size=size, readout=readout)
        np.testing.assert_allclose(vectors, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
    order = [3, 0, 2, 4, 1]
    vectors = embed(base, [SENTENCES[i] for i in order], batch_size=2, readout=readout)
    np.testing.assert_allclose(vectors, wanted[order], rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@settings(max_examples=25)
@given(st.lists(TEXTS, min_size=1, max_size=6), st.integers(1, 4), st.sampled_from(READOUTS))
def test_any_text_embeds_as_it_does_alone(oracles, sentences, size, readout):
    base = oracles("Llama").base
    together = embed(base, sentences, batch_size=size, readout=readout)
    alone = np.concatenate([embed(base, [sentence], readout=readout) for sentence in sentences])
    assert np.isfinite(together).all()
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5 * np.abs(alone).max())


def count_hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_readouts_leave_no_hook_behind(oracles):
    base = oracles("Llama").base
    before = embed(base, SENTENCES)
    # transformers' own, which hand out the layers' states, stay.
    embed(base, SENTENCES, layer=3)
    hooks = count_hooks(base.model)
    for readout in HOOKED:
        embed(base, SENTENCES, readout=readout)
        with pytest.raises(IndexError):
            # An id that the table does not have, in the middle of a pass.
            read(readout, base.model, [Prompt([9999, 0, 1], span=2, auxiliary=[1])])
    assert count_hooks(base.model) == hooks
    np.testing.assert_array_equal(embed(base, SENTENCES), before)


@pytest.mark.parametrize("readout", [*HOOKED, "prompteol"])
def test_threads_that_share_a_model_do_not_meet_in_its_hooks(oracles, readout):
    base = oracles("Llama").base
    texts = [[f"A {animal} and {count} more." for animal in ("dog", "cat", "bird")] for count in range(16)]
    expected = [embed(base, batch, readout=readout) for batch in texts]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda batch: embed(base, batch, readout=readout), texts)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("readout", [*HOOKED, "prompteol"])
def test_a_thread_that_generates_does_not_meet_the_hooks_of_one_that_embeds(oracles, readout, monkeypatch):
    """Another thread's pass in the middle of ours, when all hooks are in place, is as without them."""
    base = oracles("Llama").base
    tokens = torch.arange(40)[None]
    plain = hidden_states(base.model, tokens)
    found = []

    def meanwhile(model, **inputs):
        with ThreadPoolExecutor(1) as pool:
            found.append(pool.submit(hidden_states, model, tokens).result())
        return hidden_states(model, **inputs)

    layer = -1 if readout == "attention-sum" else DEPTH
    expected = embed(base, SENTENCES, layer=layer, readout=readout)
    for module in ("model.forward", "model.layers", "embedding.readouts.steered"):
        monkeypatch.setattr(f"sempa.{module}.hidden_states", meanwhile)
    np.testing.assert_array_equal(embed(base, SENTENCES, layer=layer, readout=readout), expected)
    assert found
    assert all(torch.equal(states, plain) for states in found)


def rows_into(modules, run):
    """How many tokens go into each module while `run` runs."""
    counts = [0] * len(modules)
    hooks = []
    for number, module in enumerate(modules):

        def count(_, inputs, number=number):
            counts[number] += inputs[0].shape[0] * inputs[0].shape[1]

        hooks.append(module.register_forward_pre_hook(count))
    run()
    for hook in hooks:
        hook.remove()
    return counts


def test_a_shared_prefix_runs_once_a_batch_and_nothing_is_padded(oracles):
    oracle = oracles("Llama")
    prefix = len(ids_of(oracle.tokenizer, 'This sentence : "'))
    lengths = [len(ids_of(oracle.tokenizer, eol(text))) for text in CLEAN]
    for size, batches in ((100, 1), (2, 3)):
        counts = rows_into(blocks(oracle.base.model), lambda size=size: embed(oracle.base, SENTENCES, batch_size=size))
        assert counts == [sum(lengths) - prefix * (len(lengths) - batches)] * DEPTH


def row_lengths(base, run):
    """How many tokens each row has that goes through the model while `run` runs."""
    lengths = []
    hook = blocks(base.model)[0].register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    run()
    hook.remove()
    return lengths


def test_a_row_of_long_sentences_is_cut_before_it_grows_large(oracles):
    base = oracles("Llama").base
    sentences = ["a bird sings and " * 40] * 8
    (prompt, *_) = make_prompts("prompteol", base.tokenizer, sentences)
    lengths = row_lengths(base, lambda: embed(base, sentences, batch_size=8))
    assert len(lengths) > 1
    assert max(lengths) <= 2048
    assert len(prompt.tokens) * 8 > 2048


def test_a_row_holds_both_prompts_of_its_sentences_within_its_limit(oracles):
    base, sentences = oracles("Llama").base, [f"{i} " + "a bird sings and " * 20 for i in range(8)]
    lengths = row_lengths(base, lambda: embed(base, sentences, readout="contrastive-prompting"))
    assert len(lengths) > 1
    assert max(lengths) <= ROW_TOKENS
