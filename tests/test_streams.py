"""Standard output and error outlast their reader, and show any text."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sempa import SempaError
from sempa.io.streams import exit_code


def run(code, **options):
    code = f"import sys\nfrom sempa.io.streams import exit_code\n{code}\nsys.exit(exit_code('program', work))"
    return subprocess.run([sys.executable, "-c", code], stderr=subprocess.PIPE, timeout=60, **options)


def test_work_goes_on_when_the_reader_of_standard_output_leaves(tmp_path):
    reader, writer = os.pipe()
    os.close(reader)
    code = f"""
def work():
    for line in range(10_000):
        print(line, flush=line % 100 == 0)
    open({str(tmp_path / "done")!r}, "w").write("done")
"""
    done = run(code, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "done").read_text() == "done"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_standard_output_is_an_error_at_the_end(tmp_path):
    with Path("/dev/full").open("w") as full:
        done = run("def work(): print(1, flush=True); print(2, file=sys.stderr)", stdout=full)
    assert done.returncode == 2
    assert done.stderr.decode() == "2\nprogram: standard output cannot be written: No space left on device\n"


def test_closed_streams_are_no_obstacle():
    code = "def work(): print(1); print(2, file=sys.stderr); assert not sys.stderr.isatty()"
    for preexec in (lambda: os.close(1), lambda: os.close(2)):
        assert run(code, stdout=subprocess.PIPE, preexec_fn=preexec).returncode == 0


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_terminal_of_any_encoding_shows_any_text(encoding, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    before = sys.stdout
    assert exit_code("program", lambda: print("ρ é 我们 \udcff")) == 0
    assert sys.stdout is before
    expected = {"ascii": r"\u03c1 \xe9 \u6211\u4eec", "cp1252": r"\u03c1 é \u6211\u4eec", "utf-8": "ρ é 我们"}
    assert raw.getvalue().decode(encoding) == expected[encoding] + " \\udcff\n"


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (SempaError("file:3: found 1, expected 2"), 2, "program: file:3: found 1, expected 2\n"),
        (
            FileNotFoundError(2, "No such file or directory", "here"),
            2,
            "program: [Errno 2] No such file or directory: 'here'\n",
        ),
        (KeyboardInterrupt(), 130, "program: interrupted\n"),
        (KeyboardInterrupt("stopped and saved"), 130, "program: stopped and saved\n"),
    ],
)
def test_bad_input_and_an_interrupt_are_one_line_and_a_code(error, code, line, capsys):
    def work():
        print("so far")
        raise error

    assert exit_code("program", work) == code
    assert capsys.readouterr() == ("so far\n", line)


def test_the_code_is_what_the_program_returns_and_its_own_faults_are_not_hidden():
    assert [exit_code("program", lambda found=found: found) for found in (None, 0, 1)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        exit_code("program", lambda: 1 / 0)


def test_too_little_memory_on_a_gpu_is_one_line_that_says_what_needs_less(capsys):
    def work():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")

    assert exit_code("program", work) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("program: CUDA out of memory. Tried to allocate 20.00 MiB.; less at once needs less: ")
    assert "--batch-size" in line and "row_tokens or checkpoint_activations=true" in line


def test_another_mistake_of_the_programs_own_is_none_of_the_users():
    def work():
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        exit_code("program", work)
