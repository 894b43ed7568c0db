"""Multiple choice in packed rows against a plain forward for every choice."""

import json
import math

import pytest
import torch

from sempa import SempaError
from sempa.batching.prompts import encode_plain
from sempa.evaluation import multiple_choice as module
from sempa.evaluation.multiple_choice import Question, choice_logprobs, encode_question, measure_choices, read_questions
from sempa.model.lora import adapter_disabled

QUESTIONS = [
    Question("A man pets a dog. The dog", ("is petted", "ignores the woman by the horse", "is a cat"), 0, "a:1"),
    Question("The cat is petted by a", ("woman.", "x"), 1, "a:2"),
    Question("Q: Is a horse a bird?\nA:", ("No", "Yes", "Ask the girl"), 2, "a:3"),
    Question("A boy pets a horse:\n", ("The horse is petted by a boy.", "The horse ignores the boy."), 0, "a:4"),
    *(
        Question(f"A {word} is", ("x", "y", "zz", "dog"), k % 4, "a:5")
        for k, word in enumerate(("man", "cat", "girl", "boy"))
    ),
]


@pytest.fixture
def base(adapted_base):
    return adapted_base


def plain(base, question):
    """Σ log π of each choice by a forward of its own, float64."""
    sums = []
    for choice in question.choices:
        blank = "" if question.context.endswith("\n") else " "
        before, whole = encode_plain(base.tokenizer, [question.context.rstrip(), question.context + blank + choice])
        assert whole[: len(before)] == before
        with torch.no_grad():
            logprobs = base.model(torch.tensor([whole])).logits[0].double().log_softmax(-1)
        sums.append(sum(logprobs[t - 1, whole[t]].item() for t in range(len(before), len(whole))))
    return sums


@pytest.mark.parametrize("row_tokens", [16, 1024])
def test_the_scores_equal_separate_forwards(base, monkeypatch, row_tokens):
    monkeypatch.setattr(module, "ROW_TOKENS", row_tokens)
    scores = choice_logprobs(base, [encode_question(base, question) for question in QUESTIONS])
    for question, found in zip(QUESTIONS, scores, strict=True):
        assert found.tolist() == pytest.approx(plain(base, question), abs=1e-3)


def test_accuracy_counts_the_likeliest_by_sum_and_per_character(base):
    ticks = []
    progress = type("Bar", (), {"update": lambda self, n: ticks.append(n)})()
    found = measure_choices(base, QUESTIONS, progress)
    assert sum(ticks) == 2 * len(QUESTIONS)

    def picks(normalised):
        divisors = [[len(c) if normalised else 1 for c in q.choices] for q in QUESTIONS]
        sums = [[s / d for s, d in zip(plain(base, q), ds, strict=True)] for q, ds in zip(QUESTIONS, divisors)]
        return [max(range(len(one)), key=one.__getitem__) for one in sums]

    def accuracy(picked):
        return sum(p == q.label for p, q in zip(picked, QUESTIONS, strict=True)) / len(QUESTIONS)

    aligned, aligned_normalised = picks(False), picks(True)
    with adapter_disabled(base.model):
        before, before_normalised = picks(False), picks(True)
    assert found.questions == 8
    assert (found.base_accuracy, found.base_normalised) == (accuracy(before), accuracy(before_normalised))
    assert (found.aligned_accuracy, found.aligned_normalised) == (accuracy(aligned), accuracy(aligned_normalised))
    assert found.same == sum(a == b for a, b in zip(before, aligned, strict=True)) / 8
    # The four figures would not notice a swap if they were all alike.
    assert len({tuple(aligned), tuple(aligned_normalised), tuple(before), tuple(before_normalised)}) >= 3


def test_a_question_is_read_once_for_all_its_choices(base):
    preference = encode_question(base, QUESTIONS[0])
    whole = [base.tokenizer.decode(preference.prompt + response) for response in preference.responses]
    assert whole == [f"{QUESTIONS[0].context} {choice}" for choice in QUESTIONS[0].choices]
    assert base.tokenizer.decode(preference.prompt) == QUESTIONS[0].context


def test_questions_are_read_from_json_lines(tmp_path):
    path = tmp_path / "q.jsonl"
    lines = [
        {"question": "One?", "choices": ["a", "b"], "label": 1, "subject": "x"},
        {"context": "Two:\n", "choices": ["a", "b", "c"], "label": 0},
    ]
    path.write_text("\n\n".join(map(json.dumps, lines)))
    questions = read_questions(path)
    assert questions == [
        Question("One?", ("a", "b"), 1, f"{path}:1"),
        Question("Two:\n", ("a", "b", "c"), 0, f"{path}:3"),
    ]
    assert read_questions(path, 1) == questions[:1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\n", "holds no question"),
        ("{", "q.jsonl:1: not valid JSON"),
        ('{"choices": ["a", "b"], "label": 0}', "q.jsonl:1: context is missing"),
        ('{"question": "", "choices": ["a", "b"], "label": 0}', "question is empty"),
        ('{"question": "a", "choices": ["a"], "label": 0}', "choices is not a list of two texts or more"),
        ('{"question": "a", "choices": "ab", "label": 0}', "choices is not a list"),
        ('{"question": "a", "choices": ["a", 3], "label": 0}', r"choices\[1\] is a int, expected text"),
        ('{"question": "a", "choices": ["a", ""], "label": 0}', r"choices\[1\] is empty"),
        ('{"question": "a", "choices": ["a", "b"], "label": 2}', "label is 2, expected the number .* 0 to 1"),
        ('{"question": "a", "choices": ["a", "b"], "label": -1}', "label is -1"),
        ('{"question": "a", "choices": ["a", "b"], "label": true}', "label is True"),
        ('{"question": "a", "choices": ["a", "b"]}', "label is None"),
    ],
)
def test_what_is_no_question_is_refused_with_its_line(tmp_path, content, message):
    path = tmp_path / "q.jsonl"
    path.write_text(content)
    with pytest.raises(SempaError, match=message):
        read_questions(path)


def test_a_question_longer_than_the_context_is_refused(base):
    with pytest.raises(SempaError, match=r"a:9: \d,\d+ tokens, expected at most 2,048, the model's context"):
        encode_question(base, Question("word " * 900, ("a", "b"), 0, "a:9"))


def test_equal_scores_go_to_the_first_choice(base):
    found = measure_choices(
        base, [Question("A dog", ("is", "is"), 0, "a:1"), Question("A dog", ("is", "is"), 1, "a:2")]
    )
    assert found.base_accuracy == found.aligned_accuracy == 0.5
    assert found.same == 1
    assert not math.isnan(found.base_normalised)
