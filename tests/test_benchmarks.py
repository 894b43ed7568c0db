"""The benchmarks' pictures show what was measured."""

import argparse
import itertools
import json
import re
import shlex
import threading
from pathlib import Path

import pytest
from conftest import load_script

from sempa.model.threads import parallel_map

BENCHMARKS = Path(__file__).resolve().parents[1] / "experiments" / "benchmarks"
RESULTS = BENCHMARKS.parent / "results"


pytest.importorskip("matplotlib")


def texts(picture):
    return re.findall(r">([^<]*)</text>", picture)


@pytest.mark.parametrize(
    "name",
    [
        *("training-bfloat16", "training-avx512"),
        *("embedding-bfloat16", "embedding-xeon-float32", "embedding-xeon-bfloat16", "embedding-epyc"),
        *("logprob-kernel-bfloat16", "logprob-kernel-avx512", "logprob-kernel-trained"),
    ],
)
def test_a_bar_for_every_contestant_with_its_ratio_and_the_stored_picture_is_of_the_stored_figures(name):
    rows = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]
    picture = load_script(BENCHMARKS / "draw.py").bars(rows)
    shown = texts(picture)
    for row in rows:
        assert any(text.endswith(row["contestant"]) for text in shown)
        ratio = next(value for key, value in row.items() if key.startswith("x "))
        assert f"{ratio:.2f}" in shown
    assert sorted(shown) == sorted(texts((RESULTS / f"{name}.svg").read_text(encoding="utf-8")))


def test_passes_one_after_another_run_on_the_callers_thread(monkeypatch):
    monkeypatch.setattr("sempa.model.threads.passes_at_once", lambda model: 2)
    used = []

    def run():
        used[:] = parallel_map(None, lambda _: threading.current_thread(), range(4))

    run()
    assert threading.current_thread() not in used
    load_script(BENCHMARKS / "threads.py")._one_after_another(run)
    assert set(used) == {threading.current_thread()}


def test_growth_is_drawn_over_everything_that_grows():
    growth = load_script(BENCHMARKS / "growth.py")
    rows = [
        {"over": over, "size": size, "seconds": 0.5 * size, "peak MiB": 100.0}
        for over in growth.SIZES
        for size in (16, 32, 64)
    ]
    shown = texts(growth.plot(rows))
    assert shown.count("seconds") == shown.count("peak MiB") == 5
    assert {"tokens", "vocabulary", "triplets", "parameters", "sentences"} < set(shown)
    # Axes reach the largest point.
    assert "60" in shown


@pytest.mark.parametrize("over", ["tokens", "vocabulary", "triplets", "parameters", "sentences"])
def test_whatever_grows_can_be_run(over, tiny_folder):
    growth = load_script(BENCHMARKS / "growth.py")
    given = argparse.Namespace(device="cpu", dtype="float32", triplets="captions")
    assert growth.make_run(given, over, 8, str(tiny_folder))() is None


def test_the_kernels_growth_is_drawn_over_rows_and_over_the_vocabulary():
    logprob_kernel = load_script(BENCHMARKS / "logprob_kernel.py")
    rows = [
        {"N": n, "D": d, "V": v, "contestant": name, "ms": n * v / 1e6, "peak MiB": 50.0}
        for n, d, v in logprob_kernel._GROWTH
        for name in ("bare products", "sempa", "log_softmax")
    ]
    shown = texts(logprob_kernel.plot(rows))
    assert {"ms over N", "peak MiB over N", "ms over V", "peak MiB over V", "log_softmax"} < set(shown)


def test_contestants_follow_different_ones_in_the_rounds():
    ran = []
    names = "ABCDEFGH"
    load_script(BENCHMARKS / "race.py").alternate({name: lambda name=name: ran.append(name) for name in names}, 3)
    before = {name: {a for a, b in itertools.pairwise(ran[7:]) if b == name} for name in names}
    assert all(len(found) > 1 for found in before.values()) and all(ran.count(name) == 4 for name in names)


def test_a_results_command_can_be_given_again(tmp_path, monkeypatch):
    race = load_script(BENCHMARKS / "race.py")
    options = ["--only", "sempa step", "sempa step, rows of 512 tokens", "--sizes", "8,16,512;8,16,256"]
    monkeypatch.setattr(race, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["training.py", *options])
    given = argparse.Namespace(short=False, device="cpu", keep=None, rounds=1, dtype="float32")
    command = json.loads(race.keep("x", given, [{}], picture=None).read_text(encoding="utf-8"))["command"]
    assert shlex.split(command) == ["python", "experiments/benchmarks/training.py", *options]
