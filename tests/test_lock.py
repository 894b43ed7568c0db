"""One writer a run folder: a second one learns who the first is, and a dead one's lock is no obstacle."""

import errno
import os
import signal
import subprocess
import sys

import pytest

from sempa import SempaError
from sempa.io.lock import folder_lock

HOLD = """
import sys, time
from pathlib import Path
from sempa.io.lock import folder_lock

with folder_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_the_holder_is_named_and_a_killed_one_holds_nothing(tmp_path, holder):
    with (
        pytest.raises(SempaError, match=rf"run: process {holder.pid} on .*, since 2.* is writing here"),
        folder_lock(tmp_path / "run"),
    ):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with folder_lock(tmp_path / "run"):
        pass


def test_a_training_does_not_begin_beside_another_nor_resume_it(tmp_path, holder, tiny_folder, triplets_file):
    run = tmp_path / "run"
    config = tmp_path / "config.yaml"
    config.write_text(f"model: {tiny_folder}\ndtype: float32\ntriplets: {triplets_file}\nretention: 0\n")
    (run / "config.yaml").write_text(config.read_text())
    for arguments in ([str(config), f"output={run}"], ["--resume", str(run)]):
        done = subprocess.run(
            [sys.executable, "-m", "sempa", "train", *arguments], capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 2
        assert f"process {holder.pid} on " in done.stderr
    assert sorted(path.name for path in run.iterdir()) == [".lock", "config.yaml"]


def test_the_lock_is_free_again_afterwards_and_names_its_latest_holder_alone(tmp_path):
    for _ in range(2):
        with folder_lock(tmp_path):
            assert (tmp_path / ".lock").read_text().count("process ") == 1


def test_a_lock_that_cannot_be_written_names_the_folder(tmp_path):
    (tmp_path / ".lock").symlink_to("/dev/full")
    with pytest.raises(SempaError, match=f"{tmp_path}: cannot be written"), folder_lock(tmp_path):
        pass


def test_where_the_file_system_has_no_locks_the_work_goes_on(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("sempa.io.lock.fcntl.flock", no_locks)
    with folder_lock(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").exists()


def test_a_lock_that_is_a_link_is_refused(tmp_path):
    """A folder from elsewhere may bring one along."""
    (tmp_path / "target").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "target")
    with pytest.raises(SempaError, match="run: cannot be written"), folder_lock(tmp_path / "run"):
        pass
    assert (tmp_path / "target").read_text() == "precious"
