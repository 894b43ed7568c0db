"""lm-evaluation-harness on a model with its adapter off and on: the paper's five benchmarks, or any of its tasks."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sempa.errors import SempaError
from sempa.evaluation.statistics import standard_error
from sempa.io.files import write_json
from sempa.model.base import BaseModel
from sempa.model.lora import adapter_disabled

# The paper's benchmarks by the harness's names, and their few-shot examples (SemPA, arXiv 2601.05075).
PAPER_TASKS = {"mmlu": 5, "gsm8k_cot": 8, "hellaswag": 0, "truthfulqa_mc1": 0, "drop": 3}


def run_harness(
    base: BaseModel,
    adapter: str,
    output: Path,
    tasks: Sequence[str] = tuple(PAPER_TASKS),
    limit: int | None = None,
    batch_size: int = 8,
    apply_chat_template: bool = False,
) -> list[dict]:
    """Run each task on the base model and with its adapter, by the harness's own model class and rules.

    `base` holds the adapter; its folder `adapter` is named in the harness's records, which go to `base/` and `aligned/`
    in `output`. `tasks` are names of the harness, or paths of YAML files that describe a task. The paper's five get the
    paper's number of few-shot examples, any other its own. With a `limit` only the first problems of each are run.

    Returns one row per task and metric, which `summary.json` in `output` has after each task: `task`, `shots`,
    `metric`, `base`, `aligned`, `change`, `base_stderr` and `aligned_stderr` (None where the harness gives none), in
    the harness's units. `change_stderr` is the paired standard error over the problems, None for a metric that is no
    mean of theirs and for a group of tasks.

    Raises `SempaError` when the harness is not installed, a task is unknown, or its data cannot be loaded.
    """
    try:
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise SempaError(f"lm-evaluation-harness is missing ({error}): pip install lm_eval accelerate peft") from error
    if apply_chat_template and base.tokenizer.chat_template is None:
        raise SempaError("apply-chat-template: the model has no chat template")
    # The harness's own 14,000 task files take ten seconds to index, and a task of the user's needs none of them.
    manager = TaskManager(include_defaults=not all(Path(name).is_file() for name in tasks))
    # All data first: a missing set is better found now than after hours on the others.
    for name in tasks:
        try:
            manager.load([name])
        except Exception as error:  # whatever the harness, a YAML file or its templates raise
            reason = str(next(filter(None, error.args), repr(error))).strip().partition("\n")[0]
            raise SempaError(f"task {name!r}: cannot be loaded: {reason}") from error
    harness = HFLM(pretrained=base.model, tokenizer=base.tokenizer, batch_size=batch_size)
    settings = {"limit": limit, "apply_chat_template": apply_chat_template}
    rows: list[dict] = []
    for name in tasks:
        options = {**settings, "task_manager": manager, "tasks": [name], "num_fewshot": PAPER_TASKS.get(name)}
        with adapter_disabled(base.model):
            before = _evaluate(harness, {"pretrained": base.source}, output / "base", options)
        after = _evaluate(harness, {"pretrained": base.source, "peft": adapter}, output / "aligned", options)
        rows += _compare(before, after)
        summary = {"base_source": base.source, "adapter": adapter, "batch_size": batch_size, **settings}
        write_json(output / "summary.json", {**summary, "results": rows})
    return rows


def _evaluate(harness: object, names: dict[str, str], output: Path, options: dict[str, object]) -> dict:
    """The harness's results for one task, which it also writes below `output`."""
    import lm_eval
    from lm_eval.loggers import EvaluationTracker

    tracker = EvaluationTracker(output_path=str(output))
    results = lm_eval.simple_evaluate(model=harness, model_args=names, evaluation_tracker=tracker, **options)
    samples = results.pop("samples")
    tracker.save_results_aggregated(results=results, samples=samples)
    for name, answered in samples.items():
        tracker.save_results_samples(task_name=name, samples=answered)
    return {**results, "samples": samples}


def _compare(before: dict, after: dict) -> list[dict]:
    """The rows for two results of the harness; a group with an aggregate has rows of its own, its members have none."""
    scored = [name for name, result in before["results"].items() if any("," in key for key in result)]
    children = {child for group in scored for child in before.get("group_subtasks", {}).get(group, ())}
    rows = []
    for task in [name for name in scored if name not in children]:
        one, two = before["results"][task], after["results"][task]
        for key, value in one.items():
            metric, _, filtered = key.partition(",")
            if not filtered or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            title = metric if filtered == "none" else f"{metric} ({filtered})"
            row = {"task": task, "shots": before["n-shot"].get(task), "metric": title}
            row |= {"base": value, "aligned": two[key], "change": two[key] - value}
            for side, result in (("base", one), ("aligned", two)):
                error = result.get(f"{metric}_stderr,{filtered}")
                row[f"{side}_stderr"] = error if isinstance(error, int | float) else None
            rows.append({**row, "change_stderr": _paired_error(before, after, task, metric, filtered)})
    return rows


def _paired_error(before: dict, after: dict, task: str, metric: str, filtered: str) -> float | None:
    """The standard error of a metric's mean difference on the same problems; None where it is no mean of theirs."""
    sides = []
    for results in (before, after):
        answered = [one for one in results["samples"].get(task, []) if one["filter"] == filtered]
        values = [one.get(metric) for one in sorted(answered, key=lambda one: one["doc_id"])]
        if not values or not all(isinstance(value, int | float) for value in values):
            return None
        if not math.isclose(sum(values) / len(values), results["results"][task][f"{metric},{filtered}"], abs_tol=1e-9):
            return None
        sides.append(np.array(values))
    return standard_error(sides[1] - sides[0])
