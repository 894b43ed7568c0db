"""`sempa generate`: the answer of the exported model's own template, from any of the ways to say a prompt."""

import io
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import make_llama
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from sempa.cli import main
from sempa.model.base import load_base
from sempa.model.sampling import sample

PROMPT = "Who pets a dog?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    """A sharper model, whose answers depend on the prompt, and a template that says something of its own."""
    folder = tmp_path_factory.mktemp("sharp")
    make_llama(initializer_range=0.9).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    template = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nA cat.<|im_end|>\n{% endif %}"
    path = folder / "chat_template.jinja"
    path.write_text(template + path.read_text())
    return folder


def answer(capsys, folder, *arguments):
    assert main(["generate", "--model", str(folder), "--dtype", "float32", "--max-new-tokens", "12", *arguments]) == 0
    return capsys.readouterr().out.removesuffix("\n")


def shown(text):
    """A character that the last token leaves unfinished is not shown."""
    return text.rstrip("\N{REPLACEMENT CHARACTER}")


def by_transformers(folder, messages):
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    ends = tokenizer.convert_tokens_to_ids("<|im_end|>")
    greedy = GenerationConfig(max_new_tokens=12, do_sample=False, eos_token_id=ends, pad_token_id=0)
    with torch.no_grad():
        whole = model.generate(tokens, attention_mask=torch.ones_like(tokens), generation_config=greedy)[0]
    return shown(tokenizer.decode(whole[tokens.shape[1] :], skip_special_tokens=True))


def test_the_answer_is_the_plain_models_with_its_own_templates_system_message_or_ours(folder, capsys, monkeypatch):
    user = {"role": "user", "content": PROMPT}
    own = answer(capsys, folder, PROMPT)
    assert own == by_transformers(folder, [user])
    # An empty message is one, too: the template does not say its own then.
    for system in ("A dog sits.", ""):
        other = answer(capsys, folder, "--system", system, PROMPT)
        assert other == by_transformers(folder, [{"role": "system", "content": system}, user])
    assert own != other
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BufferedReader(io.BytesIO(PROMPT.encode() + b"\n"))))
    assert answer(capsys, folder, "-") == own


def test_a_temperature_draws_by_the_seed(folder, capsys):
    drawn = [answer(capsys, folder, "--temperature", "3", "--seed", seed, PROMPT) for seed in ("1", "2", "2")]
    assert drawn[0] != drawn[1] == drawn[2]
    base = load_base(str(folder), "float32", "cpu")
    text = f"<|im_start|>system\nA cat.<|im_end|>\n<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert drawn[0].strip() == shown(sample(base, [ids], 1, 12, 3.0, seed=1)[0][0].text)
    assert main(["generate", "--model", str(folder), "--temperature", "-1", PROMPT]) == 2
    assert "temperature: found -1.0" in capsys.readouterr().err


def test_a_model_without_a_template_answers_but_has_no_system_message(tiny_folder, tmp_path, capsys):
    folder = tmp_path / "plain"
    base = load_base(str(tiny_folder), "float32", "cpu")
    base.tokenizer.chat_template = None
    base.model.save_pretrained(folder)
    base.tokenizer.save_pretrained(folder)
    assert answer(capsys, folder, PROMPT)
    for system in ("Be brief.", ""):
        assert main(["generate", "--model", str(folder), "--system", system, PROMPT]) == 2
        assert "system: the model has no chat template" in capsys.readouterr().err


def test_the_text_comes_as_it_grows(folder, capsys, monkeypatch):
    seen = []
    choice = torch.tensor([65])
    monkeypatch.setattr("sempa.model.sampling.choose", lambda *_: seen.append(capsys.readouterr().out) or choice)
    answer(capsys, folder, PROMPT)
    assert len(seen) == 12
    assert len([text for text in seen if text]) == 11


def test_a_shell_completes_commands_and_options():
    pytest.importorskip("shtab", reason="the extra `completion` is not installed")
    command = [sys.executable, "-m", "shtab", "--shell", "bash", "sempa.cli.make_parser"]
    script = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    for word in ("generate", "--temperature", "--skip-empty", "--adapter-readouts"):
        assert word in script


def test_an_answer_needs_room_beside_its_prompt(tiny_folder, capsys):
    assert main(["generate", "--model", str(tiny_folder), "--max-new-tokens", "2048", "Hi"]) == 2
    assert "and with 2,048 new ones at most 2,048, the model's context" in capsys.readouterr().err
