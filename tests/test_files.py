"""Outputs are checked before the work, a cache is never needed, and standard output may go away."""

import errno
import hashlib
import math
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import write_gguf
from safetensors.torch import save_file

from sempa import SempaError
from sempa.cli import main
from sempa.io import files
from sempa.io.files import cache_folder, check_output, user_path, write_atomic, write_tensors
from sempa.model.adapter_files import save_adapter
from sempa.model.base import load_base
from sempa.training.base_samples import sample_texts


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.csv"
    path.write_text("id,text\n1,A man sings.\n")
    return path


# Outputs


def test_what_is_written_may_be_read_by_whom_the_umask_lets(tmp_path):
    tensors = {"a": torch.zeros(2)}

    def write(folder):
        save_file(tensors, folder / "a.safetensors")
        (folder / "in").mkdir()
        save_file(tensors, folder / "in" / "b.safetensors")

    before = os.umask(0o027)
    try:
        files.write_folder(tmp_path / "model", write)
        write_atomic(tmp_path / "one.txt", "x")
        write_tensors(tmp_path / "c.safetensors", tensors)
    finally:
        os.umask(before)
    written = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    names = ("a.safetensors", "b.safetensors", "c.safetensors", "one.txt")
    assert written == {"model": 0o750, "in": 0o750} | dict.fromkeys(names, 0o640)


def test_every_file_of_a_folder_is_on_disk_before_the_folder_has_its_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(files, "fsync", lambda path: synced.append((path.name, (tmp_path / "model").exists())))

    def write(folder):
        (folder / "in").mkdir()
        (folder / "a").write_text("a")
        (folder / "in" / "b").write_text("b")

    files.write_folder(tmp_path / "model", write)
    assert sorted(synced) == [("a", False), ("b", False)]


def test_an_output_that_cannot_be_written_is_found_beforehand(tmp_path, source):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for path, options, message in (
        (tmp_path / "folder", {}, "folder: is not a regular file, so it cannot be the output"),
        (source, {"folder": True}, "in.csv: is not a folder, so it cannot be the output"),
        (source / "v.npy", {}, "v.npy: cannot be written, because .*in.csv is not a folder you can write to"),
        (source / "a" / "b", {"folder": True}, "b: cannot be written, because .*in.csv is not a folder you can"),
        (tmp_path / "fifo", {}, "fifo: is not a regular file"),
        (Path("/dev/null"), {}, "/dev/null: is not a regular file"),
    ):
        with pytest.raises(SempaError, match=message):
            check_output(path, **options)
    for path, options in (
        (tmp_path / "new.npy", {}),
        (tmp_path / "a" / "b" / "new.npy", {}),
        (tmp_path / "folder", {"folder": True}),
        (tmp_path / "folder" / "x", {"folder": True}),
        (source, {}),
        (Path("relative.npy"), {}),
    ):
        check_output(path, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "folder", "in.csv"]


def test_a_read_only_folder_is_found_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(SempaError, match=f"because {tmp_path} is not a folder you can write to"):
        check_output(tmp_path / "a" / "v.npy")


def test_an_output_on_top_of_the_input_is_refused_by_any_name(source, tmp_path, monkeypatch, capsys):
    (tmp_path / "link.csv").symlink_to(source)
    (tmp_path / "twin.csv").hardlink_to(source)
    monkeypatch.chdir(tmp_path)
    before = source.read_bytes()
    for name in (source, "in.csv", "./in.csv", tmp_path / "link.csv", "twin.csv"):
        assert main(["embed", "--model", "/nowhere", str(source), str(name)]) == 2
        assert "is the input itself, which would be lost" in capsys.readouterr().err
    for option in ("--sts", "--texts", "--gsm8k", "--hellaswag", "--prompts"):
        assert main(["evaluate", "--model", "/nowhere", option, str(source), "--json", "in.csv"]) == 2
        assert "is the input itself, which would be lost" in capsys.readouterr().err
    assert source.read_bytes() == before


@pytest.mark.parametrize("name", ["x" * 251 + ".txt", "字" * 83 + ".txt"])
def test_a_name_may_be_as_long_as_the_file_system_lets(tmp_path, name):
    write_atomic(tmp_path / name, "text")
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_link_stays_and_its_target_is_written(tmp_path):
    (tmp_path / "link.txt").symlink_to("there/target.txt")
    for content in ("new", "newer"):
        write_atomic(tmp_path / "link.txt", content)
        assert (tmp_path / "link.txt").is_symlink()
        assert (tmp_path / "there" / "target.txt").read_text() == content
        assert [path.name for path in (tmp_path / "there").iterdir()] == ["target.txt"]


def test_no_output_replaces_a_file_of_a_benchmarks_folder(tmp_path, capsys):
    (tmp_path / "STS" / "STS12").mkdir(parents=True)
    files = [tmp_path / "STS" / "sts-dev.csv", tmp_path / "STS" / "STS12" / "STS.gs.a.txt"]
    for path in files:
        path.write_text("x")
        assert main(["evaluate", "--model", "/nowhere", "--sts", str(tmp_path / "STS"), "--json", str(path)]) == 2
        assert f"{path}: is the input itself, which would be lost" in capsys.readouterr().err
        assert path.read_text() == "x"


def test_no_output_replaces_the_model_the_adapter_or_its_report(tiny_folder, adapted_base, tmp_path, capsys, source):
    base = tmp_path / "base"
    shutil.copytree(tiny_folder, base)
    run, adapter = tmp_path / "run", tmp_path / "run" / "adapter"
    save_adapter(adapted_base.model, adapter, str(base))
    (run / "report.json").write_text("{}")
    inputs = [*base.iterdir(), *adapter.iterdir(), run / "report.json"]
    assert len(inputs) >= 7 and base / "tokenizer.json" in inputs
    before = {path: path.read_bytes() for path in inputs}
    for path in inputs:
        assert main(["evaluate", "--adapter", str(run), "--json", str(path)]) == 2
        assert f"{path}: is the input itself, which would be lost" in capsys.readouterr().err
    for path in (path for path in inputs if path.suffix == ".safetensors"):
        assert main(["embed", "--adapter", str(adapter), str(source), str(path)]) == 2
        assert f"{path}: is the input itself, which would be lost" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in inputs} == before


def test_a_home_is_a_tilde_in_every_path(tmp_path, monkeypatch, source):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SEMPA_CACHE", "~/cache")
    assert user_path("~/in.csv") == source
    # As in a shell: a user who is not there has no home, so it is a name.
    assert user_path("~nobody-of-that-name.csv") == Path("~nobody-of-that-name.csv")
    assert cache_folder() == tmp_path / "cache"


def test_a_path_that_is_too_long_is_one_sentence(tmp_path, capsys):
    assert main(["embed", "a sentence " * 40, str(tmp_path / "v.npy")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sempa: ") and "File name too long" in line


def test_json_has_no_nan_and_its_text_is_legible(tmp_path):
    files.write_json(tmp_path / "a.json", {"a": [math.nan, 1.5], "b": {"ρ": -math.inf}})
    assert files.read_json(tmp_path / "a.json") == {"a": [None, 1.5], "b": {"ρ": None}}
    assert "ρ" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_the_command_line_expands_a_tilde(tmp_path, monkeypatch, source, tiny_folder):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["embed", "--model", str(tiny_folder), "--dtype", "float32", "~/in.csv", "~/out/v.npy"]) == 0
    assert (tmp_path / "out" / "v.npy").is_file()


def test_a_file_that_cannot_be_forced_to_the_disk_is_an_error(tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(SempaError, match="Input/output error"):
        write_atomic(tmp_path / "a.txt", "x")
    assert list(tmp_path.iterdir()) == []


# The cache


def test_the_cache_is_where_the_desktop_says(tmp_path, monkeypatch):
    monkeypatch.delenv("SEMPA_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "sempa"
    monkeypatch.setenv("HOME", str(tmp_path))
    # An empty variable counts as none (XDG Base Directory Specification).
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == tmp_path / ".cache" / "sempa"


def test_a_temporary_folder_ends_with_its_process():
    code = "from sempa.io.files import temporary_folder\nfolder = temporary_folder()\n"
    code += "(folder / 'x').write_text('x')\nprint(folder)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert not Path(done.stdout.strip()).exists()


def test_without_a_home_the_cache_is_a_temporary_folder(monkeypatch):
    for name in ("HOME", "SEMPA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", nobody)
    folder = cache_folder()
    assert folder.is_dir()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert cache_folder() == folder


def test_a_gguf_file_is_read_without_a_cache(tmp_path, monkeypatch, tiny_llama):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEMPA_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("sempa.model.resolve.temporary_folder", lambda: tmp_path / "temporary")
    write_gguf(tmp_path / "tiny.gguf", tiny_llama)
    with pytest.warns(UserWarning, match="tiny.gguf is converted for this process alone"):
        base = load_base(str(tmp_path / "tiny.gguf"), "float32", "cpu")
    assert Path(base.source).is_relative_to(tmp_path / "temporary")
    assert load_base(str(tmp_path / "tiny.gguf"), "float32", "cpu").source == base.source


def test_training_needs_no_cache_for_its_samples(tmp_path, monkeypatch, tiny_folder, few_samples):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("sempa.training.base_samples.cache_folder", lambda: tmp_path / "file" / "cache")
    base = load_base(str(tiny_folder), "float32", "cpu")
    with pytest.warns(UserWarning, match="the samples are drawn anew next time"):
        texts = sample_texts(base)
    assert texts


# Standard output


def test_a_command_goes_on_when_its_reader_leaves():
    reader, writer = os.pipe()
    os.close(reader)
    code = "import sys, sempa.commands.train\nfrom sempa.cli import main\n"
    code += "sempa.commands.train.run = lambda arguments: print('result')\nsys.exit(main(['train']))"
    done = subprocess.run([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_fingerprint_is_that_of_its_parts_one_by_one():
    whole = hashlib.sha256(b"'a'\x001\x00[2, 'b']\x00").hexdigest()[:16]
    assert files.fingerprint("a", 1, [2, "b"]) == whole != files.fingerprint("a", 1, [2], "b")


def test_a_path_that_is_not_utf8_is_escaped_in_a_file_that_names_it(tmp_path):
    """A name from an older file system, or in a locale without UTF-8."""
    files.write_json(tmp_path / "settings.json", {"triplets": "gr\udcf6\udcdfe.csv"})
    assert (tmp_path / "settings.json").read_text(encoding="utf-8") == '{\n  "triplets": "gr\\udcf6\\udcdfe.csv"\n}\n'
    assert files.read_json(tmp_path / "settings.json") == {"triplets": "gr\udcf6\udcdfe.csv"}
