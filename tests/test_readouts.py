"""Every readout against plain transformers, in any architecture, with any layer and adapter."""

import copy
import dataclasses
import json
from functools import partial

import numpy as np
import pytest
import torch
from conftest import make_tokenizer, with_adapter
from hypothesis import example, given
from readout_oracle import (
    CLEAN,
    DEPTH,
    MODELS,
    SENTENCES,
    SMALL,
    TEXTS,
    check,
    eol,
    ids_of,
    oracle_of,
    save_model,
    states,
    summed_with_gradient,
)
from tokenizers import normalizers
from tokenizers.processors import TemplateProcessing
from transformers import AfmoeConfig, Glm4Config, LlamaConfig

from sempa.batching.packing import PackedRow, pack_sentence_rows
from sempa.cli import main
from sempa.embedding.embed import embed
from sempa.embedding.readouts import READOUTS, check_readout, make_prompts
from sempa.embedding.readouts.plain import encode_spans
from sempa.errors import SempaError
from sempa.model.adapter_files import save_adapter
from sempa.model.base import load_base
from sempa.model.layers import attention_sum, blocks


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("name", MODELS)
def test_a_readout_is_what_its_paper_says_in_any_architecture(oracles, name, readout):
    check(oracles(name), readout)


@pytest.mark.parametrize("readout", [readout for readout in READOUTS if readout != "attention-sum"])
@pytest.mark.parametrize("layer", [0, 1, 2, -2, 4, 5])
def test_any_layer_can_be_read(oracles, readout, layer):
    check(oracles("Llama"), readout, layer)


@pytest.mark.parametrize("depth", [1, 2, 3, 8, 32])
def test_published_blocks_and_layers_scale_with_the_depth(tmp_path, depth):
    save_model(LlamaConfig(**SMALL | {"initializer_range": 0.1}, num_hidden_layers=depth), tmp_path)
    oracle = oracle_of(tmp_path)
    for readout in ("contrastive-prompting", "token-prepending", "prompteol"):
        check(oracle, readout)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    folder, adapter = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("adapter")
    save_model(MODELS["Llama"][0], folder)
    base = load_base(str(folder), "float32", "cpu")
    with_adapter(base.model, 0.1)
    save_adapter(base.model, adapter, str(folder))
    return folder, adapter


@pytest.mark.parametrize("readout", READOUTS)
def test_with_an_adapter_a_readout_reads_the_adapted_model(adapted, oracles, readout):
    folder, adapter = adapted
    oracle = oracle_of(folder, adapter=adapter)
    check(oracle, readout)
    bare = embed(oracles("Llama").base, SENTENCES, readout=readout)
    assert np.abs(embed(oracle.base, SENTENCES, readout=readout) - bare).max() > 1e-2


@given(TEXTS, TEXTS)
@example("<|im_end|>", "0")
def test_a_span_is_the_text_behind_its_head(tokenizer, head, text):
    (prompt,) = encode_spans(tokenizer, [head], [text])
    ids, size = list(prompt.tokens), prompt.span
    assert tokenizer.decode(ids) == head + text
    assert 1 <= size <= len(ids)
    # Whole tokens of the head stay outside, at most the one that reaches into the text goes with it.
    assert len(tokenizer.decode(ids[-size:], errors="replace")) >= 1
    plain = tokenizer(head, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert ids[: len(ids) - size] == plain[: len(ids) - size]


def test_a_placeholder_is_as_large_as_the_models_own_embeddings(oracles):
    """Gemma multiplies them by the root of their width."""
    base, seen = oracles("Gemma3").base, []
    (prompt,) = make_prompts("token-prepending", base.tokenizer, SENTENCES[:1])
    hook = blocks(base.model)[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    embed(base, SENTENCES[:1], readout="token-prepending")
    hook.remove()
    drawn = torch.randn(32, generator=torch.Generator().manual_seed(3407))
    found = seen[0][0, len(prompt.tokens) - prompt.span]
    torch.testing.assert_close(found, 32**0.5 * drawn, rtol=1e-2, atol=1e-2)


def test_a_begin_of_text_token_is_seen_but_not_averaged():
    tokenizer = make_tokenizer(("<s>", "</s>"), None)
    tokenizer.bos_token = "<s>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    for readout in READOUTS:
        (prompt,) = make_prompts(readout, tokenizer, ["A man"])
        assert prompt.tokens[0] == tokenizer.bos_token_id
        # The placeholder of Token Prepending has id 0, as the begin-of-text token here, and opens the span.
        placeholder = len(prompt.tokens) - prompt.span if readout == "token-prepending" else None
        others = [token for place, token in enumerate(prompt.tokens[1:], 1) if place != placeholder]
        assert tokenizer.bos_token_id not in others
        assert prompt.span < len(prompt.tokens)


def test_the_longer_of_two_prompts_must_fit_the_model(oracles):
    oracle = oracles("GPT-2")
    limit = oracle.base.model.config.max_position_embeddings
    sentence = "dog"
    while len(make_prompts("contrastive-prompting", oracle.base.tokenizer, [sentence])[0].auxiliary) <= limit:
        sentence += " dog"
    (prompt,) = make_prompts("contrastive-prompting", oracle.base.tokenizer, [sentence])
    assert len(prompt.tokens) <= limit
    embed(oracle.base, [sentence])
    with pytest.raises(SempaError, match=f"sentence 0 .*: has {len(prompt.auxiliary):,} tokens in its prompt"):
        embed(oracle.base, [sentence], readout="contrastive-prompting")


def test_an_architecture_without_a_place_to_hook_is_named(oracles):
    base = dataclasses.replace(oracles("Llama").base, model=copy.deepcopy(oracles("Llama").base.model))
    for block in blocks(base.model):
        block.self_attn.mixer = block.self_attn.o_proj
        del block.self_attn.o_proj
    for readout in ("contrastive-prompting", "attention-sum"):
        for use in (partial(check_readout, readout, base.model), partial(embed, base, SENTENCES, readout=readout)):
            with pytest.raises(SempaError, match=r"LlamaForCausalLM: found no output projections .*; take another"):
                use()
    base.model.model.layers = base.model.model.layers[:-1]
    with pytest.raises(SempaError, match="LlamaForCausalLM: no list of 5 decoder blocks found"):
        blocks(base.model)


def test_the_attention_sum_has_no_layer_to_choose(oracles):
    with pytest.raises(SempaError, match="layer: found 3, expected none: attention-sum adds up the outputs of all"):
        embed(oracles("Llama").base, SENTENCES, readout="attention-sum", layer=3)


@pytest.mark.parametrize(
    ("architecture", "norm"),
    [
        (Glm4Config, "post_self_attn_layernorm"),
        # Experts cannot be computed in float64.
        (partial(AfmoeConfig, num_dense_layers=2), "post_attention_layernorm"),
    ],
    ids=["GLM-4", "AFMoE"],
)
def test_a_norm_behind_the_attention_is_part_of_what_a_block_adds(tmp_path, architecture, norm):
    save_model(architecture(**SMALL, num_hidden_layers=2, head_dim=8, pad_token_id=0), tmp_path)
    oracle, added = oracle_of(tmp_path), []
    for block in oracle.stack:
        getattr(block, norm).register_forward_hook(lambda _, __, output: added.append(output[0, -1]))
    states(oracle.plain, ids_of(oracle.tokenizer, eol(CLEAN[0])), -1)
    wanted = sum(added).numpy()
    found = embed(oracle.base, SENTENCES[:1], readout="attention-sum")[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def packed_row(base, texts):
    """PromptEOL's prompts behind their shared beginning in one row, and the row offsets of their ends."""
    prompts = [ids_of(base.tokenizer, eol(text)) for text in texts]
    (packed,) = pack_sentence_rows(prompts, 10_000)
    order = torch.tensor(packed.members).argsort()
    return packed.packed, packed.ends[order]


@pytest.mark.parametrize("name", ["Llama", "GPT-2", "Gemma2", "Bloom (ALiBi)"])
def test_the_attention_sum_of_a_row_has_the_gradient_of_separate_passes(oracles, name):
    """In training: the gradient of a loss of e = Σ_l o_l to the weights of every block, against plain autograd."""
    oracle = oracles(name)
    row, ends = packed_row(oracle.base, CLEAN)
    model = copy.deepcopy(oracle.base.model).requires_grad_(True)
    direction = torch.randn(len(CLEAN), 32, generator=torch.Generator().manual_seed(2))
    found = attention_sum(model, row, ends)
    assert found.dtype == torch.float32
    (found * direction).sum().backward()
    plain = copy.deepcopy(oracle)
    plain.stack = plain.plain.get_submodule(MODELS[name][1])
    loss = sum(summed_with_gradient(plain, eol(text)) @ own for text, own in zip(CLEAN, direction.double()))
    loss.backward()
    wanted = dict(plain.plain.named_parameters())
    reached = 0
    for parameter_name, parameter in model.named_parameters():
        other = wanted[parameter_name].grad
        if other is None:
            # The last block's MLP and norms, and the head.
            assert parameter.grad is None
            continue
        reached += 1
        error = (parameter.grad.double() - other).abs().max()
        assert error <= 1e-4 * other.abs().max() + 1e-9, parameter_name
    assert reached > 8 * (DEPTH - 1)


def run_command(capsys, *arguments):
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_the_command_line_takes_readout_and_layer(tiny_folder, tmp_path, capsys):
    model = ["--model", tiny_folder, "--dtype", "float32", "--device", "cpu"]
    base = load_base(str(tiny_folder), "float32", "cpu")
    wanted = embed(base, ["A man runs.", "Hi."], readout="echo", layer=1)
    unit = wanted / np.linalg.norm(wanted, axis=1, keepdims=True)
    chosen = ["--readout", "echo", "--layer", "1"]
    out = run_command(capsys, "similarity", *model, *chosen, "A man runs.", "Hi.")
    assert float(out) == pytest.approx(float(unit[0] @ unit[1]), abs=1e-4)
    (tmp_path / "in.txt").write_text("A man runs.\nHi.\n")
    run_command(capsys, "embed", *model, *chosen, tmp_path / "in.txt", tmp_path / "out.npy")
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), wanted, rtol=1e-5, atol=1e-6)

    def score(*options):
        json_file = tmp_path / "figures.json"
        quick = ["--no-drift", "--builtin-pairs", "30", "--json", json_file]
        run_command(capsys, "evaluate", *model, *quick, *options)
        return json.loads(json_file.read_text())["sts"][0]["base"]

    assert score(*chosen) == pytest.approx(score("--readout", "echo", "--layer", "-2"))
    assert abs(score(*chosen) - score()) > 0.1


def test_help_names_every_readout(capsys):
    with pytest.raises(SystemExit):
        main(["similarity", "--help"])
    # argparse breaks lines at hyphens too.
    text = "".join(capsys.readouterr().out.split())
    assert ",".join(READOUTS[:-1]) + "or" + READOUTS[-1] in text


def test_a_sentence_of_which_the_tokenizer_leaves_nothing_keeps_the_heads_last_token():
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    (prompt,) = encode_spans(tokenizer, ["A dog."], ["\u200b"])
    assert prompt.span == 1


def test_the_attention_sum_of_a_bfloat16_model_is_added_up_in_float32(tiny_llama):
    row = PackedRow()
    row.add([5, 6, 7])
    found = attention_sum(tiny_llama.bfloat16(), row, torch.tensor([2]))
    assert found.dtype == torch.float32
    # A sum of two blocks' outputs has more digits than bfloat16.
    assert not torch.equal(found, found.bfloat16().float())


@pytest.mark.parametrize("readout", ["mean", "weighted-mean", "echo"])
def test_a_mean_of_a_bfloat16_models_states_is_taken_in_float32(tiny_folder, readout):
    base = load_base(str(tiny_folder), "bfloat16", "cpu")
    found = torch.from_numpy(embed(base, SENTENCES[:1], readout=readout))
    # It has more digits than bfloat16.
    assert not torch.equal(found, found.bfloat16().float())
