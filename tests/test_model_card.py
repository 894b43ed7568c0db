"""The card of an exported model: the run's figures, data and settings, and nothing of one machine."""

import json
import shutil
import sys

import pytest
from conftest import make_tokenizer
from exporting import make_run
from transformers import GPT2Config, GPT2LMHeadModel

from sempa.export.folders import export_folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_folder):
    return make_run(tmp_path_factory.mktemp("run"), tiny_folder)


def test_the_cards_commands_name_the_files_that_are_there(run, tiny_folder, tmp_path):
    export_folder(str(tiny_folder), run, tmp_path / "mine", "merged")
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "vllm serve mine --runner pooling" in card
    assert "--chat-template mine/prompteol.jinja" in card
    assert "silently embeds something else" in card
    assert "pip install sempa" not in card


def test_the_model_card_tells_figures_data_settings_and_limits_and_no_path(run, tiny_folder, tmp_path):
    export_folder(str(tiny_folder), run, tmp_path / "mine", "merged")
    card = (tmp_path / "mine" / "README.md").read_text()
    for line in (
        "library_name: transformers",
        "# mine",
        "| STS-B dev | 1,500 | 73.84 | 77.31 | +3.47 |",
        "1,280 preference triplets (sentence, entailment, contradiction) from nli.csv, 20 held out,",
        "40 steps, the adapter of step 30 kept.",
        "| beta | 0.1 |",
        "perplexity on passages by -2.0 %",
        # As the run computed, whatever its config asked for.
        "in float16 on a processor",
        "may have 2,048 tokens",
    ):
        assert line in card
    assert "/home" not in card
    assert str(tiny_folder.parent) not in card
    # A sentence for readouts that other tools do not have.
    assert "was trained and measured at the readout" not in card


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_an_encoders_card_compares_by_cosine_and_warns_of_vectors_that_bfloat16_normalises(
    run, tiny_folder, tmp_path, dtype
):
    export_folder(str(tiny_folder), run, tmp_path / "mine", "sentence-transformers", dtype)
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "print(model.similarity(vectors[0], vectors[1]))" in card and " @ " not in card
    assert ('model_kwargs={"dtype": "float32"}' in card) == (dtype == "bfloat16")


def test_the_card_of_another_base_promises_neither_a_chat_template_nor_a_gguf_file(tmp_path):
    GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=32, n_layer=1, n_head=2)).save_pretrained(tmp_path / "base")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "base")
    export_folder(str(tmp_path / "base"), make_run(tmp_path / "run", tmp_path / "base"), tmp_path / "out", "merged")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "still answers prompts, and whose" in card
    assert "its chat template" not in card
    assert "writes one of a plain Llama, llama.cpp's converter of others" in card


def test_a_folder_that_looks_like_a_hub_id_is_no_hub_id_in_the_card(run, tiny_folder, tmp_path, monkeypatch):
    shutil.copytree(tiny_folder, tmp_path / "models" / "tiny")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "models"))
    for name, output in (("models/tiny", "out"), ("~/tiny", "home")):
        export_folder(name, run / "adapter", tmp_path / output, "merged")
        card = (tmp_path / output / "README.md").read_text()
        assert "base_model:" not in card
        assert name not in card


def test_an_adapter_without_a_report_has_a_card_that_says_so(run, tiny_folder, tmp_path):
    adapter = tmp_path / "elsewhere"
    adapter.mkdir()
    for file in (run / "adapter").iterdir():
        (adapter / file.name).write_bytes(file.read_bytes())
    export_folder(str(tiny_folder), adapter, tmp_path / "out", "merged")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "no report lay beside the adapter" in card
    assert "| LoRA rank | 2 |" in card


@pytest.mark.parametrize(
    "report",
    [
        "[]",
        '{"machine": "x86"}',
        '{"config": "x"}',
        '{"sts": [{"a": 1}]}',
        '{"training": {"used": 1}, "config": {}, "sts": 5}',
        '{"training": {}, "config": "x"}',
    ],
)
def test_another_tools_report_is_no_report(run, tiny_folder, tmp_path, report):
    shutil.copytree(run / "adapter", tmp_path / "other" / "adapter")
    (tmp_path / "other" / "report.json").write_text(report)
    export_folder(str(tiny_folder), tmp_path / "other" / "adapter", tmp_path / "out", "merged")
    assert "no report lay beside the adapter" in (tmp_path / "out" / "README.md").read_text()


def test_a_card_leaves_out_what_is_not_known(run, tiny_folder, tmp_path, monkeypatch):
    shutil.copytree(run, tmp_path / "run")
    report = json.loads((run / "report.json").read_text())
    report["drift"].append(report["drift"][0] | {"text": "conversations", "change": None})
    report["config"]["sts"] = ""
    (tmp_path / "run" / "report.json").write_text(json.dumps(report))
    monkeypatch.setattr("sempa.export.model_card.context_length", lambda model: sys.maxsize)
    export_folder(str(tiny_folder), tmp_path / "run", tmp_path / "mine", "merged")
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "perplexity on passages by -2.0 %" in card
    assert "| beta |" in card and "| sts |" not in card
    assert "may have" not in card


def test_the_card_tells_the_text_whose_perplexity_rose_most(run, tiny_folder, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    report = json.loads((run / "report.json").read_text())
    report["drift"].append(report["drift"][0] | {"text": "conversations", "change": 0.03})
    (tmp_path / "run" / "report.json").write_text(json.dumps(report))
    export_folder(str(tiny_folder), tmp_path / "run", tmp_path / "mine", "merged")
    assert "perplexity on conversations by +3.0 %" in (tmp_path / "mine" / "README.md").read_text()


def test_the_card_names_the_device_that_measured_and_not_the_setting(run, tiny_folder, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    report = json.loads((run / "report.json").read_text())
    report["machine"]["device"] = "NVIDIA H100"
    report["config"]["device"] = "cuda:7"
    (tmp_path / "run" / "report.json").write_text(json.dumps(report))
    export_folder(str(tiny_folder), tmp_path / "run", tmp_path / "mine", "merged")
    card = (tmp_path / "mine" / "README.md").read_text()
    assert "on NVIDIA H100; base: without adapter" in card
    assert "cuda:7" not in card
