"""Files of texts, which of their tokens count, windows over long ones; the built-in texts; GSM8K files."""

import gzip
import json
import os
import re
import threading

import pytest
from conftest import SHARED
from hypothesis import given
from hypothesis import strategies as st

from sempa import SempaError
from sempa.evaluation.eval_texts import (
    BUILTIN_PROMPTS,
    EvalText,
    ScoredTokens,
    encode_eval_texts,
    read_prompts,
    read_texts,
    report_texts,
    split_long,
)
from sempa.training.base_samples import QUESTIONS

PASSAGES, CONVERSATIONS = report_texts().values()
WHOLE = 10_000


def scored(tokenizer, one):
    return tokenizer.decode(one.tokens[one.first :])


def test_plain_text_is_passages_between_blank_lines(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("\n  One line.\nAnother.\n \t\n\nSecond passage.\n\nThird,\n  indented\n")
    texts = read_texts(path)
    assert texts == [EvalText("  One line.\nAnother."), EvalText("Second passage."), EvalText("Third,\n  indented")]
    assert read_texts(path, 2) == texts[:2]


def test_json_lines_hold_text_or_question_and_answer(tmp_path):
    for name, pack in (("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress), ("a.txt", bytes)):
        path = tmp_path / name
        for fields, expected in (
            ({"text": " as it is "}, EvalText(" as it is ")),
            ({"question": "Why?", "answer": "So.", "id": 3}, EvalText("So.", question="Why?")),
        ):
            line = json.dumps(fields)
            for written in (line, f"{{ {line[1:]}"):
                path.write_bytes(pack("\n\n".join([written] * 2).encode()))
                assert read_texts(path) == [expected] * 2


def test_a_pipe_is_read_whole(tmp_path):
    os.mkfifo(pipe := tmp_path / "pipe")
    writer = threading.Thread(target=lambda: pipe.write_text("".join(f"Passage {i}.\n\n" for i in range(20_000))))
    writer.start()
    texts = read_texts(pipe)
    writer.join()
    assert len(texts) == 20_000


def test_text_that_begins_with_a_brace_is_still_text(tmp_path):
    path = tmp_path / "code.txt"
    path.write_text("{ return 1; }\n\n[1]\n")
    assert [text.text for text in read_texts(path)] == ["{ return 1; }", "[1]"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ('{"', "t.jsonl:1: not valid JSON"),
        ('{"text": "a"}\n{"txt": "b", "id": 1}', "t.jsonl:2: no field text"),
        ('{"txt": "a"}', "t.jsonl:1: found the columns 'txt', expected question, answer or text"),
        ('{"text": "a"}\nb', "t.jsonl:2: not valid JSON"),
        ('{"text": " "}', "t.jsonl:1: an empty text, expected text"),
        ('{"text": {}}', "t.jsonl:1: text is a dict, expected text"),
        ('{"text": "\\ud800"}', "t.jsonl:1: .*surrogate"),
        ('{"question": "a", "answer": null}', "t.jsonl:1: an empty text, expected question and answer"),
    ],
)
def test_a_line_without_text_is_refused(tmp_path, content, message):
    path = tmp_path / "t.jsonl"
    path.write_text(content)
    with pytest.raises(SempaError, match=message):
        read_texts(path)


def test_of_a_question_exactly_the_answer_is_scored(tokenizer):
    encoded = encode_eval_texts(tokenizer, CONVERSATIONS, WHOLE)
    for one, text in zip(encoded, CONVERSATIONS, strict=True):
        assert scored(tokenizer, one) == f"{text.text}<|im_end|>\n"
        assert tokenizer.decode(one.tokens[: one.first]).endswith("<|im_start|>assistant\n")


def test_of_a_passage_all_but_the_first_token_is_scored(tokenizer):
    first, *_ = encode_eval_texts(tokenizer, PASSAGES, WHOLE)
    assert first.first == 1
    assert tokenizer.decode(first.tokens) == PASSAGES[0].text


@given(st.integers(1, 60), st.integers(2, 20), st.data())
def test_windows_score_every_target_once_with_enough_before_it(length, window, data):
    first = data.draw(st.integers(1, length))
    pieces = list(split_long(ScoredTokens(list(range(length)), first), window))
    # The ids are the offsets in the whole text.
    assert [token for one in pieces for token in one.tokens[one.first :]] == list(range(first, length))
    for one in pieces:
        assert len(one.tokens) <= window
        assert one.tokens[one.first :]
        assert one.tokens == list(range(one.tokens[0], one.tokens[0] + len(one.tokens)))
        assert one.first >= (1 if one.tokens[0] == 0 else window - window // 2)


def test_a_text_that_fits_is_left_whole():
    one = ScoredTokens([4, 5, 6], 1)
    assert list(split_long(one, 3)) == [one]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("whole", [[{"text": "One."}], {"text": "One."}])
def test_json_that_is_not_in_lines_is_no_passage(tmp_path, whole, indent):
    path = tmp_path / "texts.json"
    path.write_text(json.dumps(whole, indent=indent))
    if indent is None and isinstance(whole, dict):
        assert read_texts(path) == [EvalText("One.")]
    else:
        with pytest.raises(SempaError, match=r"texts\.json:1: .*, expected one object per line"):
            read_texts(path)


def test_prompts_are_the_lines_of_a_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("one\n\n two \n")
    assert read_prompts(path) == ["one", "two"]
    assert read_prompts(path, 1) == ["one"]
    path.write_text("\n \n")
    for read in (read_prompts, read_texts, report_texts):
        with pytest.raises(SempaError, match=r"prompts\.txt: the file is empty"):
            read(path)


def test_the_builtin_texts_are_many_distinct_and_share_no_long_phrase():
    assert len(PASSAGES) >= 16
    assert len(CONVERSATIONS) >= 14
    assert len(set(read_prompts(BUILTIN_PROMPTS))) >= 4
    seen = {}
    for text in (f"{text.question} {text.text}" for text in (*PASSAGES, *CONVERSATIONS)):
        words = text.split()
        for i in range(len(words) - 7):
            phrase = " ".join(words[i : i + 8])
            assert seen.setdefault(phrase, text) == text
    assert all(60 <= len(passage.text.split()) <= 130 for passage in PASSAGES)


def test_no_evaluation_prompt_is_among_the_questions_that_retention_trains_on():
    common = "and between cook day explain first for give has how learn makes many off should story that the three two"
    common = {*common.split(), "what", "why"}

    def words(text):
        return {*re.findall("[a-z]{3,}", text.lower())} - common

    trained = set().union(*map(words, QUESTIONS))
    for asked in (*(text.question for text in CONVERSATIONS), *read_prompts(BUILTIN_PROMPTS)):
        assert not words(asked) & trained, asked


def test_gsm8k_answers_lose_their_calculator_marks(tmp_path):
    path = tmp_path / "gsm8k.jsonl"
    lines = [{"question": "How many?", "answer": "2+3=<<2+3=5>>5, 5*2=<<5*2=10>>10.\n#### 10"}] * 60
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    # A report takes forty problems.
    assert report_texts(path)["GSM8K"] == [EvalText("2+3=5, 5*2=10.\n#### 10", "How many?")] * 40
    assert list(report_texts()) == ["passages", "conversations"]
    for other in ("sent0,sent1,hard_neg\na,b,c\n", '{"text": "A passage."}\n'):
        path.write_text(other)
        with pytest.raises(SempaError, match=r"gsm8k .*gsm8k\.jsonl: expected JSON lines with question and answer"):
            report_texts(path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real GSM8K is not beside the project")
def test_the_real_gsm8k_file_is_read_whole():
    path = SHARED / "generation" / "gsm8k_test.jsonl"
    assert len(read_texts(path)) == 1319
    assert not any("<<" in problem.text or ">>" in problem.text for problem in report_texts(path)["GSM8K"])
