"""What the server says, in OpenAI's form."""

import base64
import json

import numpy as np

from sempa.embedding.compress import unit

_ERROR_TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 504: "timeout_error"}


def error(status: int, message: str, param: str | None = None, code: str | None = None) -> dict:
    """An error of that HTTP status."""
    kind = _ERROR_TYPES.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def embedding_list(vectors: np.ndarray, as_base64: bool, model: str, tokens: int) -> dict:
    """Vectors `[n, D]`, at length 1: lists, or base64 of little-endian float32."""
    vectors = unit(vectors)
    if as_base64:
        values = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
    else:
        values = vectors.tolist()
    data = [{"object": "embedding", "index": place, "embedding": value} for place, value in enumerate(values)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": model, "usage": usage}


def completion(head: dict, text: str, finish_reason: str, usage: dict) -> dict:
    """A whole answer; `head` has its id, time and model."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
    return head | {"object": "chat.completion", "choices": [choice], "usage": usage}


def chunk(head: dict, delta: dict, finish_reason: str | None = None) -> str:
    """A part of an answer, as an event of the stream."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return event(head | {"object": "chat.completion.chunk", "choices": [choice]})


def usage_chunk(head: dict, usage: dict) -> str:
    """The event behind the last part, for who asked for it."""
    return event(head | {"object": "chat.completion.chunk", "choices": [], "usage": usage})


def chat_usage(prompt: int, answer: int) -> dict:
    """Tokens of the prompt, template included, and of the answer, its end included."""
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def event(content: dict) -> str:
    """A server-sent event."""
    return f"data: {json.dumps(content)}\n\n"
