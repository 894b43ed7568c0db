"""Outputs are checked before the work, a cache is never needed, and standard output may go away."""

import errno
import io
import os
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sempa import SempaError
from sempa.cli import main
from sempa.io import files
from sempa.io.files import cache_folder, check_output, optional_write, user_path, write_atomic, write_json
from sempa.io.streams import lasting_streams
from sempa.io.tensors import write_tensors
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
        files.replace_folder(tmp_path / "model", write)
        write_atomic(tmp_path / "one.txt", "x")
        write_tensors(tmp_path / "c.safetensors", tensors)
    finally:
        os.umask(before)
    written = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    names = ("a.safetensors", "b.safetensors", "c.safetensors", "one.txt")
    assert written == {"model": 0o750, "in": 0o750} | dict.fromkeys(names, 0o640)


def test_an_output_that_cannot_be_written_is_found_beforehand(tmp_path, source):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for path, options, message in (
        (tmp_path / "folder", {}, "folder: is a folder, expected a file to write"),
        (source, {"folder": True}, "in.csv: is a file, expected a folder to write"),
        (source / "v.npy", {}, "v.npy: cannot be written, because .*in.csv is a file and no folder"),
        (source / "a" / "b", {"folder": True}, "b: cannot be written, because .*in.csv is a file and no folder"),
        (tmp_path / "fifo", {}, "fifo: is a device or a pipe, expected a file to write"),
        (Path("/dev/null"), {}, "/dev/null: is a device or a pipe, expected a file to write"),
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
    with pytest.raises(SempaError, match=f"because {tmp_path} is read-only"):
        check_output(tmp_path / "a" / "v.npy")


def test_a_device_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SempaError, match="is a device or a pipe"):
        write_json(tmp_path / "fifo", {})
    assert (tmp_path / "fifo").is_fifo()


def test_an_output_on_top_of_the_input_is_refused_by_any_name(source, tmp_path, monkeypatch, capsys):
    (tmp_path / "link.csv").symlink_to(source)
    (tmp_path / "twin.csv").hardlink_to(source)
    monkeypatch.chdir(tmp_path)
    before = source.read_bytes()
    for name in (source, "in.csv", "./in.csv", tmp_path / "link.csv", "twin.csv"):
        assert main(["embed", "--model", "/nowhere", str(source), str(name)]) == 2
        assert "is the input itself, which would be lost" in capsys.readouterr().err
    assert source.read_bytes() == before


def test_a_home_is_a_tilde_in_every_path(tmp_path, monkeypatch, source):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SEMPA_CACHE", "~/cache")
    assert user_path("~/in.csv") == source
    assert cache_folder() == tmp_path / "cache"
    with pytest.raises(SempaError, match="there is no such home folder"):
        user_path("~nobody-of-that-name/x")


def test_the_command_line_expands_a_tilde(tmp_path, monkeypatch, source, tiny_folder, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["embed", "--model", str(tiny_folder), "--dtype", "float32", "~/in.csv", "~/out/v.npy"]) == 0
    assert (tmp_path / "out" / "v.npy").is_file()
    assert main(["embed", "~nobody-of-that-name/in.csv", "v.npy"]) == 2
    assert "there is no such home folder" in capsys.readouterr().err


# What the file system refuses


def test_a_file_is_written_where_folders_cannot_be_forced_to_the_disk(tmp_path, monkeypatch):
    real = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomic(tmp_path / "a.txt", "x")
    assert (tmp_path / "a.txt").read_text() == "x"
    files.replace_folder(tmp_path / "b", lambda folder: (folder / "c").write_text("y"))
    assert (tmp_path / "b" / "c").read_text() == "y"


def test_a_file_that_cannot_be_forced_to_the_disk_is_an_error(tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(SempaError, match="Input/output error"):
        write_atomic(tmp_path / "a.txt", "x")
    assert list(tmp_path.iterdir()) == []


# The cache


def test_a_cache_that_cannot_be_written_is_a_warning_and_said_once(tmp_path):
    (tmp_path / "file").write_text("")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            with optional_write():
                write_json(tmp_path / "file" / "a.json", {})
    (warning,) = caught
    assert "is a file and no folder" in str(warning.message)
    assert warning.filename == __file__


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


def test_a_temporary_folder_ends_with_its_process_and_not_with_a_forked_child():
    code = (
        "import os, sys\nfrom sempa.io.files import temporary_folder\nfolder = temporary_folder()\n"
        "if os.fork() == 0: sys.exit()\nos.wait()\nassert folder.is_dir()\nprint(folder)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert not Path(done.stdout.strip()).exists()


def test_training_needs_no_cache_for_its_samples(tmp_path, monkeypatch, tiny_folder, few_samples):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("sempa.training.base_samples.cache_folder", lambda: tmp_path / "file" / "cache")
    base = load_base(str(tiny_folder), "float32", "cpu")
    with pytest.warns(UserWarning, match="it only saves time; the work goes on"):
        texts = sample_texts(base)
    assert texts


# Standard output and error


def run(code, **options):
    code = f"import sys\nfrom sempa.io.streams import lasting_streams\n{code}"
    return subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, timeout=60, **options)


def test_work_goes_on_when_the_reader_of_standard_output_leaves(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    code = f"""
with lasting_streams() as output:
    for line in range(10_000):
        print(line, flush=line % 100 == 0)
    assert output.error is None
open({str(tmp_path / "done")!r}, "w").write("done")
"""
    done = run(code, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "done").read_text() == "done"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output_is_an_error_at_the_end(tmp_path):
    code = "from sempa.cli import main\nsys.exit(main(['--version']))"
    with Path("/dev/full").open("w") as full:
        done = run("with lasting_streams() as output: print(1)\nsys.exit(output.error.errno)", stdout=full)
        assert done.returncode == errno.ENOSPC
        done = run(code.replace("sys.exit(main(['--version']))", FAILS_LATE), stdout=full)
    assert done.returncode == 2
    assert done.stderr.decode() == "sempa: standard output cannot be written: No space left on device\n"


FAILS_LATE = """
import sempa.commands.train
sempa.commands.train.run = lambda arguments: print("result")
sys.exit(main(["train"]))
"""


def test_closed_streams_are_no_obstacle():
    code = "with lasting_streams(): print(1); print(2, file=sys.stderr); assert not sys.stderr.isatty()"
    for preexec in (lambda: os.close(1), lambda: os.close(2)):
        assert run(code, stdout=subprocess.PIPE, preexec_fn=preexec).returncode == 0


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_terminal_of_any_encoding_shows_any_text(encoding, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    before = sys.stdout
    with lasting_streams():
        print("ρ é 我们 \udcff")
    assert sys.stdout is before
    expected = {"ascii": r"\u03c1 \xe9 \u6211\u4eec", "cp1252": r"\u03c1 é \u6211\u4eec", "utf-8": "ρ é 我们"}
    assert raw.getvalue().decode(encoding) == expected[encoding] + " \\udcff\n"
