"""Progress: lines in a log, a bar on a terminal, nothing without a name."""

import sys

import pytest

from sempa.io import progress


@pytest.fixture
def count_to_ten(monkeypatch):
    """Ten rows, each after so many seconds of a clock that no busy machine slows."""
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])

    def count(what: str, seconds: float) -> None:
        with progress.bar(10, what, "row") as shown:
            for _ in range(10):
                now[0] += seconds
                shown.update(1)

    return count


def test_a_log_gets_a_whole_line_a_minute(count_to_ten, capsys):
    count_to_ten("rows", 30.0)
    lines = capsys.readouterr().err.splitlines(keepends=True)
    assert 3 <= len(lines) <= 6
    assert all(line.startswith("rows: ") and line.endswith("\n") and "\r" not in line for line in lines)
    assert all(line.isascii() for line in lines)
    assert "10/10" in lines[-1]


def test_what_ends_within_a_minute_leaves_no_line_in_a_log(count_to_ten, capsys):
    count_to_ten("rows", 5.9)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(count_to_ten, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    count_to_ten("rows", 0.2)
    assert capsys.readouterr().err.count("\r") > 2


def test_nothing_is_shown_without_a_name(count_to_ten, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    count_to_ten("", 0.2)
    assert capsys.readouterr().err == ""


def test_of_several_processes_the_first_alone_shows_it(count_to_ten, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        count_to_ten("rows", 0.2)
        assert ("rows" in capsys.readouterr().err) == (rank == "0")


def test_a_notebook_gets_a_bar_though_it_is_no_terminal(count_to_ten, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    count_to_ten("rows", 0.2)
    assert capsys.readouterr().err.count("\r") > 2
