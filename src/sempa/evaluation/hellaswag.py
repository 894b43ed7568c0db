"""HellaSwag (Zellers et al. 2019, arXiv 1905.07830): which of four endings does the language model expect?

No example is shown. An ending's score is log π(ending | context) divided by its number of characters, and the highest
score is the model's choice. This is `acc_norm` of lm-evaluation-harness, whose cleaning of the text is kept too.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sempa.batching.prompts import Preference, encode_plain
from sempa.errors import SempaError
from sempa.evaluation.measure import response_logprobs
from sempa.evaluation.statistics import compare_accuracies
from sempa.io.progress import bar
from sempa.io.rows import json_object, numbered_lines
from sempa.model.base import BaseModel
from sempa.model.forward import context_length
from sempa.model.lora import adapter_disabled

ENDINGS = 4
ROW_TOKENS = 1024
# The benchmark as published has the first names; a file may also hold the whole context in `ctx`.
_PUBLISHED = ("activity_label", "ctx_a", "ctx_b")


@dataclass(frozen=True)
class HellaSwagTask:
    """A context, its four possible endings, and which of them is right (from 0); `place` is file and line."""

    context: str
    endings: tuple[str, ...]
    answer: int
    place: str


def read_hellaswag(path: Path, count: int = 0, seed: int = 0) -> list[HellaSwagTask]:
    """The tasks of a HellaSwag file (JSON lines, plain or gzip), or a sample of `count` of them drawn by `seed`.

    A line has `endings`, `label` and either the published `activity_label`, `ctx_a` and `ctx_b`, which make the context
    "activity: a B", or `ctx`, the context itself. Raises `SempaError` with file and line for anything else.
    """
    tasks = []
    for number, line in numbered_lines(path):
        if line.strip():
            try:
                tasks.append(_task(json_object(line), f"{path}:{number}"))
            except ValueError as error:
                raise SempaError(f"{path}:{number}: {error}") from error
    if not tasks:
        raise SempaError(f"{path}: holds blank lines only, expected HellaSwag's tasks as JSON lines")
    if not 0 < count < len(tasks):
        return tasks
    # The first third of the published file is of one source and easier than the rest.
    drawn = np.sort(np.random.default_rng(seed).permutation(len(tasks))[:count])
    return [tasks[place] for place in drawn]


def measure_hellaswag(base: BaseModel, tasks: list[HellaSwagTask]) -> dict:
    """A report's `hellaswag`: the number of `tasks`, and `compare_accuracies` of both sides.

    Raises `SempaError` for a task that is longer than the model's context.
    """
    preferences = encode_hellaswag(base, tasks)
    lengths = np.array([[len(ending) for ending in task.endings] for task in tasks])
    answers = np.array([task.answer for task in tasks])
    with bar(2 * len(tasks), "HellaSwag", "task") as progress:

        def right() -> np.ndarray:
            logprobs = response_logprobs(base.model, preferences, ROW_TOKENS, progress)
            return (logprobs.double().numpy() / lengths).argmax(1) == answers

        with adapter_disabled(base.model):
            before = right()
        after = right()
    return {"tasks": len(tasks), **compare_accuracies(before, after)}


def encode_hellaswag(base: BaseModel, tasks: list[HellaSwagTask]) -> list[Preference]:
    """Token ids of each context and of its endings, which are tokenized behind it; raises as `measure_hellaswag`."""
    limit, preferences = context_length(base.model), []
    for task in tasks:
        texts = [task.context, *(f"{task.context} {ending}" for ending in task.endings)]
        context, *whole = encode_plain(base.tokenizer, texts)
        if (longest := max(map(len, whole))) > limit:
            raise SempaError(f"{task.place}: has {longest:,} tokens, expected at most the model's {limit:,}")
        preferences.append(Preference(context, tuple(tokens[len(context) :] for tokens in whole)))
    return preferences


def _task(fields: dict, place: str) -> HellaSwagTask:
    """The task in a line; a `ValueError` says what is wrong with it."""
    published = any(name in fields for name in _PUBLISHED)
    names = ("endings", "label", *(_PUBLISHED if published else ("ctx",)))
    if missing := [name for name in names if name not in fields]:
        found = ", ".join(map(repr, list(fields)[:8])) or "none"
        raise ValueError(f"no field {missing[0]!r}; found {found}, expected {', '.join(names)}")
    for name in names[2:]:
        _check_text(name, fields[name])
    context = fields["ctx"] if not published else _published_context(*(fields[name] for name in _PUBLISHED))
    endings, label = fields["endings"], fields["label"]
    if not isinstance(endings, list) or len(endings) != ENDINGS:
        raise ValueError(f"endings is {endings!r:.60}, expected {ENDINGS} texts")
    for ending in endings:
        _check_text("endings", ending)
    if str(label) not in map(str, range(ENDINGS)):
        raise ValueError(f"label is {label!r:.60}, expected 0 to {ENDINGS - 1}")
    context, *cleaned = (_clean(text) for text in (context, *endings))
    if not (context and all(cleaned)):
        raise ValueError("an empty context or ending")
    return HellaSwagTask(context, tuple(cleaned), int(label), place)


def _check_text(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{name} is {value!r:.60}, expected text")
    # Half a surrogate pair passes the JSON parser, but no tokenizer.
    value.encode()


def _published_context(activity: str, first: str, second: str) -> str:
    return f"{activity}: {first} {second.capitalize()}"


def _clean(text: str) -> str:
    """Without the marks that WikiHow's pages left in the benchmark, as lm-evaluation-harness cleans it."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")
