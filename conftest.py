"""Tiny models and tokenizers made on the spot: no test waits for a download."""

import csv
import functools
import importlib
import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GraniteConfig, GraniteForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sempa.data.triplets import Triplet

# No test judges time: a busy machine must not turn one red.
settings.register_profile("sempa", deadline=None)
settings.load_profile("sempa")

SHARED = Path(__file__).resolve().parents[1] / "shared" / "data"
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
PEOPLE, ANIMALS = ("man", "woman", "girl", "boy"), ("dog", "cat", "horse", "bird")


@pytest.fixture(autouse=True)
def _private_cache(tmp_path_factory, monkeypatch):
    """Samples of tiny models do not land in the user's cache; the converted default model stays there."""
    if "SEMPA_CACHE" not in os.environ:
        monkeypatch.setattr(
            "sempa.training.base_samples.cache_folder", lambda: tmp_path_factory.getbasetemp() / "cache"
        )


def load_script(path):
    """A program outside the package as a module, which may import what stands beside it."""
    sys.path.insert(0, str(path.parent))
    try:
        return importlib.import_module(path.stem)
    finally:
        sys.path.remove(str(path.parent))


def make_tokenizer(special=("<|im_start|>", "<|im_end|>"), template=CHATML):
    """A byte-level BPE tokenizer in which every text has ids."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([" ".join(t) for t in tiny_texts()], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=special[-1], pad_token=special[-1])
    tokenizer.chat_template = template
    return tokenizer


def tiny_texts():
    return [
        (
            f"A {person} pets a {animal}.",
            f"The {animal} is petted by a {person}.",
            f"The {animal} ignores the {person}.",
        )
        for person in PEOPLE
        for animal in ANIMALS
    ]


@pytest.fixture(scope="session")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="session")
def triplets():
    return [Triplet(*texts, line=i + 2) for i, texts in enumerate(tiny_texts())]


def points(*shape, seed=0, dtype=torch.float64):
    """Drawn from a normal distribution, the same for every `dtype`."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def make_llama(**changes):
    """A two-layer Llama with random weights, the same ones every time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        **changes,
    )
    return LlamaForCausalLM(config).eval()


def write_gguf(path, model):
    """A Llama as a GGUF file, tensor by tensor, with a vocabulary of its own."""
    import gguf

    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    tokens = ["<", "1", "<1", *(f"<{i}>" for i in range(3, config.vocab_size))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_token_merges(["< 1"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    parts = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name not in names:
            _, _, layer, rest = name.split(".", 3)
            names[name] = f"blk.{layer}.{parts[rest.removesuffix('.weight')]}.weight"
        values = tensor.float().numpy()
        for kind, count in heads.items():
            if f".{kind}." in name:
                # llama.cpp interleaves the two halves of each rotary pair.
                shape = values.shape
                values = values.reshape(count, 2, shape[0] // count // 2, shape[1]).swapaxes(1, 2).reshape(shape)
        writer.add_tensor(names[name], values.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def tiny_llama():
    return make_llama().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, tokenizer):
    """A folder that transformers can open: the tiny Llama and a ChatML tokenizer."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    make_llama(initializer_range=0.2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def oracles(tmp_path_factory):
    """name → a tiny model of that architecture as sempa loads it, and as a plain float64 one."""
    from readout_oracle import MODELS, oracle_of, save_model

    @functools.cache
    def make(name):
        folder = tmp_path_factory.mktemp("model")
        config, stack, projection = MODELS[name]
        save_model(config, folder)
        return oracle_of(folder, stack, projection)

    return make


@pytest.fixture
def triplets_file(tmp_path):
    path = tmp_path / "triplets.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("sent0", "sent1", "hard_neg"))
        writer.writerows(tiny_texts())
    return path


# The preference loss on whole batches with an anchor, and nothing beside it.
PREFERENCE_ONLY = {
    "preference": 1.0,
    "preference_fraction": 1.0,
    "anchor": 1.0,
    "contrast": 0.0,
    "retention": 0.0,
    "kl_budget": 0.0,
}
SETTINGS = PREFERENCE_ONLY | {
    "batch_size": 4,
    "epochs": 2.0,
    "eval_every": 3,
    "lora_rank": 2,
    "learning_rate": 1e-2,
    "lora_dropout": 0.2,
}


@pytest.fixture
def setting(tiny_folder, triplets, tmp_path):
    """Start a training on the tiny model: call with a run's name and settings, get its final state."""
    from sempa.batching.prompts import encode_triplet
    from sempa.config import RANKINGS, Config
    from sempa.model.base import load_base
    from sempa.model.lora import add_lora
    from sempa.training.loop import train

    def start(run="run", score=None, **changes):
        config = Config(model=str(tiny_folder), dtype="float32", device="cpu", **SETTINGS | changes)
        base = load_base(config.model, config.dtype, config.device)
        add_lora(base.model, config.lora_rank, config.lora_alpha, config.lora_dropout, config.seed)
        kinds = {"ranking": config.objective in RANKINGS, "one_word": config.contrast > 0}
        preferences = [encode_triplet(base.tokenizer, t, **kinds) for t in triplets]
        scores = iter(score or range(1000))
        (tmp_path / run).mkdir(exist_ok=True)
        return base, train(config, base, preferences, tmp_path / run, lambda: float(next(scores)))

    return start


@pytest.fixture
def few_samples(monkeypatch):
    """A few short samples of the base, in rows of 64 tokens: a tiny model says nothing worth hearing at length."""
    from sempa.training import base_samples

    monkeypatch.setattr(base_samples, "QUESTIONS", base_samples.QUESTIONS[:2])
    monkeypatch.setattr(base_samples, "OPENINGS", base_samples.OPENINGS[:2])
    monkeypatch.setattr(base_samples, "LONGEST", 8)
    monkeypatch.setattr(base_samples, "ROW_TOKENS", 64)


def weights(base):
    """A copy of the adapter's parameters."""
    from sempa.model.lora import lora_parameters

    return {name: p.detach().clone() for name, p in lora_parameters(base.model).items()}


def adapt(model, size):
    """Sharpen a tiny model and give it an adapter of `size`, so that base and policy are decided and differ."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    return with_adapter(model, size)


def with_adapter(model, size):
    """The model with a random adapter of `size`, the same one every time."""
    from sempa.model.lora import add_lora, lora_parameters

    add_lora(model, 2, 4)
    with torch.no_grad():
        for parameter in lora_parameters(model).values():
            parameter.copy_(size * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


def divergences(model, tokens):
    """KL(base ‖ policy) of the next token at each of the tokens, by softmax over full logits in float64: `[n]`."""
    from sempa.model.lora import adapter_disabled

    with torch.no_grad():
        policy = model(torch.tensor([tokens])).logits[0].double().log_softmax(-1)
        with adapter_disabled(model):
            reference = model(torch.tensor([tokens])).logits[0].double().log_softmax(-1)
    return (reference.exp() * (reference - policy)).sum(1)


@pytest.fixture
def adapted_base(tiny_llama, tokenizer):
    """The tiny Llama with an adapter as a base model."""
    from sempa.model.base import BaseModel

    return BaseModel(adapt(tiny_llama, 1.0), tokenizer, "tiny")


@pytest.fixture(scope="session")
def adapted_embedder(tiny_folder):
    """An embedder of the tiny Llama with an adapter."""
    from sempa import Embedder

    embedder = Embedder(str(tiny_folder), dtype="float32", device="cpu")
    with_adapter(embedder.base.model, 0.3)
    return embedder


@pytest.fixture(scope="session")
def address(adapted_embedder):
    """Where a server on that embedder answers."""
    from serving import serving

    with serving(adapted_embedder) as address:
        yield address


@pytest.fixture
def endless(monkeypatch):
    """No token ends an answer of a server that starts now."""
    from sempa.integrations.server import engine

    monkeypatch.setattr(engine, "end_tokens", lambda base: [])


@pytest.fixture
def adapted_granite(tokenizer):
    """A tiny Granite, which scales its logits, with an adapter as a base model."""
    from sempa.model.base import BaseModel

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = GraniteConfig(vocab_size=320, num_key_value_heads=2, logits_scaling=4.0, **shape)
    model = GraniteForCausalLM(config).eval().requires_grad_(False)
    return BaseModel(adapt(model, 0.3), tokenizer, "granite")
