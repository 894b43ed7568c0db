"""HellaSwag against plain forward passes and the real lm-evaluation-harness; its paired statistics against scipy's."""

import gzip
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
import yaml
from conftest import SHARED

from sempa import SempaError
from sempa.cli import main
from sempa.evaluation import hellaswag
from sempa.evaluation.hellaswag import HellaSwagTask, encode_tasks, measure_hellaswag, read_hellaswag
from sempa.evaluation.statistics import compare_accuracies
from sempa.model.adapter_files import save_adapter
from sempa.model.lora import adapter_disabled
from sempa.report.run_report import terminal_table, write_report

TASK_FILE = Path(__file__).resolve().parents[1] / "experiments" / "lm_eval" / "hellaswag.yaml"
OWNERS = ("man", "woman", "girl", "boy", "cat", "horse", "bird", "dog")
ENDINGS = ["is petted.", "ignores the horse and [the  man] runs off.", "x", "sleeps [title] it dreams  of it"]


def lines(count=24):
    rng, rows = random.Random(0), []
    for k in range(count):
        endings = [f"{ending} {' '.join(rng.choices(OWNERS, k=3))}" for ending in ENDINGS]
        rows.append({"ctx": f"Pets: The dog {k} of a {OWNERS[k % 8]} ", "endings": endings, "label": rng.randrange(4)})
    return rows


def write(path, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def plain_choice(base, task):
    """The best ending by one forward pass for each, and one log-softmax over all logits."""
    scores = []
    for ending in task.endings:
        before, whole = base.tokenizer([task.context, f"{task.context} {ending}"], add_special_tokens=False)[
            "input_ids"
        ]
        with torch.no_grad():
            logprobs = base.model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
        total = sum(logprobs[i - 1, whole[i]].item() for i in range(len(before), len(whole)))
        scores.append(total / len(ending))
    return scores.index(max(scores))


def test_accuracies_are_those_of_plain_forward_passes(adapted_base, tmp_path):
    tasks = read_hellaswag(write(tmp_path / "h.jsonl.gz", lines()))
    measured = measure_hellaswag(adapted_base, tasks)
    after = [plain_choice(adapted_base, task) == task.answer for task in tasks]
    with adapter_disabled(adapted_base.model):
        before = [plain_choice(adapted_base, task) == task.answer for task in tasks]
    assert before != after
    assert measured["tasks"] == 24
    assert (measured["base"], measured["aligned"]) == (np.mean(before), np.mean(after))
    assert measured["change_stderr"] == pytest.approx(np.std(np.subtract(after, before, dtype=float), ddof=1) / 24**0.5)


def test_the_harness_gives_the_same_accuracies_from_the_shipped_task_file(adapted_base, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    from sempa.integrations.lm_eval import run_harness

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    # The published labels are text.
    data = write(tmp_path / "hellaswag_val.jsonl.gz", [{**row, "label": str(row["label"])} for row in lines()])
    # The shipped file names the data in the current folder.
    monkeypatch.chdir(tmp_path)
    rows = run_harness(adapted_base, "RUN/adapter", tmp_path / "out", [str(TASK_FILE)])
    (row,) = [row for row in rows if row["metric"] == "acc_norm"]
    measured = measure_hellaswag(adapted_base, read_hellaswag(data))
    assert {name: row[name] for name in ("base", "aligned")} == {name: measured[name] for name in ("base", "aligned")}
    for name in ("base_stderr", "aligned_stderr", "change", "change_stderr"):
        assert row[name] == pytest.approx(measured[name], abs=1e-9)
    assert measured["change"] != 0


def test_the_shipped_task_file_reads_the_published_layout_as_we_do(tmp_path):
    pytest.importorskip("lm_eval")
    from lm_eval.utils import apply_template

    row = {
        "activity_label": "Pets ",
        "ctx_a": "A dog [header] barks.",
        "ctx_b": "then it",
        "ctx": "unused",
        "label": "3",
    }
    row["endings"] = ENDINGS
    task, _ = read_hellaswag(write(tmp_path / "h.jsonl", [row, row]))
    shipped = yaml.safe_load(TASK_FILE.read_text())
    text, target = shipped["doc_to_text"], shipped["doc_to_target"]
    assert apply_template(text, row) == task.context == "Pets : A dog barks. Then it"
    assert apply_template(target, row) == "3"
    own = {"ctx": "Pets: A dog barks. Then it", "label": 0, "endings": ENDINGS}
    assert apply_template(text, own) == "Pets: A dog barks. Then it"
    assert apply_template(target, own) == "0"


def test_the_published_layout_gives_the_harness_s_own_context(tmp_path):
    pytest.importorskip("lm_eval")
    datasets = pytest.importorskip("datasets")
    from lm_eval.tasks.hellaswag.utils import process_docs

    row = {
        "activity_label": "Pets",
        "ctx_a": "A dog [header] barks.",
        "ctx_b": "then it",
        "ctx": "unused",
        "label": "3",
    }
    row["endings"] = ENDINGS
    (theirs,) = process_docs(datasets.Dataset.from_list([row]))
    task, _ = read_hellaswag(write(tmp_path / "h.jsonl", [row, row]))
    assert (task.context, list(task.endings), task.answer) == (theirs["query"], theirs["choices"], theirs["gold"])


def test_a_sample_is_drawn_from_the_whole_file_the_same_each_time(tmp_path):
    path = write(tmp_path / "h.jsonl", lines())
    every, drawn = read_hellaswag(path), read_hellaswag(path, 6)
    assert drawn == read_hellaswag(path, 6)
    places = [every.index(task) for task in drawn]
    # Another draw would be another figure.
    assert places == [2, 4, 10, 11, 18, 21]
    assert read_hellaswag(path, 100) == every


def test_paired_statistics_are_scipys():
    rng = np.random.default_rng(0)
    before = rng.random(300) < 0.4
    after = before ^ (rng.random(300) < 0.1)
    found = compare_accuracies(before, after)
    test = scipy.stats.ttest_rel(after.astype(float), before.astype(float))
    assert found["change"] / found["change_stderr"] == pytest.approx(test.statistic)
    assert found["base_stderr"] == pytest.approx(scipy.stats.sem(before.astype(float)))
    gained, lost = (after & ~before).sum(), (before & ~after).sum()
    # Below both tails of a fair coin, doubled.
    tail = scipy.stats.binom.cdf(min(gained, lost), gained + lost, 0.5)
    assert found["p"] == pytest.approx(min(1, 2 * tail))
    assert compare_accuracies(before, before)["p"] == 1
    # Far less than if the two were measured on different questions.
    assert found["change_stderr"] < 0.7 * np.hypot(found["base_stderr"], found["aligned_stderr"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"endings": None}, r"KeyError\('endings'\)"),
        ({"ctx": None}, r"KeyError\('ctx'\)"),
        ({"activity_label": "Pets", "ctx_a": "A dog"}, r"KeyError\('ctx_b'\)"),
        ({"endings": ["a", "b"]}, "an ending too few"),
        ({"endings": ["a", "b", "c", 4]}, "'int' object has no attribute"),
        ({"endings": ["a", "b", "c", " "]}, "an empty text"),
        ({"endings": "abcd"}, "an ending too few"),
        ({"label": ""}, "invalid literal for int"),
        ({"label": 2.9}, "invalid literal for int"),
        ({"label": 4}, "4 is not in range"),
    ],
)
def test_a_line_of_another_layout_is_named_with_what_it_lacks(tmp_path, change, message):
    good, bad = lines(2)
    bad = {name: value for name, value in {**bad, **change}.items() if value is not None}
    with pytest.raises(SempaError, match=rf"h\.jsonl:2: .*{message}.*; expected endings \(four texts\), label"):
        read_hellaswag(write(tmp_path / "h.jsonl", [good, bad]))


@pytest.mark.parametrize(("count", "asked"), [(1, 0), (5, 1)])
def test_fewer_tasks_than_have_a_standard_error_are_refused(tmp_path, count, asked):
    path = write(tmp_path / "h.jsonl", lines(count))
    with pytest.raises(SempaError, match=r"h\.jsonl: 1 task, expected at least 2"):
        read_hellaswag(path, asked)


def test_the_command_prints_it_and_puts_it_into_the_runs_report(
    adapted_base, tiny_folder, tmp_path, capsys, monkeypatch
):
    run = tmp_path / "run"
    save_adapter(adapted_base.model, run / "adapter", str(tiny_folder))
    data, out = write(tmp_path / "h.jsonl", lines()), tmp_path / "out.json"
    command = ["evaluate", "--model", str(tiny_folder), "--dtype", "float32", "--adapter", str(run / "adapter")]
    command += ["--builtin-pairs", "0", "--no-drift", "--hellaswag", str(data), "--hellaswag-tasks", "20"]
    assert main([*command, "--report"]) == 2
    assert "report: give --hellaswag FILE and --adapter RUN, the folder of a finished run" in capsys.readouterr().err
    write_report(run, {"model": "tiny", "notes": ["as it was"]}, [])
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    assert main([*command, "--report", "--json", str(out)]) == 0
    shown = capsys.readouterr().out
    written = json.loads(out.read_text())
    measured = written["hellaswag"]
    assert (written["readout"], written["layer"]) == ("prompteol", -1)
    assert {"date", "versions", "machine"} <= set(written)
    assert measured["tasks"] == 20
    assert f"{100 * measured['base']:.1f} % ± {100 * measured['base_stderr']:.1f}" in shown
    report = json.loads((run / "report.json").read_text())
    assert report == {"model": "tiny", "notes": ["as it was"], "hellaswag": measured}
    assert terminal_table({"hellaswag": measured}) in shown
    assert f"HellaSwag: {100 * measured['change']:+.2f} points." in (run / "report.html").read_text()
    (run / "report.json").write_text('{"sts": [{"task": "of another layout"}]}')
    with monkeypatch.context() as patched:
        patched.setattr("sempa.commands.evaluate.load_embedder", lambda *_, **__: pytest.fail("the work began"))
        assert main([*command, "--report"]) == 2
        assert f"report: {run / 'report.json'} is not one of this version's runs" in capsys.readouterr().err
        (run / "metrics.jsonl").unlink()
        assert main([*command, "--report"]) == 2
        assert "metrics.jsonl" in capsys.readouterr().err
    long = write(tmp_path / "long.jsonl", [row | {"endings": [*ENDINGS[:3], "x " * 2048]} for row in lines(2)])
    with monkeypatch.context() as patched:
        patched.setattr("sempa.evaluation.measure.measure_sts", lambda *_: pytest.fail("the work began"))
        assert main([*command, "--builtin-pairs", "8", "--hellaswag", str(long)]) == 2
        assert re.search(r"HellaSwag: 'Pets: The dog .* tokens, expected at most 2,048", capsys.readouterr().err)
    for words, message in (
        (["--hellaswag-tasks", "-1"], "--hellaswag-tasks: found -1"),
        (["--hellaswag", str(tmp_path / "nowhere")], "nowhere: no such file"),
    ):
        assert main([*command, *words]) == 2
        assert message in capsys.readouterr().err
    assert main(["evaluate", "--report"]) == 2
    assert "report: give --hellaswag FILE and --adapter RUN" in capsys.readouterr().err


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real HellaSwag is not beside the project")
def test_the_real_file_has_its_ten_thousand_tasks():
    tasks = read_hellaswag(SHARED / "generation" / "hellaswag_val.jsonl.gz")
    assert len(tasks) == 10_042
    assert tasks[0].context == "Roof shingle removal: A man is sitting on a roof. he"
    assert np.bincount([task.answer for task in tasks]).tolist() == [2515, 2485, 2584, 2458]


def test_an_ending_counts_its_own_characters_without_the_blank_before_it(adapted_base, monkeypatch):
    # Per character −2, −1.95, −3, −3; with a blank, or per byte, the first would win.
    logprobs = torch.tensor([[-4.0, -7.8, -9.0, -9.0]] * 2)
    monkeypatch.setattr(hellaswag, "response_logprobs", lambda *_: logprobs)
    tasks = [HellaSwagTask("It", ("éé", "runs", "was", "may"), 1)] * 2
    assert measure_hellaswag(adapted_base, tasks)["base"] == 1.0


def test_a_task_may_fill_the_models_context(adapted_base, tmp_path, monkeypatch):
    path = tmp_path / "h.jsonl"
    # Blank lines are passed over.
    path.write_text("\n\n".join(map(json.dumps, lines(2))) + "\n\n")
    tasks = read_hellaswag(path)
    longest = max(len(one.prompt) + max(map(len, one.responses)) for one in encode_tasks(adapted_base, tasks))
    monkeypatch.setattr(hellaswag, "context_length", lambda model: longest)
    assert len(encode_tasks(adapted_base, tasks)) == 2
    monkeypatch.setattr(hellaswag, "context_length", lambda model: longest - 1)
    with pytest.raises(SempaError, match=f"has {longest} tokens, expected at most {longest - 1}"):
        encode_tasks(adapted_base, tasks)
