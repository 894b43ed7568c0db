"""Every readout against plain transformers: one sentence, one forward pass, hooks where the readout steers."""

import copy
import dataclasses
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)

from sempa.cli import main
from sempa.embedding.embedder import Embedder, embed, embed_readings
from sempa.embedding.readouts import READOUTS, make_prompts, read, same_pass
from sempa.embedding.readouts.pooling import last, mean, weighted_mean
from sempa.embedding.readouts.prompt import Prompt, encode_spans
from sempa.errors import SempaError
from sempa.model.adapter_files import load_adapter, save_adapter
from sempa.model.base import hidden_states, load_base
from sempa.model.layers import blocks, output_projection
from sempa.model.lora import add_lora, lora_parameters

SENTENCES = ["A man runs", 'He said  "two very small dogs" are chasing a red ball', "Hi", "Who is it?", "A man runs"]
CLEAN = ["A man runs.", "He said 'two very small dogs' are chasing a red ball.", "Hi.", "Who is it.", "A man runs."]
BARE = ["A man runs", 'He said "two very small dogs" are chasing a red ball', "Hi", "Who is it?", "A man runs"]
EXAMPLE = 'This sentence : "A man is smoking." means in one word:"Smoking".'

SMALL = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "max_position_embeddings": 512,
}
DEPTH = 5
MODELS = {
    "Llama": (LlamaConfig(**SMALL, num_hidden_layers=DEPTH), "model.layers", "self_attn.o_proj"),
    "Qwen2": (Qwen2Config(**SMALL, num_hidden_layers=DEPTH), "model.layers", "self_attn.o_proj"),
    "Qwen3": (Qwen3Config(**SMALL, num_hidden_layers=DEPTH, head_dim=8), "model.layers", "self_attn.o_proj"),
    "Mistral with a window of 16 tokens": (
        MistralConfig(**SMALL, num_hidden_layers=DEPTH, head_dim=8, sliding_window=16),
        "model.layers",
        "self_attn.o_proj",
    ),
    "Gemma2": (Gemma2Config(**SMALL, num_hidden_layers=DEPTH, head_dim=8), "model.layers", "self_attn.o_proj"),
    "Gemma3": (Gemma3TextConfig(**SMALL, num_hidden_layers=DEPTH, head_dim=8), "model.layers", "self_attn.o_proj"),
    "Phi": (
        PhiConfig(**SMALL | {"num_key_value_heads": 4}, num_hidden_layers=DEPTH),
        "model.layers",
        "self_attn.dense",
    ),
    "GPT-2": (
        GPT2Config(vocab_size=320, n_embd=32, n_layer=DEPTH, n_head=4, initializer_range=0.2),
        "transformer.h",
        "attn.c_proj",
    ),
    "OPT": (
        OPTConfig(
            vocab_size=320,
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=DEPTH,
            num_attention_heads=4,
            word_embed_proj_dim=32,
            init_std=0.2,
        ),
        "model.decoder.layers",
        "self_attn.out_proj",
    ),
    "Bloom (ALiBi)": (
        BloomConfig(vocab_size=320, hidden_size=32, n_layer=DEPTH, n_head=4, initializer_range=0.2),
        "transformer.h",
        "self_attention.dense",
    ),
}


def save_model(config, folder):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    # Biases and norms that start at 0 and 1 would hide a mistake.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """name → sempa's model and a plain float64 one, made on first use."""
    found = {}

    def make(name):
        if name not in found:
            folder = tmp_path_factory.mktemp("model")
            config, stack, projection = MODELS[name]
            save_model(config, folder)
            found[name] = oracle_of(folder, stack, projection)
        return found[name]

    return make


def oracle_of(folder, stack="model.layers", projection="self_attn.o_proj", adapter=None):
    base = load_base(str(folder), "float32", "cpu")
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    if adapter is not None:
        load_adapter(base.model, adapter)
        merge(plain, load_file(adapter / "adapter_model.safetensors"), 4 / 2)
    return SimpleNamespace(
        base=base,
        plain=plain,
        tokenizer=make_tokenizer(),
        stack=plain.get_submodule(stack),
        heads=lambda block: block.get_submodule(projection),
        depth=len(plain.get_submodule(stack)),
    )


def merge(plain, tensors, scale):
    """W ← W + (α / r) B A, in place of an adapter."""
    for name, A in tensors.items():
        if name.endswith(".lora_A.weight"):
            B = tensors[name.replace("lora_A", "lora_B")]
            layer = plain.get_submodule(name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            layer.weight.data += scale * (B.double() @ A.double())


@torch.no_grad()
def states(model, ids, layer):
    return model(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0]


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def eol(text, head="This sentence", before=""):
    return f'{before}{head} : "{text}" means in one word:"'


def expected(oracle, readout, place, layer=None):
    """The embedding of sentence `place` in float64; `layer` counts from 0, None is the readout's own."""
    tokenizer, plain, depth = oracle.tokenizer, oracle.plain, oracle.depth
    published = int(27 / 32 * depth + 0.5) if readout in ("contrastive-prompting", "token-prepending") else depth
    layer = published if layer is None else layer
    bare, clean = BARE[place], CLEAN[place]
    if readout in ("mean", "weighted-mean", "last"):
        hidden = states(plain, ids_of(tokenizer, bare), layer)
        weights = {
            "mean": torch.ones(len(hidden)),
            "weighted-mean": torch.arange(1, len(hidden) + 1),
            "last": torch.arange(len(hidden)) == len(hidden) - 1,
        }[readout].double()
        return (weights / weights.sum()) @ hidden
    if readout == "echo":
        ids = ids_of(tokenizer, f"Rewrite the sentence: {bare}, rewritten sentence: {bare}")
        second = len(ids_of(tokenizer, f" {bare}"))
        assert tokenizer.decode(ids[-second:]) == f" {bare}"
        return states(plain, ids, layer)[-second:].mean(0)
    if readout in ("prompteol", "prompteol-icl"):
        before = EXAMPLE if readout == "prompteol-icl" else ""
        return states(plain, ids_of(tokenizer, eol(clean, before=before)), layer)[-1]
    if readout == "contrastive-prompting":
        return contrastive(oracle, clean, layer)
    return prepended(oracle, clean, layer)


def contrastive(oracle, clean, layer):
    heads = oracle.heads(oracle.stack[int(4 / 32 * oracle.depth + 0.5)])
    seen = []
    hook = heads.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    states(oracle.plain, ids_of(oracle.tokenizer, eol(clean, "The irrelevant information of this sentence")), layer)
    hook.remove()

    def steer(_, inputs):
        (a,) = inputs
        a[..., -1, :] = 0.5 * (a[..., -1, :] - seen[0][..., -1, :])
        return (a,)

    hook = heads.register_forward_pre_hook(steer)
    result = states(oracle.plain, ids_of(oracle.tokenizer, eol(clean)), layer)[-1]
    hook.remove()
    return result


def prepended(oracle, clean, layer):
    """As the authors do it: a new token in tokenizer and table, its state overwritten before blocks 1 to exit − 1."""
    tokenizer, plain = copy.deepcopy(oracle.tokenizer), copy.deepcopy(oracle.plain)
    tokenizer.add_tokens(["<PST>"])
    plain.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    width = plain.get_input_embeddings().weight.shape[1]
    drawn = torch.randn(width, generator=torch.Generator().manual_seed(3407))
    plain.get_input_embeddings().weight.data[tokenizer.convert_tokens_to_ids("<PST>")] = drawn.double()
    ids = ids_of(tokenizer, f'This sentence : <PST> "{clean}" means in one word:"')
    place = ids.index(tokenizer.convert_tokens_to_ids("<PST>"))

    def overwrite(_, inputs):
        inputs[0][:, place] = inputs[0][:, -1]

    names = {module: name for name, module in oracle.plain.named_modules()}
    for block in list(plain.get_submodule(names[oracle.stack]))[1 : max(2, int(7 / 32 * oracle.depth + 0.5))]:
        block.register_forward_pre_hook(overwrite)
    return states(plain, ids, layer)[-1]


def check(oracle, readout, layer=None, **options):
    vectors = embed(oracle.base, SENTENCES, layer=-1 if layer is None else layer, readout=readout, **options)
    wanted = torch.stack([expected(oracle, readout, place, layer) for place in range(len(SENTENCES))]).numpy()
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("name", MODELS)
def test_a_readout_is_what_its_paper_says_in_any_architecture(made, name, readout):
    check(made(name), readout)


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("layer", [0, 1, 2, 4, 5])
def test_any_layer_can_be_read(made, readout, layer):
    check(made("Llama"), readout, layer)


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
    add_lora(base.model, 2, 4)
    with torch.no_grad():
        for parameter in lora_parameters(base.model).values():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    save_adapter(base.model, adapter, str(folder))
    return folder, adapter


@pytest.mark.parametrize("readout", READOUTS)
def test_with_an_adapter_a_readout_reads_the_adapted_model(adapted, made, readout):
    folder, adapter = adapted
    oracle = oracle_of(folder, adapter=adapter)
    check(oracle, readout)
    bare = embed(made("Llama").base, SENTENCES, readout=readout)
    assert np.abs(embed(oracle.base, SENTENCES, readout=readout) - bare).max() > 1e-2


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
def test_left_and_right_padding_give_the_same_embedding(made, name, side):
    oracle = made(name)
    base = dataclasses.replace(oracle.base, tokenizer=copy.deepcopy(oracle.base.tokenizer))
    base.tokenizer.padding_side = side
    for readout, texts in (("prompteol", [eol(text) for text in CLEAN]), ("last", BARE)):
        wanted = padded_by_transformers(oracle, texts, side)
        vectors = embed(base, SENTENCES, readout=readout)
        np.testing.assert_allclose(vectors, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("name", ["Llama", "Bloom (ALiBi)"])
def test_neither_batch_size_nor_order_nor_neighbours_matter(made, name, readout):
    base = made(name).base
    wanted = embed(base, SENTENCES, batch_size=1, readout=readout)
    for size in (2, 3, 100):
        vectors = embed(base, SENTENCES, batch_size=size, readout=readout)
        np.testing.assert_allclose(vectors, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())
    order = [3, 0, 2, 4, 1]
    vectors = embed(base, [SENTENCES[i] for i in order], batch_size=2, readout=readout)
    np.testing.assert_allclose(vectors, wanted[order], rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("name", ["Llama", "GPT-2", "Bloom (ALiBi)"])
def test_readings_of_one_pass_are_what_each_gives_alone(made, name, readout):
    base = made(name).base
    companions = [other for other in READOUTS if same_pass(readout, other)]
    bare = ["mean", "weighted-mean", "last"]
    assert companions == (bare if readout in bare else [readout])
    readings = [(other, layer) for other in companions for layer in (2, -1, 0, DEPTH, -2, 2)]
    runs = []
    hook = blocks(base.model)[0].mlp.register_forward_hook(lambda *_: runs.append(1))
    together = embed_readings(base, SENTENCES, readings, batch_size=3)
    hook.remove()
    # Contrastive Prompting's second prompt passes the first blocks, too.
    assert len(runs) == (4 if readout == "contrastive-prompting" else 2)
    for (other, layer), vectors in zip(readings, together, strict=True):
        wanted = embed(base, SENTENCES, layer=layer, readout=other)
        np.testing.assert_allclose(vectors, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def test_readings_of_different_prompts_are_no_pass(made):
    with pytest.raises(SempaError, match="readings: prompteol and echo have different prompts, expected one pass"):
        embed_readings(made("Llama").base, SENTENCES, [("prompteol", -1), ("echo", -1)])


texts = st.text(min_size=1, max_size=30).filter(lambda text: text.strip())


@settings(max_examples=25)
@given(st.lists(texts, min_size=1, max_size=6), st.integers(1, 4), st.sampled_from(READOUTS))
def test_any_text_embeds_as_it_does_alone(made, sentences, size, readout):
    base = made("Llama").base
    together = embed(base, sentences, batch_size=size, readout=readout)
    alone = np.concatenate([embed(base, [sentence], readout=readout) for sentence in sentences])
    assert np.isfinite(together).all()
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5 * np.abs(alone).max())


@given(texts, texts)
def test_a_span_is_the_text_behind_its_head(tokenizer, head, text):
    ((ids, size),) = encode_spans(tokenizer, [head], [text])
    assert tokenizer.decode(ids) == head + text
    assert 1 <= size <= len(ids)
    # Whole tokens of the head stay outside, at most the one that reaches into the text goes with it.
    assert len(tokenizer.decode(ids[-size:], errors="replace")) >= 1
    assert ids[: len(ids) - size] == tokenizer(head, add_special_tokens=False)["input_ids"][: len(ids) - size]


def test_a_begin_of_text_token_is_seen_but_not_averaged():
    tokenizer = make_tokenizer(("<s>", "</s>"), None)
    tokenizer.bos_token = "<s>"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    for readout in READOUTS:
        (prompt,) = make_prompts(readout, tokenizer, ["A man"])
        assert prompt.tokens[0] == tokenizer.bos_token_id
        others = [token for place, token in enumerate(prompt.tokens[1:], 1) if place != prompt.placeholder]
        assert tokenizer.bos_token_id not in others
        assert prompt.span < len(prompt.tokens)


@pytest.mark.parametrize("pooling", [mean, weighted_mean, last])
def test_the_weights_of_a_span_sum_to_one_and_belong_to_its_last_tokens(pooling):
    for size in (1, 2, 7, 300):
        weights = pooling(size)
        assert sum(weights) == pytest.approx(1)
        assert 1 <= len(weights) <= size
    assert weights[-1] == max(weights)


def test_steering_leaves_no_hook_behind(made):
    base = made("Llama").base
    before = embed(base, SENTENCES)
    for readout in READOUTS:
        embed(base, SENTENCES, readout=readout, layer=3)
    with pytest.raises(IndexError):
        # An id that the table does not have, in the middle of a steered pass.
        read([("token-prepending", -1)], base.model, [Prompt([9999, 0, 1], placeholder=1)])
    hooks = [m._forward_hooks | m._forward_pre_hooks for m in base.model.modules()]
    assert not any(hooks)
    np.testing.assert_array_equal(embed(base, SENTENCES), before)


@pytest.mark.parametrize("readout", ["contrastive-prompting", "token-prepending", "prompteol"])
def test_threads_that_share_a_model_do_not_meet_in_its_hooks(made, readout):
    base = made("Llama").base
    texts = [[f"A {animal} and {count} more." for animal in ("dog", "cat", "bird")] for count in range(16)]
    expected = [embed(base, batch, readout=readout) for batch in texts]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda batch: embed(base, batch, readout=readout), texts)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("readout", ["contrastive-prompting", "token-prepending", "prompteol"])
def test_a_thread_that_generates_does_not_meet_the_hooks_of_one_that_embeds(made, readout, monkeypatch):
    """Another thread's pass in the middle of ours, when all hooks are in place, is as without them."""
    base = made("Llama").base
    tokens = torch.arange(40)[None]
    plain = hidden_states(base.model, tokens)
    found = []

    def meanwhile(model, **inputs):
        with ThreadPoolExecutor(1) as pool:
            found.append(pool.submit(hidden_states, model, tokens).result())
        return hidden_states(model, **inputs)

    expected = embed(base, SENTENCES, readout=readout)
    for module in ("layers", "contrastive_prompting"):
        monkeypatch.setattr(sys.modules[f"sempa.embedding.readouts.{module}"], "hidden_states", meanwhile)
    np.testing.assert_array_equal(embed(base, SENTENCES, readout=readout), expected)
    assert found
    assert all(torch.equal(states, plain) for states in found)


def test_the_longer_of_two_prompts_must_fit_the_model(made):
    oracle = made("GPT-2")
    limit = oracle.base.model.config.max_position_embeddings
    sentence = "dog"
    while len(make_prompts("contrastive-prompting", oracle.base.tokenizer, [sentence])[0].auxiliary) <= limit:
        sentence += " dog"
    (prompt,) = make_prompts("contrastive-prompting", oracle.base.tokenizer, [sentence])
    assert len(prompt.tokens) <= limit
    embed(oracle.base, [sentence])
    with pytest.raises(SempaError, match=f"sentence 0: has {len(prompt.auxiliary):,} tokens in its prompt"):
        embed(oracle.base, [sentence], readout="contrastive-prompting")


def test_an_architecture_without_a_place_to_steer_is_named(made):
    model = copy.deepcopy(made("Llama").base.model)
    for block in blocks(model):
        block.self_attn.mixer = block.self_attn.o_proj
        del block.self_attn.o_proj
    with pytest.raises(SempaError, match="LlamaForCausalLM: no output projection of the attention heads found"):
        output_projection(model, 0)
    model.model.layers = model.model.layers[:-1]
    with pytest.raises(SempaError, match="LlamaForCausalLM: no list of 5 decoder blocks found"):
        blocks(model)


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


def test_a_shared_prefix_runs_once_a_batch_and_nothing_is_padded(made):
    oracle = made("Llama")
    prefix = len(ids_of(oracle.tokenizer, 'This sentence : "'))
    lengths = [len(ids_of(oracle.tokenizer, eol(text))) for text in CLEAN]
    for size, batches in ((100, 1), (2, 3)):
        counts = rows_into(blocks(oracle.base.model), lambda size=size: embed(oracle.base, SENTENCES, batch_size=size))
        assert counts == [sum(lengths) - prefix * (len(lengths) - batches)] * DEPTH


def test_nothing_runs_that_the_read_states_do_not_depend_on(made):
    oracle = made("Llama")
    projections = [block.mlp.down_proj for block in blocks(oracle.base.model)]
    own = sum(len(ids_of(oracle.tokenizer, text)) for text in BARE)
    for layer, blocks_run in ((5, 5), (2, 2), (-2, 4), (1, 1), (0, 0)):
        counts = rows_into(projections, lambda layer=layer: embed(oracle.base, SENTENCES, readout="last", layer=layer))
        # In the last block that runs, the MLP works for the states that are read.
        wanted = [own] * max(0, blocks_run - 1) + [len(SENTENCES)] * min(1, blocks_run)
        assert counts == wanted + [0] * (DEPTH - blocks_run)


def test_a_row_of_long_sentences_is_cut_before_it_grows_large(made):
    base = made("Llama").base
    sentences = ["a bird sings and " * 40] * 8
    (prompt, *_) = make_prompts("prompteol", base.tokenizer, sentences)
    lengths = []
    hook = blocks(base.model)[0].register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    embed(base, sentences, batch_size=8)
    hook.remove()
    assert len(lengths) > 1
    assert max(lengths) <= 2048
    assert len(prompt.tokens) * 8 > 2048


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
        quick = ["--no-retention", "--builtin-pairs", "30", "--json", json_file]
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


def test_an_unknown_readout_is_refused_before_a_model_is_loaded():
    with pytest.raises(SempaError, match="readout: found 'median', expected one of mean, weighted-mean"):
        Embedder("/nowhere", readout="median")
