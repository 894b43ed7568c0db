"""The long run's verdict: a flat process is called flat, and each kind of leak is not."""

from pathlib import Path

import numpy as np
import pytest
from conftest import load_script

RELIABILITY = Path(__file__).resolve().parents[1] / "experiments" / "reliability"
MIB = 2**20


@pytest.fixture(scope="module")
def long_run():
    return load_script(RELIABILITY / "long_run.py")


def samples(long_run, rounds=500, memory=0.0, **leaks):
    """A process of 400 MiB that warms up over its first rounds, with noise, and with leaks per round."""
    noise = np.random.default_rng(0).normal(0, MIB, rounds)
    return [
        long_run.Sample(
            seconds=12.0 * i,
            memory=int(400 * MIB - 50 * MIB * np.exp(-i / 20) + noise[i] + i * memory),
            **{name: 5 + int(i * leaks.get(name, 0)) for name in ("handles", "threads", "cache")},
        )
        for i in range(rounds)
    ]


def verdict(result):
    return {key for key, value in result.items() if key.endswith("_flat") and not value}


def test_a_flat_process_is_called_flat(long_run):
    result = long_run.judge(samples(long_run))
    assert verdict(result) == set()
    assert abs(result["memory_growth_mib"]) < 1


def test_memory_that_climbs_is_not_flat(long_run):
    result = long_run.judge(samples(long_run, memory=0.04 * MIB))
    assert verdict(result) == {"memory_flat"}
    assert result["memory_growth_mib"] == pytest.approx(0.04 * 399, abs=1)
    assert result["memory_growth_kib_per_round"] == pytest.approx(0.04 * 1024, rel=0.1)


@pytest.mark.parametrize("name", ["handles", "threads", "cache"])
def test_a_count_that_climbs_is_not_flat(long_run, name):
    assert verdict(long_run.judge(samples(long_run, **{name: 0.01}))) == {f"{name}_flat"}


def test_this_process_is_measured(long_run, tmp_path):
    before = long_run.measure(0.0, tmp_path)
    (tmp_path / "kept").write_bytes(b"0" * 1000)
    held = np.ones(64 * MIB, np.uint8)
    with (tmp_path / "kept").open():
        after = long_run.measure(0.0, tmp_path)
    assert after.handles == before.handles + 1
    assert (before.cache, after.cache) == (0, 1000)
    assert after.memory - before.memory > 0.9 * len(held)
