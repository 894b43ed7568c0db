"""Standard output and error outlast their reader, and show any text."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sempa.io.streams import lasting_streams


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
