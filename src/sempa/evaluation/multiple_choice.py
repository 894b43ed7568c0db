"""Multiple choice by log-likelihood: a question stands once in its packed row, and all its choices behind it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from sempa.batching.packing import pack_preferences
from sempa.batching.prompts import Preference, common_prefix, encode_plain
from sempa.errors import SempaError
from sempa.evaluation.eval_texts import text_field
from sempa.io.rows import json_object, numbered_lines
from sempa.model.base import BaseModel
from sempa.model.forward import context_length
from sempa.model.logprobs import sequence_logprobs
from sempa.model.lora import adapter_disabled

ROW_TOKENS = 1024


@dataclass(frozen=True)
class Question:
    """What stands before the choices, the choices, the number of the right one, and the line it was read from."""

    context: str
    choices: tuple[str, ...]
    label: int
    place: str


@dataclass(frozen=True)
class ChoiceScores:
    """Accuracy of base and aligned model by the sum of a choice's log-probabilities and by the sum per character.

    `same`: the share of questions for which both pick the same choice, by the sum.
    """

    questions: int
    base_accuracy: float
    aligned_accuracy: float
    base_normalised: float
    aligned_normalised: float
    same: float


def read_questions(path: Path, limit: int | None = None) -> list[Question]:
    """The questions of a JSON-lines file, plain or gzip: `question` or `context`, `choices` (texts), `label` (from 0).

    Raises `SempaError` with file and line for whatever else is found.
    """
    questions: list[Question] = []
    for number, line in numbered_lines(path):
        if limit is not None and len(questions) == limit:
            break
        if line.strip():
            place = f"{path}:{number}"
            try:
                questions.append(_question(json_object(line), place))
            except ValueError as error:
                raise SempaError(f"{place}: {error}") from error
    if not questions:
        raise SempaError(f"{path}: holds no question")
    return questions


def encode_question(base: BaseModel, question: Question) -> Preference:
    """Token ids of the context and of its choices, each after a blank where the context ends without one.

    The boundary is exact even where a tokenizer merges across it: the merged token then belongs to the choices. Raises
    `SempaError` for a question that the model cannot read in one piece.
    """
    joint = "" if question.context[-1].isspace() else " "
    texts = [question.context.rstrip(), *(f"{question.context}{joint}{choice}" for choice in question.choices)]
    before, *wholes = encode_plain(base.tokenizer, texts)
    shared = min(common_prefix(before, whole) for whole in wholes)
    longest, context = max(map(len, wholes)), context_length(base.model)
    if longest > context:
        raise SempaError(f"{question.place}: {longest:,} tokens, expected at most {context:,}, the model's context")
    if not shared:
        raise SempaError(f"{question.place}: the choices have no token of the context in common before them")
    return Preference(wholes[0][:shared], tuple(whole[shared:] for whole in wholes))


@torch.inference_mode()
def choice_logprobs(base: BaseModel, preferences: Sequence[Preference], progress: tqdm | None = None) -> list[Tensor]:
    """Σ_t log π(choice_t | context, choice_<t) of every choice, in nats, for each question: `[choices]` float32."""
    model = base.model.eval()
    result: list[Tensor] = [torch.empty(0)] * len(preferences)
    order = sorted(range(len(preferences)), key=lambda i: len(preferences[i].responses))
    for _, members in groupby(order, key=lambda i: len(preferences[i].responses)):
        for packed in pack_preferences(preferences, list(members), ROW_TOKENS):
            for index, scores in zip(packed.examples, sequence_logprobs(model, packed).cpu(), strict=True):
                result[index] = scores
            if progress is not None:
                progress.update(len(packed.examples))
    return result


def measure_choices(base: BaseModel, questions: Sequence[Question], progress: tqdm | None = None) -> ChoiceScores:
    """How often the right choice is the likeliest, with the adapter off and on; `progress` advances twice a question.

    Normalised is the sum divided by the choice's characters, which is lm-evaluation-harness's `acc_norm`.
    """
    preferences = [encode_question(base, question) for question in questions]
    with adapter_disabled(base.model):
        before = choice_logprobs(base, preferences, progress)
    after = choice_logprobs(base, preferences, progress)
    picks = torch.tensor(
        [
            [pick for scores in (one, two) for pick in (scores.argmax(), (scores / _characters(question)).argmax())]
            for question, one, two in zip(questions, before, after, strict=True)
        ]
    )
    right = (picks == torch.tensor([[question.label] for question in questions])).double().mean(0)
    base_sum, base_normalised, aligned_sum, aligned_normalised = right.tolist()
    same = (picks[:, 0] == picks[:, 2]).double().mean().item()
    return ChoiceScores(len(questions), base_sum, aligned_sum, base_normalised, aligned_normalised, same)


def _characters(question: Question) -> Tensor:
    return torch.tensor([float(len(choice)) for choice in question.choices])


def _question(fields: dict, place: str) -> Question:
    """A question from a JSON object; a `ValueError` says what is wrong with it."""
    context = text_field(fields, "question" if "question" in fields else "context")
    choices, label = fields.get("choices"), fields.get("label")
    if not isinstance(choices, list) or len(choices) < 2:
        raise ValueError("choices is not a list of two texts or more")
    named = {f"choices[{k}]": choice for k, choice in enumerate(choices)}
    texts = tuple(text_field(named, name) for name in named)
    # In JSON true is no number, but Python takes it for one.
    if not isinstance(label, int) or isinstance(label, bool) or not 0 <= label < len(texts):
        raise ValueError(f"label is {label!r}, expected the number of the right choice, 0 to {len(texts) - 1}")
    return Question(context, texts, label, place)
