"""A corpus embedded on a Ray cluster: the same bytes as without, though a worker is killed half-way."""

from pathlib import Path

import numpy as np
import pytest

from sempa import SempaError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def ray_kill(monkeypatch):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[data]'")
    monkeypatch.syspath_prepend(ROOT / "experiments" / "reliability")
    import ray_kill

    return ray_kill


def test_a_worker_killed_half_way_costs_no_row_and_doubles_none(ray_kill, tmp_path):
    result = ray_kill.ray_kill(tmp_path, rows=105, shard_rows=10)
    assert result["rows"] == 105
    assert result["shards"] == 11
    assert result["chunks_lost_in_the_kill_and_embedded_anew"] == 1
    assert result["worker_processes_with_the_one_started_anew"] >= 2


@pytest.mark.parametrize("numbers", [[[0, 1], [3]], [[0, 1], [1, 2]], [[1, 0]]])
def test_rows_that_are_lost_doubled_or_out_of_order_are_refused(monkeypatch, numbers):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[data]'")
    monkeypatch.syspath_prepend(ROOT / "examples")
    from embed_on_ray import _in_order

    batches = [{"row": np.array(rows), "embedding": np.ones((len(rows), 4))} for rows in numbers]
    with pytest.raises(SempaError, match=r"where row \d was expected"):
        list(_in_order(batches))


def test_no_workers_are_refused_before_the_corpus_is_read(monkeypatch, capsys):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[data]'")
    monkeypatch.syspath_prepend(ROOT / "examples")
    import embed_on_ray

    with pytest.raises(SystemExit, match="2"):
        embed_on_ray.main(["in.txt", "out", "--workers", "0"])
    assert "--workers: found 0, expected a whole number from 1" in capsys.readouterr().err
