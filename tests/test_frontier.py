"""The frontier's script: what it keeps, and the table and picture that it makes of its points."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import load_script

from sempa.config import load_config
from sempa.model.base import load_base

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "frontier" / "frontier.py"


@pytest.fixture(scope="module")
def frontier():
    return load_script(SCRIPT)


@pytest.fixture
def result(frontier):
    rows = [
        {
            "name": name,
            "seed": seed,
            "scale": scale,
            "average": 70 + 5 * scale + place + seed,
            "sts": {"STS12": 0.0, "STS-B dev": 80 + seed, "SICK trial": 64 + seed},
            "kl": {"passages": 0.02 * scale, "conversations": 9.0},
            "perplexity": {"passages": -0.5, "conversations": 9.0},
        }
        for place, name in enumerate(frontier.POINTS)
        for scale in (1.0, 0.5)
        # The second objective has one seed only.
        for seed in ((0,) if place == 1 else (0, 1))
    ]
    return {"base": {"average": 70.0, "sts": {"STS-B dev": 75.0, "SICK trial": 65.0}}, "rows": rows}


def test_every_point_is_a_config_of_a_known_family(frontier):
    for name, changes in frontier.POINTS.items():
        load_config(frontier.RECIPE, [f"{key}={value}" for key, value in changes.items()])
        assert name.split()[0] in frontier.COLOURS


def test_the_table_has_means_over_seeds_and_how_far_the_seeds_lie_apart(frontier, result):
    lines = frontier.table(result).splitlines()
    spread = "| +5.50 (+5.00 to +6.00) | +2.50 (+2.00 to +3.00) | 0.0200 (0.0200 to 0.0200) | -0.50 (-0.50 to -0.50) |"
    assert f"| default recipe | 1 | 2 {spread}" in lines
    assert "| contrast + retention, no DPO | 1 | 1 | +6.00 | +2.00 | 0.0200 | -0.50 |" in lines
    # The best first: every point is better than the one before it, and the default recipe is the first.
    assert lines[2].startswith(f"| {list(frontier.POINTS)[-1]} | 1 |")
    assert len(lines) == 2 + 2 * len(frontier.POINTS) + 2
    assert lines[-1] == "base: 70.00"


def test_the_picture_names_every_point_once(frontier, result):
    pytest.importorskip("matplotlib")
    picture = frontier.plot(result)
    texts = re.findall(r">([^<]*)</text>", picture)
    for name in frontier.POINTS:
        assert texts.count(name) == 1
    # In both planes and in the list, the best first.
    assert texts.count("1") == 3
    assert picture.startswith("<svg") and "prefers-color-scheme" in picture


def test_points_measured_under_other_settings_are_not_mixed_in(frontier, tmp_path, tiny_llama):
    file = tmp_path / "frontier.json"
    assert frontier._kept(file, {"limit": 1}, tiny_llama)["rows"] == []
    file.write_text('{"settings": {"limit": 1}, "rows": [1]}')
    assert frontier._kept(file, {"limit": 1}, tiny_llama)["rows"] == [1]
    # Of the versions and the machine that measured last.
    assert frontier._kept(file, {"limit": 1}, tiny_llama)["date"] == frontier.origin(tiny_llama)["date"]
    assert frontier._kept(file, {"limit": 2}, tiny_llama)["rows"] == []


@pytest.fixture
def stubbed(monkeypatch, tiny_folder, tmp_path):
    """Runs a script on a triplet file and a file of pairs; returns what it trains, which takes no time."""
    pairs = "sentence1,sentence2,score\nA man sings.,A dog runs.,1\nA cat.,The cat.,4\n"

    def run(script, triplets, scored):
        trained = []
        (tmp_path / scored).write_text(pairs)
        row = {"scale": 1.0, "sts": {}, "average": 0.0}
        for name, stub in {
            "load_base": lambda *_: load_base(str(tiny_folder), "float32", "cpu"),
            "plot": lambda result: "",
            "table": lambda result: "",
            "measure": lambda *_: {},
            "train_and_measure": lambda config, *_: trained.append(config.triplets) or [{}],
            "_scores": lambda *_: {},
            "_measure": lambda base, tasks, texts, name, values: (
                trained.append(values["triplets"]) or [{"name": name, "seed": values["seed"], **row}]
            ),
        }.items():
            monkeypatch.setattr(script, name, stub, raising=False)
        given = ["--triplets", triplets, "--sts", str(tmp_path / scored), "--out", str(tmp_path / "out")]
        monkeypatch.setattr(sys, "argv", ["script", *given])
        script.main()
        return trained

    return run


@pytest.mark.parametrize("name", ["frontier.py", "preference.py"])
def test_a_finished_run_is_kept_for_its_own_data_and_settings_alone(name, stubbed, monkeypatch):
    script = load_script(SCRIPT.with_name(name))
    runs = getattr(script, "RUNS", None) or script.POINTS
    assert stubbed(script, "snli.jsonl", "a.csv") == ["snli.jsonl"] * len(runs)
    assert stubbed(script, "snli.jsonl", "a.csv") == []
    assert stubbed(script, "mnli.jsonl", "a.csv") == ["mnli.jsonl"] * len(runs)
    assert stubbed(script, "mnli.jsonl", "b.csv") == ["mnli.jsonl"] * len(runs)
    monkeypatch.setitem(runs, next(iter(runs)), {"beta": 0.7})
    assert stubbed(script, "mnli.jsonl", "b.csv") == ["mnli.jsonl"]
    assert stubbed(script, "mnli.jsonl", "b.csv") == []


def test_the_curve_of_preference_alone_draws_every_run_at_both_readouts():
    pytest.importorskip("matplotlib")
    preference = load_script(SCRIPT.with_name("preference.py"))
    runs = []
    for name, changes in preference.RUNS.items():
        config = load_config(preference.RECIPE, [f"{key}={value}" for key, value in changes.items()])
        # The paper's objective and its relatives, on every triplet.
        assert (config.contrast, config.preference, config.preference_fraction) == (0, 1, 1)
        points = [{"triplets": n, "kl": 0.01, "prompteol": 74.0, "attention-sum": 76.0} for n in (320, 1280)]
        runs.append({"name": name, "seed": 0, "epochs": 1.0, "points": points})
    runs.append(runs[2] | {"epochs": 4.0})
    drawn = preference.plot({"base": {"prompteol": 73.9, "attention-sum": 75.9}, "runs": runs})
    texts = re.findall(r">([^<]*)</text>", drawn)
    assert {*preference.RUNS, "DPO + retention, 4 times"} < set(texts)
    assert sum("STS-B dev at" in text for text in texts) == 2


def test_a_missing_file_is_one_sentence_and_exit_code_2():
    command = [sys.executable, str(SCRIPT), "--triplets", "nowhere.jsonl", "--sts", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "frontier.py: nowhere: no such file\n"
