"""Texts to measure a language model on: files of passages or conversations, cut into the tokens that are scored."""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from sempa.batching.prompts import common_prefix, encode_plain, encode_texts, render_conversation, render_prompt
from sempa.errors import SempaError
from sempa.io.rows import json_object, many, numbered_lines
from sempa.model.base import BaseModel
from sempa.model.forward import context_length

Messages = list[dict[str, str]]
"""The turns of a conversation as a chat template takes them: `role` and `content` each."""
# Longer windows cost attention time by their square and hardly change a perplexity.
LONGEST_WINDOW = 2048
_FORMS = "text, or messages, or question and answer"
_CALCULATOR = re.compile("<<.*?>>")


@dataclass(frozen=True)
class Text:
    """A passage, a question with its answer, or a conversation, and the place it was read from (`file:line`)."""

    place: str
    content: str | tuple[str, str] | Messages


@dataclass(frozen=True)
class Scored:
    """Token ids of a text, and the offsets (1 or more) of those tokens whose probability counts."""

    tokens: list[int]
    targets: list[int]


def read_texts(path: Path, limit: int | None = None) -> list[Text]:
    """The texts of a file, plain or gzip: JSON lines, else passages with blank lines between them.

    A JSON line holds `text`, or `messages` (objects of `role` and `content`), or `question` and `answer`. A file whose
    name ends in `.jsonl` or whose first line is a JSON object has JSON lines. `limit` keeps the first texts.

    Raises `SempaError` with file and line for whatever else is found.
    """
    lines = [(number, line) for number, line in numbered_lines(path)]
    first = next((line for _, line in lines if line.strip()), "")
    if not first:
        raise SempaError(f"{path}: holds blank lines only, expected texts")
    found = _json_texts(path, lines) if is_json_lines(path, first) else _passages(path, lines)
    return [text for text, _ in zip(found, range(limit if limit is not None else len(lines)))]


def read_gsm8k(path: Path, limit: int | None = None) -> list[tuple[str, str]]:
    """Questions and answers of a GSM8K file (JSON lines), without the answers' calculator marks `<<…>>`.

    Raises `SempaError` as `read_texts` does, and for a line without the two fields.
    """
    problems = []
    for text in read_texts(path, limit):
        if not isinstance(text.content, tuple):
            raise SempaError(f"{text.place}: expected a JSON object with question and answer")
        question, answer = text.content
        problems.append((question, _CALCULATOR.sub("", answer)))
    return problems


def is_json_lines(path: Path, first: str) -> bool:
    """Whether a file has JSON lines, by its name or by its first line that is not blank."""
    try:
        return path.name.lower().removesuffix(".gz").endswith(".jsonl") or isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        return False


def encode_file(
    base: BaseModel, path: Path, limit: int | None = None, window: int | None = None, stride: int | None = None
) -> list[Scored]:
    """The texts of a file as the model reads them; a text of more than `window` tokens is cut (`split_long`), and said.

    `window` is by default the model's context or 2,048 tokens, the smaller of both; `stride` half the window. Raises
    `SempaError` for what `read_texts`, `encode_text` and `split_long` refuse, and for a window of one token or one
    beyond the model's context.
    """
    context = context_length(base.model)
    window = default_window(base) if window is None else window
    if not 2 <= window <= context:
        raise SempaError(f"window: found {window:,}, expected 2 to {context:,}, the model's context")
    stride = window // 2 if stride is None else stride
    sequences = [one for text in read_texts(path, limit) for one in encode_text(base.tokenizer, text)]
    if long := sum(len(one.tokens) > window for one in sequences):
        print(
            f"{path}: {many(long, 'text')} of over {window:,} tokens cut into windows {stride:,} tokens apart",
            file=sys.stderr,
        )
    return split_long(sequences, window, stride)


def default_window(base: BaseModel) -> int:
    """How many tokens of a text are read at once: the model's context, or 2,048 where that is less."""
    return min(context_length(base.model), LONGEST_WINDOW)


def encode_text(tokenizer: PreTrainedTokenizerBase, text: Text) -> list[Scored]:
    """Token ids of one text. Of a passage all tokens but the first count, of a conversation what the assistant says.

    A question and its answer stand behind the system turn of training, `messages` as they are: one sequence, or several
    where the template writes earlier turns in another way once the conversation goes on. Raises `SempaError` when the
    model has no chat template or the template refuses the turns.
    """
    if isinstance(text.content, str):
        return encode_passages(tokenizer, [text.content])
    if isinstance(text.content, tuple):
        return encode_conversations(tokenizer, [text.content])
    if tokenizer.chat_template is None:
        raise SempaError(f"{text.place}: a conversation needs a chat template, and this model's tokenizer has none")
    messages = text.content
    answers = [k for k, message in enumerate(messages) if message["role"] == "assistant"]
    try:
        rendered = [
            tokenizer.apply_chat_template(messages[:end], tokenize=False, add_generation_prompt=begin)
            for k in answers
            for end, begin in ((k, True), (k + 1, False))
        ]
    except (TemplateError, ValueError) as error:
        raise SempaError(f"{text.place}: the chat template refuses these messages: {error}") from error
    encoded = encode_texts(tokenizer, rendered)
    sequences: list[Scored] = []
    for prompt, whole in zip(encoded[::2], encoded[1::2], strict=True):
        targets = list(range(common_prefix(prompt, whole), len(whole)))
        if sequences and whole[: len(sequences[-1].tokens)] == sequences[-1].tokens:
            targets = sequences.pop().targets + targets
        sequences.append(Scored(whole, targets))
    return sequences


def encode_passages(tokenizer: PreTrainedTokenizerBase, passages: Sequence[str]) -> list[Scored]:
    """Token ids of running text; all tokens but the first count."""
    return [Scored(ids, list(range(1, len(ids)))) for ids in encode_plain(tokenizer, passages)]


def encode_conversations(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[tuple[str, str]]) -> list[Scored]:
    """Token ids of a user's turn and the answer through the chat template; the answer's tokens count."""
    encoded = []
    for user, answer in conversations:
        texts = [render_prompt(tokenizer, user), render_conversation(tokenizer, user, answer)]
        prompt, whole = encode_texts(tokenizer, texts)
        encoded.append(Scored(whole, list(range(common_prefix(prompt, whole), len(whole)))))
    return encoded


def split_long(sequences: Sequence[Scored], window: int, stride: int) -> list[Scored]:
    """Cut what is longer than `window` tokens into windows that begin `stride` tokens apart.

    A token counts once, in the first window that holds it, so all but the first window's have at least
    `window − stride` tokens before them. Raises `SempaError` unless 1 ≤ stride < window.
    """
    if not 1 <= stride < window:
        raise SempaError(f"stride: found {stride}, expected 1 to {window - 1}, less than the window")
    return [piece for one in sequences for piece in _windows(one, window, stride)]


def _windows(one: Scored, window: int, stride: int) -> Iterator[Scored]:
    done = 0
    for begin in range(0, max(1, len(one.tokens) - window + stride), stride):
        end = begin + window
        targets = [target - begin for target in one.targets if done <= target < end]
        if targets:
            yield Scored(one.tokens[begin:end], targets)
        done = end


def _passages(path: Path, lines: Sequence[tuple[int, str]]) -> Iterator[Text]:
    gathered: list[str] = []
    place = ""
    for number, line in [*lines, (0, "")]:
        if line.strip():
            place = place if gathered else f"{path}:{number}"
            gathered.append(line)
        elif gathered:
            yield Text(place, "".join(gathered).rstrip())
            gathered = []


def _json_texts(path: Path, lines: Sequence[tuple[int, str]]) -> Iterator[Text]:
    for number, line in lines:
        if line.strip():
            place = f"{path}:{number}"
            try:
                yield Text(place, _content(json_object(line)))
            except ValueError as error:
                raise SempaError(f"{place}: {error}") from error


def _content(fields: dict) -> str | tuple[str, str] | Messages:
    """What a JSON line holds; a `ValueError` says what is wrong with it."""
    if "messages" in fields:
        return _messages(fields["messages"])
    if "question" in fields and "answer" in fields:
        return text_field(fields, "question"), text_field(fields, "answer")
    if "text" in fields:
        return text_field(fields, "text")
    found = ", ".join(map(repr, list(fields)[:8])) or "none"
    raise ValueError(f"found the fields {found}, expected {_FORMS}")


def _messages(found: object) -> Messages:
    if not (isinstance(found, list) and all(isinstance(turn, dict) for turn in found)):
        raise ValueError("messages is not a list of objects with role and content")
    turns = [{name: text_field(turn, name, empty=True) for name in ("role", "content")} for turn in found]
    roles = [turn["role"] for turn in turns]
    if "assistant" not in roles[1:] or roles[0] == "assistant":
        raise ValueError("messages has no turn of the assistant that answers another turn")
    return turns


def text_field(fields: dict, name: str, empty: bool = False) -> str:
    """The text in a field of a JSON object; a `ValueError` says that there is none."""
    value = fields.get(name)
    if not isinstance(value, str) or not (value.strip() or empty):
        kind = "empty" if isinstance(value, str) else "missing" if value is None else f"a {type(value).__name__}"
        raise ValueError(f"{name} is {kind}, expected text")
    # Half a surrogate pair passes the JSON parser, but no tokenizer.
    value.encode()
    return value
