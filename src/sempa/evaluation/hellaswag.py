"""HellaSwag (Zellers et al. 2019, arXiv 1905.07830): which of four endings does the language model expect?

Zero-shot: an ending's score is log π(ending | context) divided by its number of characters, and the highest score is
the model's choice. This is `acc_norm` of lm-evaluation-harness, whose cleaning of the text is used too.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sempa.batching.prompts import Preference, encode_plain
from sempa.errors import SempaError
from sempa.evaluation.statistics import compare_accuracies
from sempa.io.progress import bar
from sempa.io.rows import json_object, many, numbered_lines
from sempa.model.base import BaseModel
from sempa.model.forward import context_length
from sempa.model.logprobs import response_logprobs
from sempa.model.lora import adapter_disabled

ENDINGS = 4
ROW_TOKENS = 1024
_EXPECTED = "expected endings (four texts), label (0 to 3), and either activity_label, ctx_a and ctx_b, or ctx"


@dataclass(frozen=True)
class HellaSwagTask:
    """A context, its four possible endings, and which of them is right (from 0)."""

    context: str
    endings: tuple[str, ...]
    answer: int


def read_hellaswag(path: Path, count: int = 0) -> list[HellaSwagTask]:
    """The tasks of a HellaSwag file (JSON lines, plain or gzip), or a fixed sample of `count` of them.

    A line has `endings`, `label` and either the published `activity_label`, `ctx_a` and `ctx_b`, which make the context
    "activity: a B", or `ctx`, the context itself. Raises `SempaError` with file and line for anything else, and for
    fewer than two tasks, which have no standard error.
    """
    tasks = [_task(line, f"{path}:{number}") for number, line in numbered_lines(path) if line.strip()]
    if 0 < count < len(tasks):
        # The first third of the published file is of one source and easier than the rest.
        tasks = [tasks[place] for place in np.sort(np.random.default_rng(0).permutation(len(tasks))[:count])]
    if len(tasks) < 2:
        raise SempaError(f"{path}: {many(len(tasks), 'task')}, expected at least 2")
    return tasks


def encode_tasks(base: BaseModel, tasks: list[HellaSwagTask]) -> list[Preference]:
    """Token ids of contexts and endings; raises `SempaError` for a task that is longer than the model can read."""
    preferences, limit = [], context_length(base.model)
    for task in tasks:
        # An ending is tokenized behind its context.
        texts = [task.context, *(f"{task.context} {ending}" for ending in task.endings)]
        context, *whole = encode_plain(base.tokenizer, texts)
        if (longest := max(map(len, whole))) > limit:
            raise SempaError(f"HellaSwag: {task.context!r:.60} has {longest:,} tokens, expected at most {limit:,}")
        preferences.append(Preference(context, tuple(tokens[len(context) :] for tokens in whole)))
    return preferences


def measure_hellaswag(base: BaseModel, tasks: list[HellaSwagTask]) -> dict:
    """A report's `hellaswag`: the number of `tasks`, and `compare_accuracies` of both sides."""
    preferences = encode_tasks(base, tasks)
    lengths = np.array([[len(ending) for ending in task.endings] for task in tasks])
    answers = np.array([task.answer for task in tasks])
    with bar(2 * len(tasks), "HellaSwag", "task") as progress:

        def right() -> np.ndarray:
            logprobs = response_logprobs(base.model, preferences, ROW_TOKENS, progress)
            return (logprobs.double().numpy() / lengths).argmax(1) == answers

        with adapter_disabled(base.model):
            before = right()
        return {"tasks": len(tasks), **compare_accuracies(before, right())}


def _task(line: str, place: str) -> HellaSwagTask:
    try:
        fields = json_object(place, line)
        if "activity_label" in fields:
            context = f"{fields['activity_label']}: {fields['ctx_a']} {fields['ctx_b'].capitalize()}"
        else:
            context = fields["ctx"]
        context, *endings = map(_clean, (context, *fields["endings"]))
        answer = range(ENDINGS).index(int(str(fields["label"])))
        if not isinstance(fields["endings"], list) or len(endings) != ENDINGS or not (context and all(endings)):
            raise ValueError("an ending too few or too many, or an empty text")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SempaError(f"{place}: is not a HellaSwag task ({error!r}); {_EXPECTED}") from error
    return HellaSwagTask(context, tuple(endings), answer)


def _clean(text: str) -> str:
    """Without the marks that WikiHow's pages left in the benchmark, as lm-evaluation-harness cleans it."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")
