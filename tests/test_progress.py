"""Progress as a log sees it: whole lines, now and then, and one at the end."""

import time

import pytest

from sempa.io import progress


def test_a_log_gets_whole_lines_with_rate_and_time_left(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_MINUTE", 0.05)
    with progress.bar(40, "embedding", "sentence") as drawn:
        for _ in range(40):
            time.sleep(0.01)
            drawn.update(1)
    *between, end = capsys.readouterr().err.split("\n")[:-1]
    assert between and len(between) < 20
    for line in between:
        words = line.split()
        assert line.startswith("embedding: ") and line.endswith(" minutes left") and "\r" not in line
        done, rate, left = int(words[1]), float(words[5]), float(words[-3])
        assert 0 < done < 40
        # The patched minute is 0.05 seconds.
        assert left * 0.05 == pytest.approx((40 - done) / rate, rel=0.1, abs=0.01)
    assert end.startswith("embedding: 40 sentences in ")


@pytest.mark.parametrize("total", [0, 3])
def test_short_work_gets_one_line_and_broken_work_none(capsys, total):
    with progress.bar(total, "texts", "text") as drawn:
        drawn.update(total)
    assert capsys.readouterr().err.startswith(f"texts: {total} texts in ")
    with pytest.raises(KeyError), progress.bar(5, "texts", "text") as drawn:
        drawn.update(2)
        raise KeyError
    assert capsys.readouterr().err == ""
