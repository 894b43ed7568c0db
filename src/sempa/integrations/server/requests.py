"""What a client may ask in OpenAI's form, checked field by field; the error names the field."""

import json
import reprlib
import sys
from dataclasses import dataclass

from sempa.errors import SempaError

_ROLES = ("system", "developer", "user", "assistant")
_MOST_STOPS = 4
# Fields that change an answer in a way that is not supported here, with the value that changes nothing.
_UNSUPPORTED = {
    **{"n": 1, "logprobs": False, "frequency_penalty": 0, "presence_penalty": 0, "logit_bias": {}},
    **{"tools": [], "functions": [], "response_format": {"type": "text"}},
}


class ApiError(SempaError):
    """An error with its HTTP status, and the field and the short code that OpenAI's form has for it."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and how many the server takes at once."""

    # Tokens of a sentence's prompt, and of a conversation together with its answer.
    tokens: int = 8192
    texts: int = 2048
    body_bytes: int = 8 * 2**20
    # Requests under way, and answers that grow: each holds keys and values in memory.
    requests: int = 128
    answers: int = 16
    seconds: float = 300.0


@dataclass(frozen=True)
class EmbeddingRequest:
    """Sentences to embed; `dimensions` is `dim` of `Embedder.encode`."""

    sentences: list[str]
    base64: bool
    dimensions: int | None


@dataclass(frozen=True)
class ChatRequest:
    """A conversation to answer; `max_tokens` None leaves as much as the limit has room for, `seed` None draws one."""

    messages: list[dict[str, str]]
    max_tokens: int | None
    temperature: float
    top_p: float
    seed: int | None
    stops: list[str]
    stream: bool
    include_usage: bool


def parse_body(body: bytes) -> dict:
    """A request's JSON object; raises `ApiError` 400 for anything else."""
    try:
        value = json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"body: is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise ApiError(400, f"body: found {reprlib.repr(value)}, expected a JSON object")
    return value


def check_model(body: dict, name: str) -> None:
    """Raise `ApiError` 404 for another model than the one that is loaded; without a name it is meant."""
    found = body.get("model") or name
    if found != name:
        raise ApiError(404, f"model: found {reprlib.repr(found)}, expected {name!r}", "model", "model_not_found")


def parse_embedding_request(body: dict, width: int, most_texts: int) -> EmbeddingRequest:
    """A request for vectors of at most `width` numbers; raises `ApiError` 400."""
    found = body.get("input")
    sentences = [found] if isinstance(found, str) else found
    if not isinstance(sentences, list) or not all(isinstance(sentence, str) for sentence in sentences):
        remedy = "LangChain sends token ids unless it has check_embedding_ctx_length=False"
        raise _wrong("input", found, f"a string or a list of strings ({remedy})")
    if not 1 <= len(sentences) <= most_texts:
        raise ApiError(400, f"input: found {len(sentences):,} texts, expected 1 to {most_texts:,}", "input")
    encoding = body.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise _wrong("encoding_format", encoding, "float or base64")
    return EmbeddingRequest(sentences, encoding == "base64", _number(body, "dimensions", None, 1, width, whole=True))


def parse_chat_request(body: dict) -> ChatRequest:
    """A request for an answer; raises `ApiError` 400."""
    for name, neutral in _UNSUPPORTED.items():
        if body.get(name) not in (None, neutral):
            raise _wrong(name, body[name], "none: this server does not support it")
    stop, options = body.get("stop") or [], body.get("stream_options") or {}
    stops = [stop] if isinstance(stop, str) else stop
    if not (isinstance(stops, list) and len(stops) <= _MOST_STOPS and all(isinstance(s, str) and s for s in stops)):
        raise _wrong("stop", stop, f"a string, or a list of at most {_MOST_STOPS}, none of them empty")
    if not isinstance(options, dict):
        raise _wrong("stream_options", options, "an object")
    length = "max_tokens" if body.get("max_completion_tokens") is None else "max_completion_tokens"
    return ChatRequest(
        messages=_messages(body.get("messages")),
        max_tokens=_number(body, length, None, 1, 2**31 - 1, whole=True),
        temperature=_number(body, "temperature", 1.0, 0, 2),
        # 0 leaves the likeliest token alone, as any number below its probability does.
        top_p=max(_number(body, "top_p", 1.0, 0, 1), sys.float_info.min),
        seed=_number(body, "seed", None, -(2**63), 2**63 - 1, whole=True),
        stops=stops,
        stream=_flag(body, "stream"),
        include_usage=_flag(options, "include_usage"),
    )


def _messages(found: object) -> list[dict[str, str]]:
    if not isinstance(found, list) or not found:
        raise _wrong("messages", found, "a list of at least one")
    messages = []
    for place, message in enumerate(found):
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if isinstance(content, list):
            # Text may come in parts; of pictures and sounds this model knows nothing.
            texts = [part.get("text") if isinstance(part, dict) else None for part in content]
            content = "".join(texts) if all(isinstance(text, str) for text in texts) else None
        if role not in _ROLES or not isinstance(content, str):
            raise _wrong(f"messages[{place}]", message, f"a role of {', '.join(_ROLES)}, and a content of text")
        messages.append({"role": "system" if role == "developer" else role, "content": content})
    return messages


def _number(
    body: dict, name: str, default: float | None, least: float, most: float, *, whole: bool = False
) -> float | None:
    value = body.get(name)
    if value is None:
        return default
    if type(value) not in ((int,) if whole else (int, float)) or not least <= value <= most:
        raise _wrong(name, value, f"a {'whole ' * whole}number from {least:,} to {most:,}")
    return value


def _flag(body: dict, name: str) -> bool:
    value = body.get(name)
    if value not in (None, False, True):
        raise _wrong(name, value, "true or false")
    return bool(value)


def _wrong(name: str, found: object, expected: str) -> ApiError:
    return ApiError(400, f"{name}: found {reprlib.repr(found)}, expected {expected}", name.partition("[")[0])


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")
