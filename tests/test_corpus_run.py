"""The large corpus's script: a killed and resumed corpus is whole, and a leak or a falling rate is reported."""

from pathlib import Path

import pytest
from conftest import load_script

RELIABILITY = Path(__file__).resolve().parents[1] / "experiments" / "reliability"


@pytest.fixture(scope="module")
def corpus():
    return load_script(RELIABILITY / "corpus.py")


def test_sentences_are_short_and_no_two_are_equal(corpus):
    made = [corpus.sentence(number) for number in range(5000)]
    assert len(set(made)) == 5000 and max(map(len, made)) < 60


def test_a_corpus_that_is_killed_and_resumed_is_whole(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "SECONDS_BETWEEN_SAMPLES", 0.02)
    result = corpus.corpus_run(tmp_path, 4000, shard_rows=64)
    assert result["whole"] and result["exit_statuses"] == [-9, 0]
    assert (result["rows"], result["samples"]["rows"][0]) == (4000, result["killed_at"])
    assert 4000 / 3 <= result["killed_at"] < 4000
    pytest.importorskip("matplotlib")
    assert "sentences embedded, thousand" in corpus.plot(result)


def test_the_rate_is_a_slope_of_rows_over_seconds(corpus):
    seconds, rows = list(range(100)), [10 * s for s in range(50)] + [500 + 5 * s for s in range(50)]
    assert corpus._rate(seconds, rows, slice(None, 50)) == pytest.approx(10)
    assert corpus._rate(seconds, rows, slice(50, None)) == pytest.approx(5)
