"""GGUF exports: a real llama.cpp gives sempa's vectors and token ids; what cannot be written is said in a sentence."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from conftest import load_script, make_llama, make_tokenizer
from exporting import make_adapter
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from sempa import Embedder, SempaError
from sempa.cli import main
from sempa.export.folders import export_folder
from sempa.export.gguf import _LLAMA3, KINDS, write_gguf
from sempa.io.files import read_json
from sempa.model.adapter_files import load_adapter, save_adapter
from sempa.model.base import BaseModel, load_base
from sempa.model.lora import add_lora

peers = load_script(Path(__file__).resolve().parents[1] / "experiments" / "exports" / "peers.py")
# Long enough for a stretched rotation to matter.
SENTENCES = [*peers.SENTENCES, "and so on, " * 20 + "until the end"]
SCALED = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "stretched": {"rope_parameters": SCALED, "head_dim": 16, "rms_norm_eps": 1e-5},
}
# llama.cpp keeps keys and values in 16 bits, and multiplies an 8-bit matrix by 8-bit activations, whose rounding a
# model of width 32 averages out less than a real one.
NEAR = {"f32": 0.99998, "f16": 0.99998, "q8_0": 0.99, "lora": 0.99998}


def write_base(folder, **changes):
    make_llama(initializer_range=0.2, **changes).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=MODELS)
def exported(request, tmp_path_factory):
    """A folder with a base, an adapter that matters, and every kind of GGUF; `plain` is the base itself."""
    folder = tmp_path_factory.mktemp(request.param)
    base = write_base(folder / "base", **MODELS[request.param])
    make_adapter(load_base(base, "float32", "cpu").model, folder / "adapter", base)
    for kind in KINDS:
        export_folder(base, folder / "adapter", folder / kind, kind)
    model = load_base(base, "float32", "cpu").model
    add_lora(model, 2, 8)
    save_adapter(model, folder / "nothing", base)
    export_folder(base, folder / "nothing", folder / "plain", "f32")
    return folder


def llama_cpp(*files):
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed: pip install xllamacpp")
    return peers.LlamaCpp(*files)


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_gives_sempas_vectors(kind, exported):
    template = exported / kind / "prompteol.jinja"
    if kind == "lora":
        server = llama_cpp(exported / "plain" / "plain-f32.gguf", template, exported / kind / "lora-lora.gguf")
    else:
        server = llama_cpp(exported / kind / f"{kind}-{kind}.gguf", template)
    found = server.embed(SENTENCES)
    base, adapter = str(exported / "base"), exported / "adapter"
    assert peers.smallest_cosine(Embedder(base, adapter, dtype="float32").encode(SENTENCES), found) >= NEAR[kind]
    assert peers.smallest_cosine(Embedder(base, dtype="float32").encode(SENTENCES), found) < 0.9


def test_the_comparison_is_of_what_other_tools_read(exported, tmp_path, monkeypatch, capsys):
    pytest.importorskip("xllamacpp", reason="llama.cpp is not installed: pip install xllamacpp")
    base = load_base(str(exported / "base"), "float32", "cpu")
    load_adapter(base.model, exported / "adapter")
    save_adapter(base.model, tmp_path, str(exported / "base"), "attention-sum")
    monkeypatch.setattr("sys.argv", ["peers.py", str(tmp_path)])
    peers.main()
    cosines = [float(line.rsplit(" ", 1)[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(cosines) == 4
    assert min(cosines) >= NEAR["q8_0"]


def test_the_same_file_chats_through_the_models_own_template(exported):
    server = llama_cpp(exported / "f32" / "f32-f32.gguf", None)
    messages = [{"role": "user", "content": "Hello."}]
    filled = server.post("/apply-template", {"messages": messages})["prompt"]
    tokenizer = make_tokenizer()
    assert filled == tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    answer = server.post("/v1/chat/completions", {"messages": messages, "max_tokens": 3, "temperature": 0})
    assert answer["usage"]["prompt_tokens"] == len(tokenizer(filled)["input_ids"])


def test_the_file_holds_the_merged_weights_and_what_a_reader_must_know(exported):
    base, adapter = str(exported / "base"), exported / "adapter"
    if not (exported / "merged").exists():
        export_folder(base, adapter, exported / "merged", "merged", "float32")
    merged = load_file(exported / "merged" / "model.safetensors")
    reader = gguf.GGUFReader(exported / "f32" / "f32-f32.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["llama.pooling_type"] == gguf.PoolingType.LAST
    assert fields["tokenizer.chat_template"] == make_tokenizer().chat_template
    assert fields["tokenizer.ggml.pre"] == "gpt-2"
    tokenizer = make_tokenizer()
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert fields["tokenizer.ggml.padding_token_id"] == tokenizer.pad_token_id
    assert fields["tokenizer.ggml.add_space_prefix"] is fields["tokenizer.ggml.add_bos_token"] is False
    assert (fields["general.name"], fields["llama.context_length"]) == ("f32", 2048)
    config = AutoConfig.from_pretrained(base)
    written = {
        "general.quantization_version": gguf.GGML_QUANT_VERSION,
        "llama.vocab_size": config.vocab_size,
        "llama.embedding_length": config.hidden_size,
        "llama.block_count": config.num_hidden_layers,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.value_length": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.dimension_count": config.head_dim,
        "llama.rope.freq_base": config.rope_parameters["rope_theta"],
    }
    assert {name: fields[name] for name in written} == pytest.approx(written)
    alone = gguf.GGUFReader(exported / "lora" / "lora-lora.gguf")
    assert alone.fields["adapter.lora.alpha"].contents() == read_json(adapter / "adapter_config.json")["lora_alpha"]
    types = gguf.LlamaFileType
    for kind, wanted in (("f32", types.ALL_F32), ("f16", types.MOSTLY_F16), ("q8_0", types.MOSTLY_Q8_0)):
        file = exported / kind / f"{kind}-{kind}.gguf"
        assert gguf.GGUFReader(file).fields["general.file_type"].contents() == wanted
    stored = {tensor.name: tensor.data for tensor in reader.tensors}
    assert np.array_equal(stored["blk.1.ffn_up.weight"], merged["model.layers.1.mlp.up_proj.weight"])
    # Neighbouring rows of a head in the file are the rows of its two halves.
    keys = merged["model.layers.0.self_attn.k_proj.weight"].numpy()
    half = keys.shape[0] // 2 // 2
    for row in range(half):
        assert np.array_equal(stored["blk.0.attn_k.weight"][2 * row], keys[row])
        assert np.array_equal(stored["blk.0.attn_k.weight"][2 * row + 1], keys[half + row])
    assert ("output.weight" in stored) == ("lm_head.weight" in merged)
    assert ("rope_freqs.weight" in stored) == ("stretched" in exported.name)


PRE_TOKENIZERS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "llama-bpe": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}
TEXTS = [
    "In 2024, 12345 dogs' toys weren't  sold;\n\n they'LL  be ² ³ free…   ",
    "tabs\tand\r\nlines 我们看着 naïve café №7",
    "a1b22c333d4444 100,000.50 x²+y² 😀😀",
]


def bpe(cut, ignore_merges):
    inner = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    inner.pre_tokenizer, inner.decoder = cut, decoders.ByteLevel()
    # One merge of digits, so that cutting numbers differently shows.
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator([*TEXTS, "1234 2345 the dogs weren't sold  12 23 34 22 33 44"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<|begin|>", eos_token="<|end|>")


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_llama_cpp_cuts_a_text_into_the_same_tokens(name, tmp_path):
    tokenizer = bpe(PRE_TOKENIZERS[name], name == "llama-bpe")
    model = make_llama(initializer_range=0.2)
    model.resize_token_embeddings(len(tokenizer) + 8)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    base = str(tmp_path / "base")
    make_adapter(load_base(base, "float32", "cpu").model, tmp_path / "adapter", base)
    export_folder(base, tmp_path / "adapter", tmp_path / "out", "f16")
    path = tmp_path / "out" / "out-f16.gguf"
    assert gguf.GGUFReader(path).fields["tokenizer.ggml.pre"].contents() == name
    server = llama_cpp(path, None)
    for text in TEXTS:
        assert server.post("/tokenize", {"content": text})["tokens"] == tokenizer(text)["input_ids"]


def write_gpt2(folder):
    config = GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4)
    GPT2LMHeadModel(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return str(folder)


def test_another_architecture_is_sent_to_the_converter(tmp_path):
    base = write_gpt2(tmp_path / "base")
    make_adapter(load_base(base, "float32", "cpu").model, tmp_path / "adapter", base)
    with pytest.raises(SempaError, match=r"is gpt2, .*sentencepiece.*--merge RUN FOLDER.*convert_hf_to_gguf.py FOLDER"):
        export_folder(base, tmp_path / "adapter", tmp_path / "out", "f16")
    with pytest.raises(SempaError, match=r"--base RUN FOLDER.*convert_lora_to_gguf.py RUN/adapter --base FOLDER"):
        export_folder(base, tmp_path / "adapter", tmp_path / "out", "lora")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0}},
    ],
)
def test_a_llama_that_a_file_has_no_place_for_is_refused(changes, tmp_path):
    base = write_base(tmp_path / "base", **changes)
    make_adapter(load_base(base, "float32", "cpu").model, tmp_path / "adapter", base)
    with pytest.raises(SempaError, match=r"plain Llamas only; use llama.cpp's converter"):
        export_folder(base, tmp_path / "adapter", tmp_path / "out", "f16")


# Llama 3 alone takes words whole that its merges do not make.
@pytest.mark.parametrize(
    ("cut", "ignore_merges"), [(pre_tokenizers.Whitespace(), False), (PRE_TOKENIZERS["gpt-2"], True)]
)
def test_another_tokenizer_is_sent_to_the_converter(tmp_path, cut, ignore_merges):
    base = write_base(tmp_path / "base")
    bpe(cut, ignore_merges).save_pretrained(tmp_path / "base")
    model = make_llama()
    model.resize_token_embeddings(400)
    model.save_pretrained(tmp_path / "base")
    make_adapter(load_base(base, "float32", "cpu").model, tmp_path / "adapter", base)
    with pytest.raises(SempaError, match=r"gguf: the base's tokenizer .*convert_hf_to_gguf.py FOLDER"):
        export_folder(base, tmp_path / "adapter", tmp_path / "out", "f16")


def test_a_tokenizer_that_changes_a_text_is_sent_to_the_converter(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(SempaError, match=r"gguf: the base's tokenizer .*convert_hf_to_gguf.py FOLDER"):
        write_gguf(tmp_path / "a.gguf", BaseModel(make_llama(), tokenizer, "tiny"), "tiny", "f16")


def test_a_matrix_whose_rows_are_no_whole_blocks_is_f16_in_a_q8_0_file(tmp_path):
    # Blocks of a q8_0 matrix have 32 numbers.
    base = write_base(tmp_path / "base")
    config = AutoConfig.from_pretrained(base, intermediate_size=72)
    LlamaForCausalLM(config).save_pretrained(base)
    make_adapter(load_base(base, "float32", "cpu").model, tmp_path / "adapter", base)
    export_folder(base, tmp_path / "adapter", tmp_path / "out", "q8_0")
    types = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "out/out-q8_0.gguf").tensors}
    assert types["blk.0.ffn_down.weight"] == "F16"
    assert types["blk.0.ffn_up.weight"] == "Q8_0"


@pytest.mark.parametrize(("kind", "factor"), [("f16", 1.01), ("q8_0", 1.05)])
def test_a_file_that_came_out_wrong_is_not_left_there(kind, factor, tmp_path, monkeypatch):
    base = write_base(tmp_path / "base")
    make_adapter(load_base(base, "float32", "cpu").model, tmp_path / "adapter", base)
    right = gguf.quantize
    monkeypatch.setattr(gguf, "quantize", lambda data, kind: right(factor * data, kind))
    with pytest.raises(SempaError, match=f"could not be written as {kind}: read back, it is not what it was"):
        export_folder(base, tmp_path / "adapter", tmp_path / "out", kind)
    assert not (tmp_path / "out").exists()


def test_the_command_and_its_card(tmp_path, capsys):
    base = write_base(tmp_path / "base")
    make_adapter(load_base(base, "float32", "cpu").model, tmp_path / "adapter", base)
    adapter = str(tmp_path / "adapter")
    assert main(["export", "--gguf", "q8_0", adapter, str(tmp_path / "mine")]) == 0
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == [
        "README.md",
        "mine-q8_0.gguf",
        "prompteol.jinja",
    ]
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "llama-server -m mine/mine-q8_0.gguf --embeddings --pooling last" in card
    assert "--chat-template-file mine/prompteol.jinja" in card
    assert main(["export", "--gguf", "lora", adapter, str(tmp_path / "alone")]) == 0
    card = (tmp_path / "alone" / "README.md").read_text()
    assert "llama-server -m BASE.gguf --lora alone/alone-lora.gguf" in card
    assert "the adapter alone, to be put on a GGUF file of base" in card
    capsys.readouterr()
    assert main(["export", "--gguf", "int4", adapter, "out"]) == 2
    assert "--gguf: invalid choice: 'int4'" in capsys.readouterr().err


def test_a_padding_token_without_an_embedding_is_left_out(tmp_path):
    base = write_base(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    rows = make_llama().config.vocab_size
    while tokenizer.pad_token_id < rows:
        tokenizer.add_tokens([f"<filler {len(tokenizer)}>"])
        tokenizer.add_special_tokens({"pad_token": f"[PAD{len(tokenizer)}]"})
    tokenizer.save_pretrained(base)
    make_adapter(load_base(base, "float32", "cpu").model, tmp_path / "adapter", base)
    export_folder(base, tmp_path / "adapter", tmp_path / "out", "f32")
    (file,) = (tmp_path / "out").glob("*.gguf")
    fields = gguf.GGUFReader(file).fields
    assert len(fields["tokenizer.ggml.tokens"].data) == rows
    assert "tokenizer.ggml.padding_token_id" not in fields


def test_rows_without_a_token_are_unused(tmp_path):
    model, tokenizer = make_llama(), make_tokenizer()
    model.resize_token_embeddings(len(tokenizer) + 3)
    write_gguf(tmp_path / "a.gguf", BaseModel(model, tokenizer, "tiny"), "tiny", "f16")
    types = gguf.GGUFReader(tmp_path / "a.gguf").fields["tokenizer.ggml.token_type"].contents()
    assert types[-3:] == [gguf.TokenType.UNUSED] * 3


def test_an_added_token_that_is_no_control_token_is_the_users(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["Q"])
    for part in (make_llama(), tokenizer):
        part.save_pretrained(tmp_path / "base")
    make_adapter(load_base(str(tmp_path / "base"), "float32", "cpu").model, tmp_path / "adapter", tmp_path / "base")
    export_folder(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "f32", "f32")
    types = gguf.GGUFReader(tmp_path / "f32" / "f32-f32.gguf").fields["tokenizer.ggml.token_type"].contents()
    kinds = [types[tokenizer.convert_tokens_to_ids(token)] for token in ("Q", "R", "<|im_end|>")]
    assert kinds == [gguf.TokenType.USER_DEFINED, gguf.TokenType.NORMAL, gguf.TokenType.CONTROL]


def test_a_file_says_whether_a_text_begins_with_a_token(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.bos_token = "<|im_start|>"
    begin = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)])
    for begins in (False, True):
        if begins:
            tokenizer.backend_tokenizer.post_processor = begin
        write_gguf(tmp_path / "a.gguf", BaseModel(make_llama(), tokenizer, "tiny"), "tiny", "f16")
        assert gguf.GGUFReader(tmp_path / "a.gguf").fields["tokenizer.ggml.add_bos_token"].contents() == begins
