"""Nothing that a file brings along is run: no pickle, no code of a model's own, no shell, no script in a page."""

import ast
import functools
import json
import pickle
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_llama, tiny_texts
from test_report import HISTORY, example

from sempa import SempaError
from sempa.batching.prompts import encode_triplet
from sempa.cli import main
from sempa.config import load_config
from sempa.embedding.corpus import embed_corpus, read_shards
from sempa.embedding.embedder import Embedder
from sempa.embedding.files import read_vectors
from sempa.io.files import read_tensors, write_tensors
from sempa.model.adapter_files import WEIGHTS_FILE, load_adapter, save_adapter
from sempa.model.base import load_base
from sempa.model.lora import add_lora
from sempa.report.run_report import page
from sempa.training.base_samples import sample_texts

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for name in ("src", "losses", "kernels", "experiments") for path in (ROOT / name).rglob("*.py"))
PRODUCT = [path for path in SOURCES if not path.is_relative_to(ROOT / "experiments")]
# What runs code from data, by the last parts of its name.
FORBIDDEN_MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "imp",
    "code",
}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "torch.save", "os.system", "os.popen"}
FORBIDDEN_CALLS |= {f"yaml.{name}" for name in ("full_load", "unsafe_load", "load_all", "unsafe_load_all")}
FORBIDDEN_CALLS |= {f"os.{name}" for name in ("execv", "execve", "execvp", "spawnv", "spawnl", "posix_spawn")}


@functools.cache
def nodes(path):
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@functools.cache
def calls(path):
    """Every call in a file: dotted name, keywords with the values of literals, and the call itself."""
    return [
        (ast.unparse(node.func), {k.arg: getattr(k.value, "value", k.value) for k in node.keywords}, node)
        for node in nodes(path)
        if isinstance(node, ast.Call)
    ]


def found(wrong, paths=SOURCES):
    """The places of calls that `wrong` says are."""
    return [(path, call[2].lineno) for path in paths for call in calls(path) if wrong(*call)]


def test_the_walk_sees_the_code():
    assert len(SOURCES) > 60
    assert any(name == "AutoModelForCausalLM.from_pretrained" for path in SOURCES for name, *_ in calls(path))


def test_no_module_that_runs_code_from_data_is_imported():
    for path in SOURCES:
        for node in nodes(path):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            modules = {name.partition(".")[0] for name in names}
            assert not modules & FORBIDDEN_MODULES, (path, node.lineno)
            if path in PRODUCT:
                # The server has the one socket.
                allowed = {"socket"} if path.name == "serve.py" else set()
                outside = {"subprocess", "socket", "urllib", "requests", "ctypes"} - allowed
                assert not modules & outside, (path, node.lineno)


def test_no_call_runs_code_from_data_or_a_shell():
    assert not found(lambda name, keywords, node: name in FORBIDDEN_CALLS)
    assert not found(lambda name, keywords, node: keywords.get("shell", False) is not False)
    assert not found(lambda name, keywords, node: keywords.get("weights_only", True) is not True)


def test_arrays_are_read_and_written_without_pickle():
    def unsafe(name, keywords, node):
        return (
            name.endswith((".load", ".save", ".read_array"))
            and name.startswith("np.")
            and keywords.get("allow_pickle") is not False
        )

    assert not found(unsafe)


def test_yaml_is_read_as_text_only():
    """A config's nodes are composed, and no object is ever constructed, whatever a tag asks for."""
    assert not found(lambda name, keywords, node: name == "yaml.load")


def test_code_of_a_models_own_is_asked_for_nowhere():
    """transformers would ask on the terminal when the argument is left out."""

    def lax(name, keywords, node):
        return (
            name.startswith("Auto")
            and name.endswith(".from_pretrained")
            and keywords.get("trust_remote_code") is not False
        )

    assert not found(lax, PRODUCT)
    assert not found(lambda name, keywords, node: keywords.get("trust_remote_code") is True)


class Poison:
    """Unpickling it makes a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    """A path that exists once a poison has worked; that it can work is tried first."""
    path = tmp_path / "poisoned"
    pickle.loads(pickle.dumps(Poison(path)))
    assert path.exists()
    path.unlink()
    yield path
    assert not path.exists()


@pytest.fixture
def poisons(mark, tmp_path):
    """The forms in which the poison comes: bare, in torch's zip, in an array of objects."""
    torch.save({"a": Poison(mark)}, tmp_path / "zip.pt")
    np.save(tmp_path / "objects.npy", np.array([Poison(mark)], dtype=object), allow_pickle=True)
    forms = [pickle.dumps(Poison(mark)), (tmp_path / "zip.pt").read_bytes(), (tmp_path / "objects.npy").read_bytes()]
    # torch's own pickler resolves `Path.touch` at once where it is told to trust.
    torch.load(tmp_path / "zip.pt", weights_only=False)
    mark.unlink()
    return forms


def test_a_poisoned_adapter_is_refused(poisons, tmp_path):
    model = make_llama()
    add_lora(model, 2, 4)
    save_adapter(model, tmp_path / "adapter", "source")
    for poison in poisons:
        (tmp_path / "adapter" / WEIGHTS_FILE).write_bytes(poison)
        with pytest.raises(SempaError, match="cannot be read"):
            load_adapter(make_llama(), tmp_path / "adapter")
        (tmp_path / "adapter" / WEIGHTS_FILE).unlink()
        (tmp_path / "adapter" / "adapter_model.bin").write_bytes(poison)
        with pytest.raises(SempaError, match=f"expected .*{WEIGHTS_FILE}"):
            load_adapter(make_llama(), tmp_path / "adapter")


def test_a_poisoned_base_model_is_refused(poisons, tiny_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    (folder / "model.safetensors").unlink()
    for poison in poisons:
        (folder / "pytorch_model.bin").write_bytes(poison)
        with pytest.raises(SempaError, match=r"cannot be loaded .*safetensors"):
            load_base(str(folder), "float32", "cpu")
        (folder / "pytorch_model.bin").unlink()
        (folder / "model.safetensors").write_bytes(poison)
        with pytest.raises(SempaError, match="cannot be loaded"):
            load_base(str(folder), "float32", "cpu")
        (folder / "model.safetensors").unlink()


def test_a_model_folders_own_code_is_not_run(mark, tiny_folder, tmp_path, monkeypatch):
    """Neither is anybody asked: a question would wait for an answer."""
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("asked on the terminal"))
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    code = f"from pathlib import Path\nPath({str(mark)!r}).touch()\nfrom transformers import LlamaForCausalLM as Evil\n"
    (folder / "evil.py").write_text(code + "from transformers import LlamaConfig as EvilConfig\n")
    settings = json.loads((folder / "config.json").read_text())
    settings |= {
        "model_type": "evil",
        "auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil"},
    }
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(SempaError) as caught:
        load_base(str(folder), "float32", "cpu")
    assert len(str(caught.value).splitlines()) == 1
    assert main(["similarity", "--model", str(folder), "A man runs.", "A dog runs."]) == 2


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% for x in cycler.__init__.__globals__ %}{{ x }}{% endfor %}",
        "{{ raise_exception('no') }}",
        "{% for",
        "{{ 1 + 'a' }}",
    ],
)
def test_a_chat_template_cannot_reach_python_and_its_failure_is_a_sentence(tokenizer, triplets, monkeypatch, template):
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(SempaError, match="chat template"):
        encode_triplet(tokenizer, triplets[0])


def test_poisoned_samples_of_the_base_are_drawn_anew(poisons, tiny_folder, few_samples, tmp_path, monkeypatch):
    monkeypatch.setattr("sempa.training.base_samples.cache_folder", lambda: tmp_path)
    base = load_base(str(tiny_folder), "float32", "cpu")
    texts = sample_texts(base)
    (cached,) = tmp_path.rglob("*.safetensors")
    written = cached.read_bytes()
    for count, name in ((0, "other"), (1, "lengths"), (5, "lengths"), (9, "lengths")):
        write_tensors(cached, {"tokens": torch.arange(5), name: torch.tensor([count])})
        assert sample_texts(base) == texts
    for poison in (*poisons, written[: len(written) // 2]):
        cached.write_bytes(poison)
        assert sample_texts(base) == texts
        assert cached.read_bytes() == written


def test_poisoned_vectors_and_shards_are_refused(poisons, tiny_folder, tmp_path):
    for poison in poisons:
        for name in ("v.npy", "v.safetensors"):
            (tmp_path / name).write_bytes(poison)
            with pytest.raises(SempaError, match="cannot be read"):
                read_vectors(tmp_path / name)
        with pytest.raises(SempaError, match="cannot be read"):
            read_tensors(tmp_path / "v.npy")
    (tmp_path / "in.txt").write_text("One.\n")
    embed_corpus(Embedder(str(tiny_folder)), tmp_path / "in.txt", tmp_path / "out", shard_format="npy")
    (tmp_path / "out" / "shard-000000.npy").write_bytes(poisons[2])
    with pytest.raises(SempaError, match="cannot be read"):
        list(read_shards(tmp_path / "out"))


def test_yaml_builds_no_objects(mark, tmp_path):
    for text in (
        f"model: !!python/object/apply:os.system ['touch {mark}']",
        f"model: !!python/object/new:pathlib.Path ['{mark}']",
        "model: !!python/name:os.system",
    ):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(SempaError, match=r"c.yaml: (model is '', expected a name|line 1: expected `key: value`)"):
            load_config(tmp_path / "c.yaml")
        with pytest.raises(SempaError, match=r"command line: beta is .!!python.*, expected a number"):
            load_config(ROOT / "experiments" / "paper_llama2_7b.yaml", [text.replace("model: ", "beta=", 1)])


def test_what_a_file_holds_reaches_the_terminal_without_control_characters(tiny_folder, tmp_path, capsys):
    """An escape sequence in a header could otherwise retitle the window or hide a line."""
    path = tmp_path / "t.csv"
    path.write_text("sent0\x1b]0;owned\x07,sent1\x9b31m,x\u202e\na,b,c\n", encoding="utf-8")
    config = tmp_path / "c.yaml"
    config.write_text(f"model: {tiny_folder}\ntriplets: {path}\noutput: {tmp_path / 'run'}\n")
    assert main(["train", str(config)]) == 2
    error = capsys.readouterr().err
    assert "t.csv" in error
    assert error.strip().isprintable()
    warned = tmp_path / "ev\x1b]0;owned\x07il.txt"
    warned.write_text("A man runs.\n\n")
    assert main(["embed", "--model", str(tiny_folder), "--skip-empty", str(warned), str(tmp_path / "v.npy")]) == 0
    error = capsys.readouterr().err
    assert "1 empty sentence left out" in error
    assert all(line.isprintable() for line in error.splitlines())


HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&lt;$x^{ javascript:alert(3) \x1b[31m \u202e"


def poisoned(value):
    """The same report with a hostile string at the end of every string."""
    if isinstance(value, str):
        return value + HOSTILE
    if isinstance(value, dict):
        return {key: poisoned(item) for key, item in value.items()}
    return [poisoned(item) for item in value] if isinstance(value, list | tuple) else value


class Tags(HTMLParser):
    """The tags of a page and every attribute's name, outside of text."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.links = set(), set(), set()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.links |= {value or "" for name, value in attributes if name in ("href", "src", "xlink:href")}


def test_the_report_escapes_every_string_of_a_user_a_model_or_a_file():
    report = example()
    report["generations"] = [dict.fromkeys(("prompt", "base", "aligned"), tiny_texts()[0][0])]
    harmless, hostile = Tags(), Tags()
    harmless.feed(page(report, HISTORY))
    html = page(poisoned(report), HISTORY)
    hostile.feed(html)
    assert html.count("alert(1)") > 15
    assert not hostile.tags & {"script", "img", "iframe", "object"}
    assert hostile.tags <= harmless.tags
    assert hostile.attributes <= harmless.attributes
    assert all(link.startswith("#") for link in hostile.links)
