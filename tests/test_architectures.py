"""Each architecture from load to embedding: what sempa makes of it is what transformers and PEFT make of it."""

import copy
import math
import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import PREFERENCE_ONLY, make_llama, make_tokenizer, tiny_texts
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Cohere2Config,
    CohereConfig,
    DeepseekV3Config,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GptOssConfig,
    GraniteConfig,
    HunYuanMoEV1Config,
    JambaConfig,
    Lfm2Config,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    OlmoConfig,
    Phi3Config,
    PhiConfig,
    PhimoeConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
    StableLmConfig,
    Starcoder2Config,
)

from sempa import SempaError
from sempa.batching.batches import make_batch
from sempa.batching.packing import PackedRow, pack_preferences
from sempa.batching.prompts import Preference, encode_one_word, encode_triplet
from sempa.cli import main
from sempa.config import Config
from sempa.data.triplets import Triplet
from sempa.embedding.embed import embed
from sempa.kernels import packed_attention
from sempa.model.base import _close, check_forward, load_base
from sempa.model.forward import attention_window, row_inputs, row_states
from sempa.model.logprobs import sequence_logprobs
from sempa.model.lora import add_lora, lora_parameters
from sempa.training.base_samples import base_samples
from sempa.training.loop import train
from sempa.training.step import train_step

# Weights large enough for every layer to matter to the result.
SMALL = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
HEADS = SMALL | {"head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LAYERS = ["sliding_attention", "full_attention"]
ARCHITECTURES = {
    "Llama": LlamaConfig(**SMALL),
    "Llama, tied head, biases": LlamaConfig(**SMALL, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "SmolLM3": SmolLM3Config(**SMALL, no_rope_layers=[1, 0]),
    "Qwen2": Qwen2Config(**SMALL),
    "Qwen2, window": Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "Qwen3": Qwen3Config(**HEADS),
    "Gemma": GemmaConfig(**HEADS),
    "Gemma2": Gemma2Config(**HEADS, attn_logit_softcapping=2.0, final_logit_softcapping=3.0),
    "Gemma2, window": Gemma2Config(**HEADS, sliding_window=6, layer_types=LAYERS),
    "Gemma3": Gemma3TextConfig(**HEADS, layer_types=LAYERS),
    "Gemma3, window": Gemma3TextConfig(**HEADS, sliding_window=6, layer_types=LAYERS),
    "Mistral": MistralConfig(**HEADS),
    "Mistral, window": MistralConfig(**HEADS, sliding_window=6),
    "Phi": PhiConfig(**SMALL | {"num_key_value_heads": 4}),
    "Phi-3": Phi3Config(**SMALL),
    "Phi-4": Phi3Config(**SMALL, partial_rotary_factor=0.5, tie_word_embeddings=True, sliding_window=6),
    "GPT-2": GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2),
    "OLMo": OlmoConfig(**SMALL, clip_qkv=0.5),
    "OLMo2": Olmo2Config(**SMALL),
    "StableLM": StableLmConfig(**SMALL, qk_layernorm=True, use_parallel_residual=True),
    "Granite": GraniteConfig(**SMALL, logits_scaling=8.0, attention_multiplier=0.2, residual_multiplier=0.5),
    "Cohere": CohereConfig(**SMALL, logit_scale=0.25),
    "Cohere2, window": Cohere2Config(**SMALL, logit_scale=0.25, sliding_window=6),
    "Mixtral": MixtralConfig(**SMALL, num_local_experts=4),
    "Phi-MoE": PhimoeConfig(**SMALL, num_local_experts=4),
    "Qwen2-MoE": Qwen2MoeConfig(**SMALL, **EXPERTS, shared_expert_intermediate_size=16),
    "Qwen3-MoE": Qwen3MoeConfig(**HEADS, **EXPERTS),
    "Hunyuan-MoE": HunYuanMoEV1Config(**HEADS, num_experts=4, moe_topk=2),
    "gpt-oss": GptOssConfig(**HEADS, num_local_experts=4, num_experts_per_tok=2, layer_types=LAYERS),
    "DeepSeek-V3": DeepseekV3Config(
        **SMALL | {"num_key_value_heads": 4},
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        moe_intermediate_size=16,
    ),
    "Bloom": BloomConfig(vocab_size=320, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2),
}
# Where attention is built in, or a sequence exceeds its window, rows are run sequence by sequence.
SEPARATE = {name for name in ARCHITECTURES if "window" in name} | {"Phi-4", "StableLM", "Bloom"}
SENTENCES = ["A man runs.", "Two small dogs are chasing a red ball in the park", "Hi"]


def saved_model(config, folder, tokenizer):
    """A folder with random weights of this config, and the model as sempa loads it."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_base(str(folder), "float32", "cpu")


def example_preferences(count=7, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(length):
        return torch.randint(0, 320, (length,), generator=generator).tolist()

    start = draw(5)
    return [Preference(start + draw(3 + i), (draw(2 + i % 4), draw(1 + (3 * i) % 5)), line=i + 2) for i in range(count)]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.filterwarnings("ignore:.*run in separate rows", "ignore:.*is_gradient_checkpointing")
def test_an_architecture_is_packed_trained_saved_and_embeds_as_in_transformers_and_peft(name, tmp_path, tokenizer):
    peft = pytest.importorskip("peft")
    base = saved_model(ARCHITECTURES[name], tmp_path / "base", tokenizer)
    plain = plain_model(tmp_path / "base")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        packed_equals_separate(base.model, plain, example_preferences())
    assert any("run in separate rows" in str(warning.message) for warning in caught) == (name in SEPARATE)

    add_lora(base.model, 4, 16)
    triplets = [Triplet(*texts) for texts in tiny_texts()[:4]]
    preferences = [encode_triplet(base.tokenizer, triplet) for triplet in triplets]
    config = Config(**PREFERENCE_ONLY, batch_size=2, learning_rate=0.02, held_out=0)
    train(config, base, preferences, tmp_path / "run", lambda: 0.0)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Found missing adapter keys")
        theirs = peft.PeftModel.from_pretrained(plain, tmp_path / "run" / "adapter").eval()
    ids = torch.arange(24)[None] * 7 % 320
    with torch.no_grad():
        base.model.eval()
        logits = base.model(ids).logits
        torch.testing.assert_close(logits, theirs(ids).logits, rtol=2e-4, atol=2e-4)
        with theirs.disable_adapter():
            assert (logits - theirs(ids).logits).abs().max() > 0.01
        for sentence, vector in zip(SENTENCES, embed(base, SENTENCES), strict=True):
            (prompt,) = encode_one_word(base.tokenizer, [sentence])
            states = theirs.base_model.model.base_model(torch.tensor([prompt])).last_hidden_state
            torch.testing.assert_close(torch.from_numpy(vector), states[0, -1], rtol=2e-4, atol=2e-4)


def plain_model(folder):
    """transformers' own, with eager attention: its SDPA does without soft caps in some versions."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def packed_equals_separate(model, plain, examples):
    """Sentence log-probabilities of packed rows against plain transformers on one sequence after the other."""
    with torch.no_grad():
        for packed in pack_preferences(examples, 60):
            together = sequence_logprobs(model, packed)
            for place, index in enumerate(packed.examples):
                begin = len(examples[index].prompt)
                for k, response in enumerate(examples[index].responses):
                    logits = plain(torch.tensor([examples[index].prompt + response])).logits[0].double().log_softmax(-1)
                    alone = sum(logits[begin + t - 1, token].item() for t, token in enumerate(response))
                    assert together[place, k].item() == pytest.approx(alone, rel=2e-5, abs=2e-4)


@pytest.mark.parametrize("name", ["Llama", "Gemma", "GPT-2", "Mistral, window", "Bloom"])
@pytest.mark.filterwarnings("ignore:.*run in separate rows")
def test_gradients_of_a_packed_row_equal_those_of_separate_forwards(name, tmp_path, tokenizer):
    model = saved_model(ARCHITECTURES[name], tmp_path, tokenizer).model.double()
    model.requires_grad_(True)
    examples = example_preferences(4)
    together = torch.zeros((), dtype=torch.float64)
    for packed in pack_preferences(examples, 60):
        signs = torch.tensor([1.0, -1.0], dtype=torch.float64)
        together = together + (sequence_logprobs(model, packed) * signs).sum()
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


@pytest.mark.parametrize(
    "config",
    [
        ARCHITECTURES["GPT-2"],
        # No module for its dropout; and random numbers in the choice of experts.
        Starcoder2Config(**SMALL, residual_dropout=0.1),
        ARCHITECTURES["Phi-MoE"],
    ],
    ids=["GPT-2", "Starcoder2", "Phi-MoE"],
)
def test_a_base_trains_without_dropout_of_its_own(tmp_path, tokenizer, config, few_samples):
    """Policy and reference are one model before the first update, though the architecture has dropout by default."""
    base = saved_model(config, tmp_path, tokenizer)
    add_lora(base.model, 2, 4)
    parameters = lora_parameters(base.model).values()
    settings = PREFERENCE_ONLY | {"anchor": 0.0, "retention": 1.0}
    batch = make_batch(Config(**settings, batch_size=4), example_preferences(4), 0)
    samples = base_samples(base)
    metrics = train_step(Config(**settings), base.model, torch.optim.AdamW(parameters), batch, samples, 0, 10)
    assert metrics["loss"] == pytest.approx(math.log(2), rel=1e-5)
    assert metrics["rewards/margins"] == pytest.approx(0, abs=1e-5)
    assert metrics["neutral_kl"] == pytest.approx(0, abs=1e-6)


def test_packed_attention_is_what_runs(tiny_folder, monkeypatch):
    base = load_base(str(tiny_folder), "float32", "cpu")
    calls = []
    monkeypatch.setattr(
        "sempa.model.forward.packed_attention", lambda *a: calls.append(a[0].shape) or packed_attention(*a)
    )
    (packed,) = pack_preferences(example_preferences(3), 500)
    sequence_logprobs(base.model, packed)
    assert calls == [(len(packed.packed.tokens), 4, 8)] * 2


@pytest.mark.parametrize(
    ("name", "window"),
    [("Mistral, window", 6), ("Gemma3, window", 6), ("Qwen2, window", 6), ("Phi-4", 6), ("Gemma2", 4096)],
)
def test_the_window_of_the_narrowest_layer_counts(name, window):
    assert attention_window(AutoModelForCausalLM.from_config(ARCHITECTURES[name])) == window


def test_a_chunk_of_attention_is_a_window():
    config = Llama4TextConfig(attention_chunk_size=8, num_hidden_layers=4)
    assert attention_window(SimpleNamespace(config=config)) == 8
    # Beside a wider window, and where no list says which layers have it.
    config = LlamaConfig(sliding_window=9, attention_chunk_size=8)
    assert attention_window(SimpleNamespace(config=config)) == 8


def test_a_sequence_as_long_as_the_window_is_packed_and_one_token_more_is_not(tmp_path, tokenizer):
    model = saved_model(ARCHITECTURES["Mistral, window"], tmp_path, tokenizer).model
    for tokens, separate in ((6, False), (7, True)):
        (packed,) = pack_preferences([Preference([3] * (tokens - 2), ([4, 5, 8], [6, 7]))], 60)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            row_states(model, packed.packed)
        assert bool(caught) == separate


@pytest.mark.parametrize("name", ["Llama", "Mistral, window", "Gemma2", "Bloom"])
def test_a_single_sequence_needs_neither_a_mask_nor_a_row_of_its_own(tmp_path, tokenizer, name):
    model, ids = saved_model(ARCHITECTURES[name], tmp_path, tokenizer).model, [3, 4, 5, 8, 6, 9, 200, 31, 12]
    plain = plain_model(tmp_path)
    for cut in (len(ids), 4):
        row = PackedRow()
        row.add(ids[cut:], row.add(ids[:cut]))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            inputs, _ = row_inputs(model, row)
            found = row_states(model, row)
        assert inputs.keys() == {"tokens"}
        wanted = plain.base_model(torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_a_mask_that_an_attention_ignores_is_found_out_and_done_without(tmp_path, tokenizer, monkeypatch):
    from sempa.model import forward

    def deaf(module, query, key, value, mask, scaling=None, prefix_groups=None, **options):
        return forward.sdpa_attention_forward(module, query, key, value, None, scaling=scaling, is_causal=True)

    monkeypatch.setitem(forward.AttentionInterface._global_mapping, "sempa", deaf)
    base = saved_model(ARCHITECTURES["Llama"], tmp_path, tokenizer)
    assert not base.model.takes_block_mask
    plain = plain_model(tmp_path)
    with pytest.warns(UserWarning, match="LlamaForCausalLM takes no block mask"):
        packed_equals_separate(base.model, plain, example_preferences(3))


def test_a_run_tells_once_that_rows_are_separate(tmp_path, tokenizer, triplets_file, capsys):
    """Training, evaluation and generation all meet it."""
    saved_model(ARCHITECTURES["Bloom"], tmp_path / "base", tokenizer)
    config = tmp_path / "config.yaml"
    config.write_text(f"model: {tmp_path / 'base'}\ntriplets: {triplets_file}\nretention: 0\ndtype: float32\n")
    assert main(["train", str(config), f"output={tmp_path / 'run'}"]) == 0
    assert capsys.readouterr().err.count("takes no block mask") == 1


def test_the_command_line_tells_a_warning_in_one_line(tmp_path, tokenizer, capsys):
    saved_model(ARCHITECTURES["Bloom"], tmp_path, tokenizer)
    assert main(["similarity", "--model", str(tmp_path), "--device", "cpu", "a", "b"]) == 0
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "warning" in line)
    assert line.startswith("sempa: warning: ")
    assert line.endswith("slower, the same result")


@pytest.mark.parametrize(
    "config", [MambaConfig, JambaConfig, partial(Lfm2Config, layer_types=["conv", "full_attention"])]
)
def test_recurrent_architectures_are_refused_by_name(config, tmp_path, tokenizer):
    config(vocab_size=320, hidden_size=32, num_hidden_layers=2).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(SempaError, match=r"is (mamba|jamba|lfm2), with recurrent or linear-attention layers"):
        load_base(str(tmp_path))


def test_a_model_that_sees_later_tokens_or_changes_its_logits_or_is_not_finite_is_refused():
    def look_ahead(module, inputs, output):
        output.last_hidden_state = output.last_hidden_state + output.last_hidden_state.mean(1, keepdim=True)

    def shift(module, inputs, output):
        output.logits = output.logits.roll(1, -1)

    model = make_llama(initializer_range=0.2)
    assert check_forward(model)
    for part, hook in ((model.model, look_ahead), (model, shift)):
        handle = part.register_forward_hook(hook)
        with pytest.raises(SempaError, match="needs a causal model with a plain head"):
            check_forward(model)
        handle.remove()

    def spoil(module, inputs, output):
        output.last_hidden_state[0, -3] = torch.nan

    handle = model.model.register_forward_hook(spoil)
    with pytest.raises(SempaError, match="not finite"):
        check_forward(model)
    handle.remove()
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[0, 0] = torch.nan
    with pytest.raises(SempaError, match="not finite"):
        check_forward(model)


def test_one_token_of_several_may_differ_but_not_most():
    expected = torch.eye(5)
    for wrong, same in ((1, True), (3, False)):
        found = expected.clone()
        found[:wrong] += 1
        assert _close(found, expected, torch.float32) == same


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    tokenizer = make_tokenizer()

    def load(rows, added=""):
        model, tokens = make_llama(), copy.deepcopy(tokenizer)
        model.resize_token_embeddings(rows)
        if added:
            tokens.add_tokens([added], special_tokens=True)
        model.save_pretrained(tmp_path)
        tokens.save_pretrained(tmp_path)
        return load_base(str(tmp_path), "float32", "cpu")

    with pytest.raises(SempaError, match="the tokenizer's largest id is 304 and the model has 300 token embeddings"):
        load(300)
    load(305, "[PAD]")
    tokenizer.chat_template += "{# [PAD] #}"
    with pytest.raises(SempaError, match="they are of different models, or the embeddings were not resized"):
        load(305, "[PAD]")
    load(305)
    load(400)
    # What begins or ends texts needs an embedding.
    for role in ("bos_token", "eos_token"):
        tokenizer = make_tokenizer()
        setattr(tokenizer, role, "[NEW]")
        with pytest.raises(SempaError, match="the tokenizer's largest id is 305"):
            load(305)


def test_a_models_own_code_is_never_run(tmp_path, tokenizer):
    make_llama().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    text = config.read_text().replace('"model_type": "llama"', '"model_type": "mine"')
    config.write_text(text.replace("{", '{"auto_map": {"AutoConfig": "code.Mine"},', 1))
    (tmp_path / "code.py").write_text("raise SystemExit('the code ran')")
    with pytest.raises(SempaError, match="comes with code of its own, which sempa does not run"):
        load_base(str(tmp_path))
