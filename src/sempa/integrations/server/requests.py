"""What a client may ask, in OpenAI's form; an error names the field."""

import secrets
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from starlette.exceptions import HTTPException


class ApiError(HTTPException):
    """An error with its HTTP status, and the field and the short code that OpenAI's form has for it."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(status, message)
        self.param, self.code = param, code


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and how many the server takes at once."""

    # Tokens of a sentence's prompt, and of a conversation together with its answer.
    tokens: int = 8192
    body_bytes: int = 8 * 2**20
    # Requests under way, and answers that grow: each holds keys and values in memory.
    requests: int = 128
    answers: int = 16
    seconds: float = 300.0


class _Form(BaseModel):
    """A JSON object. Fields that it does not know are ignored, and null stands for the default."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, body: Any) -> Any:
        return {name: value for name, value in body.items() if value is not None} if isinstance(body, dict) else body


def _as_list(found: Any) -> Any:
    return [found] if isinstance(found, str) else found


def _as_texts(found: Any) -> Any:
    if isinstance(found, list) and found and all(isinstance(one, int | list) for one in found):
        raise ValueError("token ids are not supported; LangChain sends text with check_embedding_ctx_length=False")
    return _as_list(found)


class EmbeddingRequest(_Form):
    """Sentences to embed; `dimensions` is `dim` of `Embedder.encode`."""

    model: str = ""
    input: Annotated[list[str], Field(min_length=1, max_length=2048), BeforeValidator(_as_texts)]
    dimensions: int | None = Field(None, ge=1)
    encoding_format: Literal["float", "base64"] = "float"


class TextPart(_Form):
    """A part of a message. The model reads text alone: images and audio are refused."""

    type: Literal["text"]
    text: str


class Message(_Form):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]
    tool_calls: list = Field([], max_length=0)

    def for_template(self) -> dict[str, str]:
        """The message as a chat template reads it."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(_Form):
    """A conversation to answer; `max_tokens` None leaves as much as the limit has room for."""

    model: str = ""
    messages: list[Message] = Field(min_length=1, fail_fast=True)
    max_tokens: int | None = Field(None, ge=1, validation_alias=AliasChoices("max_completion_tokens", "max_tokens"))
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    seed: int = Field(default_factory=lambda: secrets.randbits(63), ge=-(2**63), lt=2**63)
    stop: Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=4), BeforeValidator(_as_list)] = []
    stream: bool = False
    stream_options: dict[str, bool] = {}
    # Not supported: only the value that changes nothing is accepted.
    n: Literal[1] = 1
    logprobs: Literal[False] = False
    frequency_penalty: Literal[0] = 0
    presence_penalty: Literal[0] = 0
    logit_bias: dict = Field({}, max_length=0)
    tools: list = Field([], max_length=0)
    web_search_options: None = None
    tool_choice: Literal["none", "auto"] = "none"
    functions: list = Field([], max_length=0)
    modalities: list[Literal["text"]] = Field([], fail_fast=True)
    audio: dict = Field({}, max_length=0)
    response_format: dict[str, Literal["text"]] = {}
