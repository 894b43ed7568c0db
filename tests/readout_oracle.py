"""Every readout in plain transformers: one sentence, one float64 forward pass, hooks where the readout steers."""

import copy
from types import SimpleNamespace

import numpy as np
import torch
from conftest import make_tokenizer
from hypothesis import strategies as st
from safetensors.torch import load_file
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

from sempa.embedding.embed import embed
from sempa.model.adapter_files import load_adapter
from sempa.model.base import load_base

SENTENCES = ["A man runs", 'He said  "two very small dogs" are chasing a red ball', "Hi", "Who is it?", "A man runs"]
CLEAN = ["A man runs.", "He said 'two very small dogs' are chasing a red ball.", "Hi.", "Who is it.", "A man runs."]
BARE = ["A man runs", 'He said "two very small dogs" are chasing a red ball', "Hi", "Who is it?", "A man runs"]
EXAMPLE = 'This sentence : "A man is smoking." means in one word:"Smoking".'
TEXTS = st.text(min_size=1, max_size=30).filter(lambda text: text.strip())

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
    assert readout == "token-prepending", f"no oracle for {readout}"
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
