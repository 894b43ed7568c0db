"""The GPU script's rehearsal on a CPU: every section runs, every check passes, and what is missing says why."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import load_script

SCRIPT = Path(__file__).resolve().parents[1] / "experiments" / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu():
    return load_script(SCRIPT)


@pytest.fixture(scope="module")
def checks(gpu):
    return load_script(SCRIPT.with_name("gpu_checks.py"))


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    """`gpu.py --tiny` in a process of its own."""
    out = tmp_path_factory.mktemp("gpu") / "result"
    command = [sys.executable, str(SCRIPT), "--tiny", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done, out


def test_every_section_runs_and_every_check_passes(rehearsal):
    done, out = rehearsal
    assert done.returncode == 0, done.stderr[-2000:]
    sections = {
        entry["name"]: entry.get("rows") for entry in json.loads(out.with_suffix(".json").read_text())["sections"]
    }
    assert all(sections.values())
    checks = [row for rows in sections.values() for row in rows if "passes" in row]
    assert len(checks) >= 4 and all(row["passes"] for row in checks)
    for name in ("log-probabilities", "step, 1 B", "step, 8 B", "embedding"):
        ours = [row for row in sections[name] if row["contestant"].startswith("sempa")]
        assert ours and all(row["ms"] > 0 for row in ours)
        assert all("ms" in row or row["skipped"] for row in sections[name])
    assert all(row["MFU, % of a bare product"] > 0 for row in sections["step, 8 B"] if row["contestant"] == "sempa")


def test_the_table_and_the_picture_show_every_contestant(rehearsal):
    pytest.importorskip("matplotlib")
    _, out = rehearsal
    table, picture = (out.with_suffix(kind).read_text() for kind in (".md", ".svg"))
    for entry in json.loads(out.with_suffix(".json").read_text())["sections"]:
        assert f"## {entry['name']} (" in table
        for row in entry["rows"]:
            if "ms" in row:
                assert f"{row['contestant']} " in table
                assert row["contestant"] in picture


def test_a_section_that_fails_is_kept_with_its_reason_and_the_next_one_runs(gpu, tmp_path, monkeypatch):
    def fails(setting):
        raise RuntimeError("out of luck\nand more")

    sections = {"first": fails, "second": lambda setting: [{"what": "ran", "passes": True}]}
    monkeypatch.setattr(gpu, "SECTIONS", sections)
    setting = gpu.tiny_setting("cpu", tmp_path)
    result = gpu.run_sections(setting, tmp_path / "result", "gpu.py")
    failed, ran = json.loads((tmp_path / "result.json").read_text())["sections"]
    assert failed["failed"] == "RuntimeError: out of luck" and ran["rows"] == [{"what": "ran", "passes": True}]
    assert "failed: RuntimeError: out of luck" in gpu.as_markdown(result)


def test_a_contestant_that_fails_is_skipped_with_its_reason(gpu, tmp_path):
    def missing():
        raise ModuleNotFoundError("No module named 'liger_kernel'")

    makers = {"Liger": missing, "sempa": lambda: lambda: None}
    rows = load_script(SCRIPT.with_name("gpu_races.py"))._measure(gpu.tiny_setting("cpu", tmp_path), makers)
    assert rows[0] == {"contestant": "Liger", "skipped": "ModuleNotFoundError: No module named 'liger_kernel'"}
    assert rows[1]["ms"] >= 0


def test_a_contestant_that_takes_too_long_is_ended_and_those_before_it_are_kept(gpu, tmp_path, monkeypatch):
    makers = {"sempa": lambda: lambda: None, "TRL": lambda: lambda: time.sleep(60)}
    measure = load_script(SCRIPT.with_name("gpu_races.py"))._measure
    monkeypatch.setattr(gpu, "SECTIONS", {"race": lambda setting: measure(setting, makers)})
    monkeypatch.setattr(gpu, "LAST", 1)
    result = gpu.run_sections(gpu.tiny_setting("cpu", tmp_path), tmp_path / "result", "gpu.py")
    ours, theirs = result["sections"][0]["rows"]
    assert ours["ms"] >= 0
    assert theirs["skipped"] == "TimeoutError: ended: its time is over"


def test_what_was_measured_is_kept_when_the_time_is_over_while_memory_is_freed(gpu, tmp_path, monkeypatch):
    races = load_script(SCRIPT.with_name("gpu_races.py"))
    monkeypatch.setattr(races, "free_memory", lambda: time.sleep(2))
    monkeypatch.setattr(
        gpu, "SECTIONS", {"race": lambda setting: races._measure(setting, {"sempa": lambda: lambda: None})}
    )
    monkeypatch.setattr(gpu, "LAST", 1)
    result = gpu.run_sections(gpu.tiny_setting("cpu", tmp_path), tmp_path / "result", "gpu.py")
    assert result["sections"][0]["rows"][0]["ms"] >= 0


def test_a_package_index_that_does_not_answer_is_a_reason(gpu, tmp_path, monkeypatch):
    def hang(command, timeout, **_):
        raise subprocess.TimeoutExpired("pip", timeout)

    monkeypatch.setattr(subprocess, "run", hang)
    rows = load_script(SCRIPT.with_name("gpu_races.py")).install_peers(gpu.tiny_setting("cuda", tmp_path))
    assert [row["package"] for row in rows] == ["liger-kernel", "cut-cross-entropy"]
    assert all("timed out after 40 seconds" in row["skipped"] for row in rows)


def test_a_wrong_result_does_not_pass(gpu, checks, tmp_path, monkeypatch):
    """A kernel at a wrong temperature, and a row without its mask."""
    setting = gpu.tiny_setting("cpu", tmp_path)
    right, states = checks.token_logprobs, checks.hidden_states
    assert all(row["passes"] for row in checks.check_kernel(setting))
    monkeypatch.setattr(checks, "token_logprobs", lambda hidden, weight, targets: right(1.5 * hidden, weight, targets))
    assert not any(row["passes"] for row in checks.check_kernel(setting))
    assert all(row["passes"] for row in checks.check_packing(setting))
    monkeypatch.setattr(checks, "row_states", lambda model, row: states(model, torch.tensor([row.tokens]))[0])
    assert not any(row["passes"] for row in checks.check_packing(setting))


def test_large_shapes_are_those_of_their_names(gpu, checks, tmp_path, monkeypatch):
    """Llama-3.2-1B and Llama-3-8B have 1.236 and 8.030 billion parameters."""
    settings = load_script(SCRIPT.with_name("gpu_setting.py"))
    monkeypatch.setattr(settings, "resolve_model", lambda name: str(settings.make_folder(tmp_path / "tiny")))
    shapes = gpu.full_setting("cuda", tmp_path).shapes
    for name, expected in (("1 B", 1_235_814_400), ("8 B", 8_030_261_248)):
        assert sum(p.numel() for p in checks.empty_model(shapes[name], torch.bfloat16, "meta").parameters()) == expected
