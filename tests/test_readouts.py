"""Every readout against plain transformers: one sentence, one forward pass, hooks where the readout steers."""

import copy
import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import make_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import normalizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    Glm4Config,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
)

from sempa.batching.packing import PackedRow, pack_sentence_rows
from sempa.cli import main
from sempa.embedding.embed import embed
from sempa.embedding.readouts import READOUTS, check_readout, make_prompts, read
from sempa.embedding.readouts.plain import Prompt, encode_spans
from sempa.errors import SempaError
from sempa.model.adapter_files import load_adapter, save_adapter
from sempa.model.base import load_base
from sempa.model.forward import hidden_states
from sempa.model.layers import attention_sum, blocks
from sempa.model.lora import add_lora, lora_parameters

SENTENCES = ["A man runs", 'He said  "two very small dogs" are chasing a red ball', "Hi", "Who is it?", "A man runs"]
CLEAN = ["A man runs.", "He said 'two very small dogs' are chasing a red ball.", "Hi.", "Who is it.", "A man runs."]
BARE = ["A man runs", 'He said "two very small dogs" are chasing a red ball', "Hi", "Who is it?", "A man runs"]
EXAMPLE = 'This sentence : "A man is smoking." means in one word:"Smoking".'

HOOKED = ("contrastive-prompting", "token-prepending", "attention-sum")

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
        attention=projection.rpartition(".")[0],
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
    layer = published if layer is None else layer % (depth + 1)
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
    if readout == "attention-sum":
        return summed(oracle, eol(clean))
    if readout == "contrastive-prompting":
        return contrastive(oracle, clean, layer)
    return prepended(oracle, clean, layer)


@torch.no_grad()
def summed(oracle, text):
    return summed_with_gradient(oracle, text)


def summed_with_gradient(oracle, text):
    """Σ_l of what each block's attention adds to the residual at the last position."""
    outputs = []
    if "Gemma" in type(oracle.plain).__name__:
        # A norm stands between the two: what the MLP's own norm gets, less what the block got.
        before = [block.register_forward_pre_hook(lambda _, x: outputs.append(-x[0][0, -1])) for block in oracle.stack]
        norms = [block.pre_feedforward_layernorm for block in oracle.stack]
        between = [norm.register_forward_pre_hook(lambda _, x: outputs.append(x[0][0, -1])) for norm in norms]
        oracle.plain(torch.tensor([ids_of(oracle.tokenizer, text)]))
        for hook in before + between:
            hook.remove()
        assert len(outputs) == 2 * oracle.depth
        return sum(outputs)

    def keep(_, inputs, kwargs, output):
        output = output[0] if isinstance(output, tuple) else output
        # Bloom's attention adds the residual itself.
        residual = inputs[1] if "Bloom" in type(oracle.plain).__name__ else 0
        outputs.append((output - residual)[0, -1])

    modules = [block.get_submodule(oracle.attention) for block in oracle.stack]
    hooks = [module.register_forward_hook(keep, with_kwargs=True) for module in modules]
    oracle.plain(torch.tensor([ids_of(oracle.tokenizer, text)]))
    for hook in hooks:
        hook.remove()
    assert len(outputs) == oracle.depth
    return sum(outputs)


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


@pytest.mark.parametrize("readout", [readout for readout in READOUTS if readout != "attention-sum"])
@pytest.mark.parametrize("layer", [0, 1, 2, -2, 4, 5])
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


def test_a_placeholder_is_as_large_as_the_models_own_embeddings(made):
    """Gemma multiplies them by the root of their width."""
    base, seen = made("Gemma3").base, []
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


def count_hooks(model):
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())


def test_readouts_leave_no_hook_behind(made):
    base = made("Llama").base
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
def test_threads_that_share_a_model_do_not_meet_in_its_hooks(made, readout):
    base = made("Llama").base
    texts = [[f"A {animal} and {count} more." for animal in ("dog", "cat", "bird")] for count in range(16)]
    expected = [embed(base, batch, readout=readout) for batch in texts]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda batch: embed(base, batch, readout=readout), texts)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("readout", [*HOOKED, "prompteol"])
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

    expected = embed(base, SENTENCES, layer=-1 if readout == "attention-sum" else DEPTH, readout=readout)
    for module in ("model.forward", "model.layers", "embedding.readouts.steered"):
        monkeypatch.setattr(f"sempa.{module}.hidden_states", meanwhile)
    layer = -1 if readout == "attention-sum" else DEPTH
    np.testing.assert_array_equal(embed(base, SENTENCES, layer=layer, readout=readout), expected)
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


def test_an_architecture_without_a_place_to_hook_is_named(made):
    base = dataclasses.replace(made("Llama").base, model=copy.deepcopy(made("Llama").base.model))
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


def test_the_attention_sum_has_no_layer_to_choose(made):
    with pytest.raises(SempaError, match="layer: found 3, expected none: attention-sum adds up the outputs of all"):
        embed(made("Llama").base, SENTENCES, readout="attention-sum", layer=3)


def test_a_norm_behind_the_attention_is_part_of_what_glm_4_adds(tmp_path):
    save_model(Glm4Config(**SMALL, num_hidden_layers=2, head_dim=8, pad_token_id=0), tmp_path)
    oracle, added = oracle_of(tmp_path), []
    for block in oracle.stack:
        block.post_self_attn_layernorm.register_forward_hook(lambda _, __, output: added.append(output[0, -1]))
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
def test_the_attention_sum_of_a_row_has_the_gradient_of_separate_passes(made, name):
    """In training: the gradient of a loss of e = Σ_l o_l to the weights of every block, against plain autograd."""
    oracle = made(name)
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
    base = load_base(str(tiny_folder), "bfloat16", "cpu", emulate=True)
    found = torch.from_numpy(embed(base, SENTENCES[:1], readout=readout))
    # It has more digits than bfloat16.
    assert not torch.equal(found, found.bfloat16().float())
