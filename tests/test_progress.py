"""Progress: lines in a log, a bar on a terminal, nothing without a name."""

import sys
import time

from sempa.io import progress


def count_to_ten(what: str) -> None:
    with progress.bar(10, what, "row") as shown:
        for _ in range(10):
            time.sleep(0.05)
            shown.update(1)


def test_a_log_gets_whole_lines(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_EVERY", 0.1)
    count_to_ten("rows")
    lines = capsys.readouterr().err.splitlines(keepends=True)
    assert 2 <= len(lines) <= 6
    assert all(line.startswith("rows: ") and line.endswith("\n") and "\r" not in line for line in lines)
    assert "10/10" in lines[-1]


def test_what_ends_within_a_minute_leaves_no_line_in_a_log(capsys):
    count_to_ten("rows")
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    count_to_ten("rows")
    assert capsys.readouterr().err.count("\r") > 2


def test_nothing_is_shown_without_a_name(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    count_to_ten("")
    assert capsys.readouterr().err == ""
