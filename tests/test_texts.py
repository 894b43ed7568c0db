"""Text and chat files, which of their tokens count, windows over long ones; the built-in texts; GSM8K files."""

import gzip
import json
import re

import pytest
from conftest import CHATML, SHARED, make_tokenizer
from hypothesis import given
from hypothesis import strategies as st

from sempa import SempaError
from sempa.evaluation.eval_texts import (
    Scored,
    Text,
    encode_conversations,
    encode_file,
    encode_passages,
    encode_text,
    read_gsm8k,
    read_texts,
    split_long,
)
from sempa.evaluation.unseen_text import CONVERSATIONS, GENERATION_PROMPTS, PASSAGES
from sempa.model.base import BaseModel
from sempa.training.base_samples import QUESTIONS

TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "A man pets a dog."},
    {"role": "assistant", "content": "The dog is petted."},
    {"role": "user", "content": "And a cat?"},
    {"role": "assistant", "content": "The cat ignores the man."},
]


def scored(tokenizer, one):
    return tokenizer.decode([one.tokens[target] for target in one.targets])


def test_plain_text_is_passages_between_blank_lines(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("\n  One line.\nAnother.\n \t\n\nSecond passage.\n\nThird,\n  indented\n")
    texts = read_texts(path)
    assert [text.content for text in texts] == ["  One line.\nAnother.", "Second passage.", "Third,\n  indented"]
    assert [text.place for text in texts] == [f"{path}:2", f"{path}:6", f"{path}:8"]
    assert read_texts(path, 2) == texts[:2]


def test_json_lines_hold_text_messages_or_question_and_answer(tmp_path):
    lines = [{"text": " as it is "}, {"messages": TALK}, {"question": "Why?", "answer": "So.", "id": 3}]
    for name, pack in (("a.jsonl", bytes), ("a.jsonl.gz", gzip.compress), ("a.txt", bytes)):
        path = tmp_path / name
        path.write_bytes(pack("\n\n".join(map(json.dumps, lines)).encode()))
        texts = read_texts(path)
        assert [text.content for text in texts] == [" as it is ", TALK, ("Why?", "So.")]
        assert texts[1].place == f"{path}:3"


def test_text_that_begins_with_a_brace_is_still_text(tmp_path):
    path = tmp_path / "code.txt"
    path.write_text("{ return 1; }\n\n[1]\n")
    assert [text.content for text in read_texts(path)] == ["{ return 1; }", "[1]"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("\n \n", "holds blank lines only, expected texts"),
        ("{", "t.jsonl:1: not valid JSON"),
        ("[1]", "t.jsonl:1: a JSON list, expected an object"),
        ('{"text": "a"}\n{"txt": "b", "id": 1}', "t.jsonl:2: found the fields 'txt', 'id', expected text, or messages"),
        ("{}", "t.jsonl:1: found the fields none"),
        ('{"text": " "}', "t.jsonl:1: text is empty, expected text"),
        ('{"text": 3}', "t.jsonl:1: text is a int, expected text"),
        ('{"text": "\\ud800"}', "t.jsonl:1: .*surrogate"),
        ('{"question": "a", "answer": null}', "t.jsonl:1: answer is missing, expected text"),
        ('{"messages": "hello"}', "messages is not a list of objects with role and content"),
        ('{"messages": [{"role": "user"}]}', "t.jsonl:1: content is missing"),
        ('{"messages": []}', "messages has no turn of the assistant"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "messages has no turn of the assistant"),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', "that answers another turn"),
    ],
)
def test_what_is_no_text_is_refused_with_its_line(tmp_path, content, message):
    path = tmp_path / "t.jsonl"
    path.write_text(content)
    with pytest.raises(SempaError, match=message):
        read_texts(path)


def test_of_messages_every_turn_of_the_assistant_is_scored_and_nothing_else(tokenizer):
    (one,) = encode_text(tokenizer, Text("a:1", TALK))
    assert scored(tokenizer, one) == "The dog is petted.<|im_end|>\nThe cat ignores the man.<|im_end|>\n"
    assert tokenizer.decode(one.tokens).startswith("<|im_start|>system\nBe kind.<|im_end|>")
    first, second = (one.targets[:1], [t for t, before in zip(one.targets[1:], one.targets) if t != before + 1])
    for begin in (*first, *second):
        assert tokenizer.decode(one.tokens[:begin]).endswith("<|im_start|>assistant\n")


def test_a_template_that_rewrites_earlier_turns_gives_a_sequence_for_each_answer():
    # The last message alone says that it is the last, as templates that drop earlier thoughts do.
    template = CHATML.replace("message['content'] +", "message['content'] + ('!' if loop.last else '') +")
    tokenizer = make_tokenizer(template=template)
    one, two = encode_text(tokenizer, Text("a:1", TALK))
    # The prompt's own last turn is marked as well, so the boundary is where the renderings part.
    assert tokenizer.decode(one.tokens).endswith("The dog is petted.!<|im_end|>\n")
    assert tokenizer.decode(two.tokens).endswith("The cat ignores the man.!<|im_end|>\n")
    assert "petted.<|im_end|>" in tokenizer.decode(two.tokens)


def test_a_conversation_without_a_template_or_refused_by_it_names_its_line():
    with pytest.raises(SempaError, match="a:1: a conversation needs a chat template"):
        encode_text(make_tokenizer(template=None), Text("a:1", TALK))
    refusing = make_tokenizer(template="{{ raise_exception('no system turn') }}")
    with pytest.raises(SempaError, match="a:1: the chat template refuses these messages: no system turn"):
        encode_text(refusing, Text("a:1", TALK))


def test_of_a_question_exactly_the_answer_is_scored(tokenizer):
    encoded = encode_conversations(tokenizer, CONVERSATIONS)
    for one, (question, answer) in zip(encoded, CONVERSATIONS, strict=True):
        assert scored(tokenizer, one) == f"{answer}<|im_end|>\n"
        assert tokenizer.decode(one.tokens[: one.targets[0]]).endswith("<|im_start|>assistant\n")
        assert encode_text(tokenizer, Text("a:1", (question, answer))) == [one]


def test_of_a_passage_all_but_the_first_token_is_scored(tokenizer):
    first, *_ = encode_passages(tokenizer, PASSAGES)
    assert first.targets == list(range(1, len(first.tokens)))
    assert tokenizer.decode(first.tokens) == PASSAGES[0]


@given(st.integers(1, 60), st.integers(2, 20), st.data())
def test_windows_score_every_target_once_with_enough_before_it(length, window, data):
    stride = data.draw(st.integers(1, window - 1))
    targets = data.draw(st.sets(st.integers(1, length - 1)) if length > 1 else st.just(set()))
    pieces = split_long([Scored(list(range(length)), sorted(targets))], window, stride)
    # The ids are the offsets in the whole text.
    assert sorted(one.tokens[target] for one in pieces for target in one.targets) == sorted(targets)
    for one in pieces:
        assert len(one.tokens) <= window
        assert one.targets
        assert one.tokens == list(range(one.tokens[0], one.tokens[0] + len(one.tokens)))
        assert all(target >= (1 if one.tokens[0] == 0 else window - stride) for target in one.targets)


def test_what_fits_is_left_whole():
    one = Scored([4, 5, 6], [1, 2])
    assert split_long([one], 3, 1) == [one]


@pytest.mark.parametrize("stride", [0, 8, 9])
def test_a_stride_that_leaves_no_context_is_refused(stride):
    with pytest.raises(SempaError, match=f"stride: found {stride}, expected 1 to 7"):
        split_long([Scored([1, 2], [1])], 8, stride)


def test_a_long_text_of_a_file_is_cut_and_said(tiny_llama, tokenizer, tmp_path, capsys):
    path = tmp_path / "long.txt"
    path.write_text(" ".join(PASSAGES[:2]) + "\n\nA short one.\n")
    base = BaseModel(tiny_llama, tokenizer, "tiny")
    whole = encode_file(base, path, window=2048)
    assert capsys.readouterr().err == ""
    pieces = encode_file(base, path, window=200, stride=50)
    assert capsys.readouterr().err == f"{path}: 1 text of over 200 tokens cut into windows 50 tokens apart\n"
    assert len(whole) == 2 < len(pieces)
    assert sum(len(one.targets) for one in whole) == sum(len(one.targets) for one in pieces)
    assert encode_file(base, path, limit=1) == whole[:1]
    with pytest.raises(SempaError, match="window: found 2,049, expected 2 to 2,048, the model's context"):
        encode_file(base, path, window=2049)
    with pytest.raises(SempaError, match="window: found 1, expected 2"):
        encode_file(base, path, window=1)


def test_the_unseen_texts_are_many_distinct_and_share_no_long_phrase():
    assert len(PASSAGES) >= 16
    assert len(CONVERSATIONS) >= 14
    assert len(set(GENERATION_PROMPTS)) >= 4
    seen = {}
    for text in (*PASSAGES, *(f"{q} {a}" for q, a in CONVERSATIONS)):
        words = text.split()
        for i in range(len(words) - 7):
            phrase = " ".join(words[i : i + 8])
            assert seen.setdefault(phrase, text) == text
    assert all(60 <= len(p.split()) <= 130 for p in PASSAGES)


def test_what_is_asked_of_the_models_is_none_of_the_questions_that_retention_trains_on():
    common = "and between cook day explain first for give has how learn makes many off should story that the three two"
    common = {*common.split(), "what", "why"}

    def words(text):
        return {*re.findall("[a-z]{3,}", text.lower())} - common

    trained = set().union(*map(words, QUESTIONS))
    for asked in (*(question for question, _ in CONVERSATIONS), *GENERATION_PROMPTS):
        assert not words(asked) & trained, asked


def test_gsm8k_answers_lose_their_calculator_marks(tmp_path):
    path = tmp_path / "gsm8k.jsonl"
    lines = [{"question": "How many?", "answer": "2+3=<<2+3=5>>5, 5*2=<<5*2=10>>10.\n#### 10"}] * 3
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    assert read_gsm8k(path) == [("How many?", "2+3=5, 5*2=10.\n#### 10")] * 3
    assert len(read_gsm8k(path, limit=2)) == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"question": "a"}', "gsm8k.jsonl:1: found the fields 'question'"),
        (b'{"question": "a", "answer": 3}', "gsm8k.jsonl:1: answer is a int, expected text"),
        (b'{"text": "a"}', "gsm8k.jsonl:1: expected a JSON object with question and answer"),
        (b"\xff\xfe", "gsm8k.jsonl:1: not UTF-8"),
    ],
)
def test_a_wrong_gsm8k_file_is_refused_with_its_line(tmp_path, content, message):
    path = tmp_path / "gsm8k.jsonl"
    path.write_bytes(content)
    with pytest.raises(SempaError, match=message):
        read_gsm8k(path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real GSM8K is not beside the project")
def test_the_real_gsm8k_file_is_read_whole():
    problems = read_gsm8k(SHARED / "generation" / "gsm8k_test.jsonl")
    assert len(problems) == 1319
    assert not any("<<" in answer or ">>" in answer for _, answer in problems)
