"""The real lm-evaluation-harness on tasks made here, base against aligned, and against plain forward passes."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from conftest import SHARED

from sempa import SempaError
from sempa.cli import main
from sempa.integrations import lm_eval as lm_eval_harness
from sempa.integrations.lm_eval import PAPER_TASKS, run_harness
from sempa.model.adapter_files import save_adapter
from sempa.model.lora import adapter_disabled

lm_eval = pytest.importorskip("lm_eval")

OWNERS = ("man", "woman", "girl", "boy", "cat", "horse", "bird", "dog")


@pytest.fixture(autouse=True)
def _private_datasets(tmp_path, monkeypatch):
    """What the harness caches of these data sets does not land in the user's cache."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


@pytest.fixture
def base(adapted_base):
    return adapted_base


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    rows = [
        {"question": f"The dog of a {owner}", "choices": ["is", "ignores the horse.", "x", owner[0]], "label": k % 4}
        for k, owner in enumerate(OWNERS)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def task_file(folder, name, data, **fields):
    path = folder / f"{name}.yaml"
    config = {"task": name, "dataset_path": "json", "test_split": "test", **fields}
    config["dataset_kwargs"] = {"data_files": {"test": str(data)}}
    path.write_text(yaml.safe_dump(config))
    return str(path)


@pytest.fixture
def choice_task(tmp_path, questions):
    fields = {"doc_to_text": "{{question}}", "doc_to_target": "label", "doc_to_choice": "{{choices}}"}
    metrics = [{"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")]
    return task_file(tmp_path, "which", questions, output_type="multiple_choice", metric_list=metrics, **fields)


def only_these_tasks(monkeypatch, folder):
    """Indexing the harness's own tasks takes ten seconds."""
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", lambda include_defaults: manager)


def samples(folder):
    (path,) = folder.rglob("samples_*.jsonl")
    rows = sorted(map(json.loads, path.read_text().splitlines()), key=lambda row: row["doc_id"])
    return rows


def choice_logprobs(base, question):
    """Σ log π of each choice behind the question, by a forward pass of its own."""
    sums = []
    for choice in question["choices"]:
        texts = [question["question"], f"{question['question']} {choice}"]
        before, whole = base.tokenizer(texts, add_special_tokens=False)["input_ids"]
        assert whole[: len(before)] == before
        with torch.no_grad():
            logprobs = base.model(torch.tensor([whole])).logits[0].log_softmax(-1)
        sums.append(sum(logprobs[i - 1, whole[i]].item() for i in range(len(before), len(whole))))
    return sums


def test_the_harness_scores_both_sides_as_plain_forward_passes_do(base, choice_task, questions, tmp_path):
    rows = run_harness(base, "RUN/adapter", tmp_path / "out", [choice_task], batch_size=3)
    assert [(row["task"], row["metric"], row["shots"]) for row in rows] == [
        ("which", "acc", 0),
        ("which", "acc_norm", 0),
    ]
    assert [row["change"] for row in rows] == [row["aligned"] - row["base"] for row in rows] != [0, 0]
    assert rows[0]["base_stderr"] >= 0
    assert 0 < rows[0]["change_stderr"] < 0.5
    asked = list(map(json.loads, questions.read_text().splitlines()))
    aligned = [choice_logprobs(base, question) for question in asked]
    with adapter_disabled(base.model):
        before = [choice_logprobs(base, question) for question in asked]
    for side, expected in (("base", before), ("aligned", aligned)):
        found = [[float(answer[0]) for answer in row["filtered_resps"]] for row in samples(tmp_path / "out" / side)]
        torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), atol=1e-3, rtol=0)
        right = [sums.index(max(sums)) == question["label"] for sums, question in zip(expected, asked)]
        assert rows[0][side] == sum(right) / len(right)
    assert abs(before[0][0] - aligned[0][0]) > 0.1


def test_the_harness_writes_its_result_files_and_a_group_is_one_row(base, choice_task, tmp_path, monkeypatch):
    metrics = [{"metric": "acc", "weight_by_size": True}]
    group = {"group": "both", "task": ["which"], "aggregate_metric_list": metrics}
    (tmp_path / "inner.yaml").write_text(yaml.safe_dump(group))
    (tmp_path / "outer.yaml").write_text(yaml.safe_dump({**group, "group": "all", "task": ["both"]}))
    only_these_tasks(monkeypatch, tmp_path)
    rows = run_harness(base, "RUN/adapter", tmp_path / "out", ["all"], limit=2)
    assert [(row["task"], row["metric"], row["change_stderr"]) for row in rows] == [("all", "acc", None)]
    (written,) = (tmp_path / "out" / "aligned" / "RUN__adapter").glob("results_*.json")
    results = json.loads(written.read_text())
    assert results["config"]["limit"] == 2
    assert results["groups"]["all"]["acc,none"] == rows[0]["aligned"]
    assert len(samples(tmp_path / "out" / "base" / "tiny")) == 2


def test_a_later_task_s_failure_loses_no_finished_one(base, choice_task, tmp_path, monkeypatch):
    real, calls = lm_eval_harness._evaluate, []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(lm_eval_harness, "_evaluate", failing)
    with pytest.raises(KeyboardInterrupt):
        run_harness(base, "RUN/adapter", tmp_path / "out", [choice_task, choice_task], limit=2)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert [(row["task"], row["metric"]) for row in summary["results"]] == [("which", "acc"), ("which", "acc_norm")]
    settings = (summary["base_source"], summary["adapter"], summary["batch_size"], summary["limit"])
    assert settings == (base.source, "RUN/adapter", 8, 2)


def test_the_papers_tasks_get_the_papers_examples(base, choice_task, tmp_path, monkeypatch):
    monkeypatch.setattr(lm_eval_harness, "PAPER_TASKS", {choice_task: 2})
    row, _ = run_harness(base, "RUN/adapter", tmp_path / "out", [choice_task])
    assert row["shots"] == 2
    context = samples(tmp_path / "out" / "aligned")[0]["arguments"]["gen_args_0"]["arg_0"]
    assert context.count("The dog of a") == 3


def test_each_figure_is_printed_below_its_side(base, tiny_folder, tmp_path, monkeypatch, capsys):
    save_adapter(base.model, tmp_path / "run" / "adapter", str(tiny_folder))
    row = {"task": "drop", "shots": 3, "metric": "f1", "base": 0.5, "aligned": 0.25, "change": -0.25}
    row |= {"base_stderr": 0.125, "aligned_stderr": 0.0625, "change_stderr": None}
    monkeypatch.setattr(lm_eval_harness, "run_harness", lambda *_, **__: [row])
    assert main(["lm-eval", "--adapter", str(tmp_path / "run"), "--tasks", "drop"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "drop 3 f1 0.5000 ± 0.1250 0.2500 ± 0.0625 -0.2500 ± n/a" in shown


def test_a_task_that_is_named_twice_is_run_once(base, tiny_folder, tmp_path, monkeypatch):
    save_adapter(base.model, tmp_path / "run" / "adapter", str(tiny_folder))
    run = []
    monkeypatch.setattr(lm_eval_harness, "run_harness", lambda *given, **options: run.append((given[3], options)) or [])
    command = ["lm-eval", "--adapter", str(tmp_path / "run"), "--tasks", "drop, mmlu,,drop", "--batch-size", "3"]
    assert main(command) == 0
    assert run == [(["drop", "mmlu"], {"limit": None, "batch_size": 3, "apply_chat_template": False})]


def test_the_papers_tasks_are_the_harness_s_own():
    folder = Path(lm_eval.__file__).parent / "tasks"
    files = {
        "mmlu": "mmlu/default/_mmlu.yaml",
        "gsm8k_cot": "gsm8k/gsm8k-cot.yaml",
        "hellaswag": "hellaswag/hellaswag.yaml",
        "truthfulqa_mc1": "truthfulqa/truthfulqa_mc1.yaml",
        "drop": "drop/default.yaml",
    }
    assert dict(zip(files, (5, 8, 0, 0, 3), strict=True)) == PAPER_TASKS
    for name, file in files.items():
        lines = (folder / file).read_text().splitlines()
        assert f"task: {name}" in lines or f"group: {name}" in lines


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real GSM8K is not beside the project")
def test_gsm8k_by_generation_runs_from_the_command_line(tiny_folder, base, tmp_path, capsys):
    save_adapter(base.model, tmp_path / "run" / "adapter", str(tiny_folder))
    task = task_file(
        tmp_path,
        "gsm8k_local",
        SHARED / "generation" / "gsm8k_test.jsonl",
        output_type="generate_until",
        doc_to_text="Q: {{question}}\nA:",
        doc_to_target="{{answer.split('####')[-1].strip()}}",
        generation_kwargs={"until": ["Q:"], "do_sample": False, "max_gen_toks": 5},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )
    command = ["lm-eval", "--adapter", str(tmp_path / "run"), "--dtype", "float32", "--tasks", task]
    assert main([*command, "--limit", "2"]) == 0
    shown = capsys.readouterr().out
    assert "gsm8k_local      0  exact_match" in shown
    assert "first 2 of each task" in shown
    summary = json.loads((tmp_path / "run" / "lm_eval" / "summary.json").read_text())
    assert [row["metric"] for row in summary["results"]] == ["exact_match"]
    answers = [[row["resps"][0][0] for row in samples(tmp_path / "run" / "lm_eval" / s)] for s in ("base", "aligned")]
    assert len(answers[0]) == len(answers[1]) == 2
    assert answers[0] != answers[1]
    output = tmp_path / "chat"
    assert main([*command, "--limit", "1", "--apply-chat-template", "--output", str(output)]) == 0
    (asked,) = samples(output / "aligned")
    assert asked["arguments"]["gen_args_0"]["arg_0"].startswith("<|im_start|>user\nQ: ")
    assert asked["arguments"]["gen_args_0"]["arg_0"].endswith("<|im_start|>assistant\n")


def test_what_the_harness_cannot_do_is_said_in_a_sentence(base, tmp_path, questions, monkeypatch, capsys):
    only_these_tasks(monkeypatch, tmp_path)
    with pytest.raises(SempaError, match="task 'mmlou': cannot be loaded: Spec 'mmlou' is not a registered task"):
        run_harness(base, "a", tmp_path, ["mmlou"])
    missing = task_file(tmp_path, "missing", tmp_path / "nowhere.jsonl", output_type="multiple_choice")
    with pytest.raises(SempaError, match=r"task '.*missing.yaml': cannot be loaded: .*nowhere.jsonl"):
        run_harness(base, "a", tmp_path, [missing])
    for wrong in ("{{question | nofilter}}", "{{nobody.knows}}"):
        task = task_file(tmp_path, "wrong", questions, output_type="multiple_choice", doc_to_text=wrong)
        with pytest.raises(SempaError, match=r"task '.*wrong.yaml': cannot be loaded: .*(nofilter|nobody)"):
            run_harness(base, "a", tmp_path, [task])
    monkeypatch.setattr(base.tokenizer, "chat_template", None)
    with pytest.raises(SempaError, match="apply-chat-template: the model has no chat template"):
        run_harness(base, "a", tmp_path, [], apply_chat_template=True)
    monkeypatch.setitem(__import__("sys").modules, "lm_eval.models.huggingface", None)
    with pytest.raises(SempaError, match=r"pip install lm_eval"):
        run_harness(base, "a", tmp_path, ["mmlu"])
    for words, message in (([], "give --adapter"), (["--adapter", "x", "--limit", "0"], "limit: found 0")):
        assert main(["lm-eval", *words]) == 2
        assert message in capsys.readouterr().err


def test_a_group_without_an_aggregate_is_shown_by_its_members():
    def results(figures):
        scored = {name: {"acc,none": figure, "acc_stderr,none": "N/A"} for name, figure in figures.items()}
        groups = {"all": ["pair", "three"], "pair": ["one", "two"]}
        return {"results": scored | {"all": {"alias": "all"}}, "group_subtasks": groups, "n-shot": {}, "samples": {}}

    before, after = results({"one": 0.5, "two": 0.25, "three": 0.0}), results({"one": 0.5, "two": 0.5, "three": 1.0})
    rows = lm_eval_harness._compare(before, after)
    assert {row["task"]: row["change"] for row in rows} == {"one": 0.0, "two": 0.25, "three": 1.0}
    before["results"]["pair"] = after["results"]["pair"] = {"acc,none": 0.4}
    assert [row["task"] for row in lm_eval_harness._compare(before, after)] == ["three", "pair"]


def test_a_metric_that_is_no_mean_of_the_problems_has_no_paired_error():
    def results(values, figure, order=(0, 1, 2)):
        answered = [{"filter": "none", "doc_id": i, "acc": values[i]} for i in order]
        return {"samples": {"t": answered}, "results": {"t": {"acc,none": figure}}}

    before, after = results([1.0, 0.0, 0.0], 1 / 3), results([1.0, 1.0, 0.0], 2 / 3, (2, 0, 1))
    paired_error = lm_eval_harness._paired_error
    assert paired_error(before, after, "t", "acc", "none") == pytest.approx(1 / 3)
    assert paired_error(before, results([1.0, 1.0, 0.0], 0.5), "t", "acc", "none") is None


def test_a_paired_error_is_of_the_answers_of_its_own_filter():
    def results(strict, other):
        answered = [{"filter": "strict", "doc_id": i, "acc": value} for i, value in enumerate(strict)]
        answered += [{"filter": "flexible", "doc_id": i, "acc": value} for i, value in enumerate(other)]
        return {"samples": {"t": answered}, "results": {"t": {"acc,strict": sum(strict) / 3}}}

    before, after = results([1.0, 0.0, 0.0], [0.0, 1.0, 0.0]), results([1.0, 1.0, 0.0], [1.0, 1.0, 0.0])
    assert lm_eval_harness._paired_error(before, after, "t", "acc", "strict") == pytest.approx(1 / 3)
