"""Texts that a language model is measured on: files of passages or of questions with answers, and the built-in ones."""

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from sempa.batching.prompts import around_answer, encode_plain, encode_texts, prefix_length, render_conversation
from sempa.errors import SempaError
from sempa.io.rows import LIKE_JSON, line_records, numbered_lines

_BUILTIN = Path(__file__).parent / "texts"
# What a run's report answers.
BUILTIN_PROMPTS = _BUILTIN / "prompts.txt"


@dataclass(frozen=True)
class EvalText:
    """A passage, or the answer to a question (`question` is empty for a passage)."""

    text: str
    question: str = ""


@dataclass(frozen=True)
class ScoredTokens:
    """Token ids of a text; the probability of those from the offset `first` (1 or more) on counts."""

    tokens: list[int]
    first: int


def read_texts(path: Path, limit: int | None = None) -> list[EvalText]:
    """The first `limit` texts of a file, plain or gzip: JSON lines, else passages with blank lines between them.

    A file that begins as JSON does is read as JSON lines with `question` and `answer`, or `text`. Raises `SempaError`
    with file and line for a line of another layout or an empty text.
    """
    lines = list(numbered_lines(path))
    if not re.match(LIKE_JSON, next(line for _, line in lines if line.strip())):
        groups = itertools.groupby((line for _, line in lines), key=str.isspace)
        passages = (EvalText("".join(passage).rstrip()) for blank, passage in groups if not blank)
        return list(itertools.islice(passages, limit))
    names, records = line_records(path, iter(lines), [("question", "answer"), ("text",)])
    texts = []
    for number, values in itertools.islice(records, limit):
        if not all(value.strip() for value in values):
            raise SempaError(f"{path}:{number}: an empty text, expected {' and '.join(names)}")
        *question, text = values
        texts.append(EvalText(text, *question))
    return texts


def report_texts(gsm8k: str | Path | None = None) -> dict[str, list[EvalText]]:
    """The built-in texts, far from the training sentences, and a GSM8K file's first problems, without their `<<…>>`."""
    texts = {name: read_texts(_BUILTIN / f"{name}.jsonl") for name in ("passages", "conversations")}
    if gsm8k:
        # A sample gives a perplexity to three digits, and a report should not take longer than the training.
        problems = read_texts(Path(gsm8k), 40)
        if not all(problem.question for problem in problems):
            raise SempaError(f"gsm8k {gsm8k}: expected JSON lines with question and answer")
        texts["GSM8K"] = [EvalText(re.sub("<<.*?>>", "", text.text), text.question) for text in problems]
    return texts


def read_prompts(path: Path, limit: int | None = None) -> list[str]:
    """The first `limit` lines of a file that are not blank."""
    return [line.strip() for _, line in numbered_lines(path) if line.strip()][:limit]


def encode_eval_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[EvalText], window: int) -> list[ScoredTokens]:
    """Token ids of texts, cut into windows of at most `window` tokens that overlap by half.

    All tokens of a passage but the first are scored. A question goes through the chat template, and only the answer's
    tokens and those that end its turn are scored. Each token is scored once, in the first window that contains it.
    """
    sequences = []
    for text in texts:
        if text.question:
            prompt, _ = around_answer(tokenizer, text.question)
            whole = render_conversation(tokenizer, text.question, text.text)
            before, tokens = encode_texts(tokenizer, [prompt, whole])
            first = prefix_length(before, tokens)
        else:
            (tokens,) = encode_plain(tokenizer, [text.text])
            first = 1
        sequences += split_long(ScoredTokens(tokens, first), window)
    return sequences


def split_long(sequence: ScoredTokens, window: int) -> Iterator[ScoredTokens]:
    """The windows of a sequence that hold a token to score, each of at most `window` (2 or more) tokens."""
    step, first = window // 2, sequence.first
    for begin in range(0, max(1, len(sequence.tokens) - window + step), step):
        tokens = sequence.tokens[begin : begin + window]
        if first < begin + len(tokens):
            yield ScoredTokens(tokens, first - begin)
            first = begin + len(tokens)
