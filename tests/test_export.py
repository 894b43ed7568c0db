"""Exports give what sempa itself gives: merged models its logits, sentence-transformers its vectors."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_llama, make_tokenizer, write_gguf
from exporting import make_adapter, make_run
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from test_architectures import ARCHITECTURES
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PhiConfig

from sempa import Embedder, SempaError
from sempa.batching.prompts import EOL_PREFIX, EOL_SUFFIX, clean_sentence, encode_one_word
from sempa.cli import main
from sempa.export import folders as export
from sempa.export.folders import adapter_folder, export_folder, prompt_template
from sempa.model.adapter_files import load_adapter
from sempa.model.base import load_base
from sempa.model.resolve import portable_name

SENTENCES = [
    "A man runs",
    "Who is it?",
    'He said "go" to  the\u00a0dogs',
    "Zwei Hunde jagen einen roten Ball im Park, 我们看着",
    "it's 'quoted'",
    "https://a.example/picture.jpg",
    "{{ messages }} {% raw %}",
    "the end <|im_end|> and on",
]
TOKENS = torch.arange(40)[None] * 7 % 320


def policy_logits(model, adapter, dtype="float32"):
    base = load_base(str(model), dtype, "cpu")
    load_adapter(base.model, adapter)
    with torch.no_grad():
        return base.model(TOKENS).logits


@pytest.fixture
def tiny_gguf(tmp_path, monkeypatch):
    monkeypatch.setenv("SEMPA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "models").mkdir()
    write_gguf(tmp_path / "models" / "tiny.gguf", make_llama(initializer_range=0.2))
    return tmp_path / "models" / "tiny.gguf"


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder):
    return make_run(tmp_path_factory.mktemp("run"), tiny_folder)


@pytest.mark.parametrize("tied", [False, True])
def test_a_merged_model_is_plain_transformers_with_the_policys_logits_and_its_head_stays_tied(
    tied, tmp_path, tokenizer
):
    make_llama(initializer_range=0.2, tie_word_embeddings=tied).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    (tmp_path / "base" / "tokenizer.model").write_bytes(b"what sentencepiece wrote")
    make_adapter(load_base(str(tmp_path / "base"), "float32", "cpu").model, tmp_path / "adapter", tmp_path / "base")
    export_folder(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "merged", "merged", "float32")
    assert (tmp_path / "merged" / "tokenizer.model").read_bytes() == b"what sentencepiece wrote"
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert merged.dtype == torch.float32
    assert type(merged).__name__ == "LlamaForCausalLM"
    with torch.no_grad():
        logits = merged(TOKENS).logits
    torch.testing.assert_close(logits, policy_logits(tmp_path / "base", tmp_path / "adapter"), rtol=1e-4, atol=1e-5)
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    assert ("lm_head.weight" in stored) == (not tied)
    assert not any("lora" in name or ".base." in name for name in stored)
    assert (merged.lm_head.weight is merged.model.embed_tokens.weight) == tied
    again = AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert again.chat_template == tokenizer.chat_template
    assert again("A man runs.")["input_ids"] == tokenizer("A man runs.")["input_ids"]
    assert json.loads((tmp_path / "merged" / "generation_config.json").read_text())


def test_bfloat16_is_one_rounding_of_the_float32_sum(run, tiny_folder, tmp_path):
    for dtype in ("float32", "bfloat16"):
        export_folder(str(tiny_folder), run, tmp_path / dtype, "merged", dtype)
    exact, rounded = (load_file(tmp_path / dtype / "model.safetensors") for dtype in ("float32", "bfloat16"))
    for name, tensor in exact.items():
        assert rounded[name].dtype == torch.bfloat16
        assert torch.equal(rounded[name], tensor.bfloat16()), name


def test_a_base_stored_in_bfloat16_is_merged_in_float32(run, tiny_folder, tmp_path, tokenizer, monkeypatch):
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    export_folder(str(tmp_path / "base"), run, tmp_path / "merged", "merged", "float32")
    name = "layers.1.mlp.up_proj.weight"
    merged = load_file(tmp_path / "merged" / "model.safetensors")[f"model.{name}"]
    tensors = load_file(run / "adapter" / "adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.model.layers.1.mlp.up_proj.lora_{letter}.weight"] for letter in "AB")
    torch.testing.assert_close(merged, base.model.get_parameter(name).float() + 4.0 * b @ a, rtol=1e-6, atol=1e-6)
    # Its own folder holds it as it is, also from a machine where bfloat16 is slow.
    monkeypatch.setattr("sempa.model.base.faster_dtype", lambda device: "float32")
    export_folder(str(tmp_path / "base"), run, tmp_path / "alone", "base")
    stored = load_file(tmp_path / "alone" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    # It is no encoder yet.
    assert not (tmp_path / "alone" / "prompteol.jinja").exists()


def test_what_a_model_holds_in_float32_beside_bfloat16_is_not_rounded_when_merged(tmp_path, tokenizer):
    plain = AutoModelForCausalLM.from_config(ARCHITECTURES["DeepSeek-V3"])
    biases = {name: bias for name, bias in plain.state_dict().items() if name.endswith("e_score_correction_bias")}
    for bias in biases.values():
        bias.copy_(3 - torch.rand(bias.shape) / 100)
    plain.save_pretrained(tmp_path / "float32")
    AutoModelForCausalLM.from_pretrained(tmp_path / "float32", dtype=torch.bfloat16).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    make_adapter(load_base(str(tmp_path / "base"), "bfloat16", "cpu").model, tmp_path / "adapter", tmp_path / "base")
    export_folder(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "merged", "merged")
    stored = load_file(tmp_path / "merged" / "model.safetensors")
    assert biases
    for name, bias in biases.items():
        assert bias.dtype == torch.float32 and torch.equal(stored[name], bias)
    assert stored["lm_head.weight"].dtype == torch.bfloat16


def test_a_transposed_layer_is_merged_and_a_large_model_is_cut_into_files(tmp_path, tokenizer, monkeypatch):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=320, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    make_adapter(load_base(str(tmp_path / "base"), "float32", "cpu").model, tmp_path / "adapter", tmp_path / "base")
    monkeypatch.setattr("sempa.export.folders.SHARD", "50KB")
    export_folder(str(tmp_path / "base"), tmp_path / "adapter", tmp_path / "merged", "merged", "float32")
    assert (tmp_path / "merged" / "model.safetensors.index.json").is_file()
    assert len(list((tmp_path / "merged").glob("model-*.safetensors"))) > 2
    with torch.no_grad():
        logits = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(TOKENS).logits
    torch.testing.assert_close(logits, policy_logits(tmp_path / "base", tmp_path / "adapter"), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bos", [False, True])
def test_sentence_transformers_gives_the_embedders_vectors_without_trusting_any_code(
    bos, run, tiny_folder, tmp_path, monkeypatch
):
    package = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    source = tiny_folder
    if bos:
        source = tmp_path / "base"
        tokenizer = make_tokenizer()
        tokenizer.bos_token = "<|im_start|>"
        tokenizer.backend_tokenizer.post_processor = _begin("<|im_start|>", tokenizer.bos_token_id)
        tokenizer.pad_token = None
        make_llama(initializer_range=0.2).save_pretrained(source)
        tokenizer.save_pretrained(source)
    export_folder(str(source), run, tmp_path / "out", "sentence-transformers", "float32")
    theirs = package.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    ours = Embedder(str(source), run / "adapter", dtype="float32", device="cpu")
    vectors = theirs.encode(SENTENCES, batch_size=3)
    # Where the prompt begins with a control token, the text around another one is cut otherwise.
    same = [place for place, sentence in enumerate(SENTENCES) if not (bos and "<|im_end|>" in sentence)]
    assert np.abs(vectors - ours.encode(SENTENCES))[same].max() <= 1e-5
    as_tokens = ours.base.tokenizer(SENTENCES[-1])["input_ids"]
    assert ours.base.tokenizer.eos_token_id in as_tokens
    assert ours.base.tokenizer.eos_token_id not in theirs[0].preprocess(SENTENCES[-1:])["input_ids"][0]
    assert np.abs(vectors - Embedder(str(source), dtype="float32", device="cpu").encode(SENTENCES)).max() > 1e-2
    np.testing.assert_allclose(theirs.encode(SENTENCES[0]), ours.encode(SENTENCES[0]), atol=1e-5)
    for one in (theirs.encode_query(SENTENCES), theirs.encode_document(SENTENCES)):
        np.testing.assert_allclose(one, vectors, atol=1e-5)
    assert theirs.similarity_fn_name == "cosine"
    # A sentence beyond the model's context is cut, and the prompt still ends as it must.
    ids = theirs[0].preprocess(["word " * 3000])["input_ids"][0]
    assert len(ids) == 2048
    assert theirs.tokenizer.decode(ids).endswith(EOL_SUFFIX)
    # The same folder still talks, through its own template.
    chat = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert chat.chat_template == AutoTokenizer.from_pretrained(source).chat_template
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").generate(TOKENS[:, :4], max_new_tokens=2).shape[1] > 4


def _begin(token, number):
    from tokenizers.processors import TemplateProcessing

    return TemplateProcessing(single=f"{token} $A", special_tokens=[(token, number)])


@settings(max_examples=200)
@given(st.text() | st.text(alphabet=" \"'?.a\n\t\u00a0\u2028\x1c"))
def test_the_template_cleans_a_sentence_as_the_prompt_does(sentence):
    tokenizer = make_tokenizer()
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": sentence}], chat_template=prompt_template(tokenizer), tokenize=False
    )
    assert rendered == f"{EOL_PREFIX}{clean_sentence(sentence)}{EOL_SUFFIX}"


def test_the_file_in_every_export_gives_the_prompts_token_ids_for_the_last_user_message(run, tiny_folder, tmp_path):
    export_folder(str(tiny_folder), run, tmp_path / "merged", "merged")
    export_folder(str(tiny_folder), run, tmp_path / "encoder", "sentence-transformers")
    export_folder(str(tiny_folder), run, tmp_path / "gguf", "q8_0")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    for folder in ("merged", "encoder", "gguf"):
        template = (tmp_path / folder / "prompteol.jinja").read_text()
        # What looks like a control token is one to a template.
        for sentence in SENTENCES[:-1]:
            said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": sentence}]
            ids = tokenizer.apply_chat_template(said, chat_template=template, return_dict=False)
            assert [ids] == encode_one_word(tokenizer, [sentence])
            earlier = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hi."}]
            assert ids == tokenizer.apply_chat_template(earlier + said, chat_template=template, return_dict=False)


@pytest.mark.parametrize(
    "rope", [{"rope_type": "default"}, {"rope_type": "linear", "factor": 4.0}], ids=["default", "linear"]
)
def test_both_generations_of_transformers_read_the_same_rotation(rope, run, tmp_path, tokenizer):
    """Version 4.57 reads `rope_theta` and `rope_scaling`; by the new name alone it takes 10,000 without a word."""
    rope = {"rope_theta": 123456.0, **rope}
    make_llama(initializer_range=0.2, rope_parameters=rope).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    export_folder(str(tmp_path / "base"), run, tmp_path / "merged", "merged", "float32")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert (config["rope_theta"], config["torch_dtype"]) == (123456.0, "float32")
    assert (config.get("rope_scaling") or {"rope_type": "default"})["rope_type"] == rope["rope_type"]
    names = json.loads((tmp_path / "merged" / "tokenizer_config.json").read_text())
    assert names["tokenizer_class"] == "PreTrainedTokenizerFast"
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    expected = policy_logits(tmp_path / "base", run / "adapter")
    with torch.no_grad():
        assert (merged(TOKENS).logits - expected).norm() <= 1e-5 * expected.norm()
    if not (old := os.environ.get("TRANSFORMERS4")):
        pytest.skip("TRANSFORMERS4 names no Python with transformers 4.57")
    script = "import sys, torch, transformers; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
    script += "assert transformers.__version__ < '5'; AutoTokenizer.from_pretrained(sys.argv[1])\n"
    script += "model = AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
    script += "print(model(torch.arange(40)[None] * 7 % 320).logits.flatten().tolist())"
    answer = subprocess.run([old, "-c", script, tmp_path / "merged"], capture_output=True, text=True, check=True).stdout
    assert (torch.tensor(json.loads(answer)) - expected.flatten()).norm() <= 1e-5 * expected.norm()


def test_version_4_reads_how_much_of_each_head_phi_rotates(tmp_path, tokenizer):
    """By the new name alone it would take its default, a half."""
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = PhiConfig(vocab_size=len(tokenizer), partial_rotary_factor=0.25, **shape)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    export_folder(str(tmp_path / "base"), make_run(tmp_path / "run", tmp_path / "base"), tmp_path / "merged", "merged")
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["partial_rotary_factor"] == 0.25


def test_further_special_tokens_have_their_old_name_too(run, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    for part in (make_llama(), tokenizer):
        part.save_pretrained(tmp_path / "base")
    export_folder(str(tmp_path / "base"), run, tmp_path / "out", "merged")
    config = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert config["additional_special_tokens"] == ["<|im_start|>"]
    assert "extra_special_tokens" not in config


def test_peft_loads_a_portable_adapter_after_the_base_was_written(tmp_path, tiny_gguf, monkeypatch):
    peft = pytest.importorskip("peft", reason="PEFT is not installed")
    monkeypatch.chdir(tiny_gguf.parent)
    name = portable_name(str(tiny_gguf))
    make_adapter(load_base(str(tiny_gguf), "float32", "cpu").model, tmp_path / "adapter", name)
    card = (tmp_path / "adapter" / "README.md").read_text()
    assert f'Embedder("{name}"' in card
    assert "sempa export --base ADAPTER BASE" in card
    assert main(["export", "--base", str(tmp_path / "adapter"), str(tmp_path / "base")]) == 0
    assert name in (tmp_path / "base" / "README.md").read_text()
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        logits = theirs(TOKENS).logits
    torch.testing.assert_close(logits, policy_logits(name, tmp_path / "adapter"), rtol=1e-4, atol=1e-5)


def test_the_template_begins_where_the_tokenizer_begins_a_text():
    tokenizer = make_tokenizer(("<s>", "</s>"), None)
    tokenizer.bos_token = "<s>"
    tokenizer.backend_tokenizer.post_processor = _begin("<s>", tokenizer.bos_token_id)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}], chat_template=prompt_template(tokenizer), return_dict=False
    )
    assert [ids] == encode_one_word(tokenizer, ["a"])


def test_the_command_finds_the_base_and_refuses_what_it_cannot_do(run, tmp_path, capsys):
    assert main(["export", "--merge", str(run), str(tmp_path / "out")]) == 0
    assert main(["export", "--merge", str(run), str(tmp_path / "exact"), "--dtype", "float32"]) == 0
    for name, dtype in (("out", torch.bfloat16), ("exact", torch.float32)):
        assert {tensor.dtype for tensor in load_file(tmp_path / name / "model.safetensors").values()} == {dtype}
    assert not list(tmp_path.glob(".*"))
    for arguments, message in (
        (["--merge", str(run), str(tmp_path / "out")], "exists already; give a folder that does not"),
        (["--merge", str(tmp_path / "none"), str(tmp_path / "b")], "holds no adapter_config.json"),
        (["--merge", str(run), str(tmp_path / "b"), "--dtype", "int8"], "--dtype: invalid choice: 'int8'"),
        (["--merge", str(run), str(tmp_path / "b"), "--model", "/nowhere"], "no such folder"),
    ):
        capsys.readouterr()
        assert main(["export", *arguments]) == 2
        error = capsys.readouterr().err.strip()
        assert message in error
        assert len(error.splitlines()) == 1
    assert not (tmp_path / "b").exists()


def test_a_base_that_cannot_be_opened_is_one_sentence(run, tmp_path, capsys):
    config = json.loads((run / "adapter" / "adapter_config.json").read_text())
    adapter = shutil.copytree(run / "adapter", tmp_path / "adapter")
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "nobody/nothing"}))
    assert main(["export", "--merge", str(adapter), str(tmp_path / "merged")]) == 2
    assert "model 'nobody/nothing': cannot be opened" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [["--merge"], ["--sentence-transformers"], ["--gguf", "f16"]])
def test_an_adapter_of_another_readout_is_exported_with_a_note(kind, run, tiny_folder, tmp_path, capsys):
    adapter = shutil.copytree(run, tmp_path / "run") / "adapter"
    (adapter / "readout.json").write_text('{"readout": "attention-sum"}')
    merged = tmp_path / "out"
    assert main(["export", *kind, str(adapter), str(merged)]) == 0
    assert "other tools read the last hidden state" in capsys.readouterr().out
    assert "was trained and measured at the readout `attention-sum`" in (merged / "README.md").read_text()
    if kind != ["--gguf", "f16"]:
        # sempa itself reads the merged folder as it was trained.
        embedder = Embedder(str(merged), dtype="float32")
        assert embedder.readout == "attention-sum"
        expected = Embedder(str(tiny_folder), adapter, dtype="float32").encode(["A man plays."])
        assert Embedder.similarity(embedder.encode(["A man plays."]), expected).item() > 0.9999


def test_an_output_that_cannot_be_made_is_found_before_the_work(run, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "load_base", lambda *_, **__: pytest.fail("the work began"))
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "file").write_text("")
    for output, message in ((tmp_path / "link", "exists already"), (tmp_path / "file" / "out", "cannot be written")):
        with pytest.raises(SempaError, match=f"{output}: {message}"):
            export_folder(str(tiny_folder), run, output, "merged")


def test_a_failure_on_the_way_leaves_nothing(run, tiny_folder, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sempa.export.folders.write_atomic", full)
    with pytest.raises(SempaError, match="No space left on device"):
        export_folder(str(tiny_folder), run, tmp_path / "out", "merged")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_appears_meanwhile_is_left_alone(run, tiny_folder, tmp_path, monkeypatch):
    real = export.write_atomic

    def slow(*arguments):
        (tmp_path / "out").mkdir(exist_ok=True)
        (tmp_path / "out" / "precious.txt").write_text("mine")
        real(*arguments)

    monkeypatch.setattr(export, "write_atomic", slow)
    with pytest.raises(SempaError, match="out: cannot be written: Directory not empty"):
        export_folder(str(tiny_folder), run, tmp_path / "out", "merged")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "precious.txt"]


def test_a_run_and_its_adapter_are_the_same_place(run, monkeypatch):
    assert adapter_folder(run) == adapter_folder(run / "adapter") == run / "adapter"
    # A folder that has a name and a parent, wherever one stands.
    monkeypatch.chdir(run / "adapter")
    assert adapter_folder(Path()).samefile(run / "adapter")
    assert (adapter_folder(Path()).name, adapter_folder(Path()).parent.name) == ("adapter", run.name)


def test_sentence_transformers_gets_a_padding_token_that_has_an_embedding(tmp_path, tiny_folder):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    shutil.copytree(tiny_folder, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    rows = make_llama().config.vocab_size
    while tokenizer.pad_token_id < rows:
        tokenizer.add_special_tokens({"pad_token": f"[PAD{len(tokenizer)}]"})
    tokenizer.save_pretrained(tmp_path / "base")
    base = str(tmp_path / "base")
    make_adapter(load_base(base, "float32", "cpu").model, tmp_path / "adapter", base)
    export_folder(base, tmp_path / "adapter", tmp_path / "out", "sentence-transformers", "float32")
    encoder = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), device="cpu")
    assert encoder.encode(["a", "a longer sentence here"]).shape == (2, 32)
