"""The server as an ASGI application: the gate that every request passes, the routes, and the error in OpenAI's form."""

import asyncio
import base64
import contextlib
import hmac
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator

import numpy as np
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, Gauge, Histogram, generate_latest
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sempa.batching.prompts import encode_texts, render_messages
from sempa.embedding.compress import unit
from sempa.embedding.embed import check_sentences
from sempa.embedding.embedder import Embedder
from sempa.embedding.readouts import make_prompts
from sempa.errors import SempaError
from sempa.integrations.server.engine import Engine, Piece
from sempa.integrations.server.requests import ApiError, ChatRequest, EmbeddingRequest, Limits
from sempa.model.forward import context_length

_ERROR_TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 504: "timeout_error"}
# uvicorn closes the connection after an exception, and OpenAI's clients would run what took too long twice more.
_HEADERS = {429: {"Retry-After": "1"}, 500: {"Connection": "close"}, 504: {"x-should-retry": "false"}}


def make_app(embedder: Embedder, name: str, limits: Limits, api_key: str = "") -> Starlette:
    """The server as an ASGI application; `name` is what clients call the model.

    A client must send `api_key` as `Authorization: Bearer KEY` below `/v1`; "" asks for none.
    """
    registry = CollectorRegistry()
    model = ModelRoutes(embedder, name, limits, Engine(embedder, registry))
    handled = (ValidationError, SempaError, HTTPException, ClientDisconnect, Exception)
    card = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "sempa"}
    return Starlette(
        routes=[
            Route("/v1/embeddings", model.embeddings, methods=["POST"], max_body_size=limits.body_bytes),
            Route("/v1/chat/completions", model.chat, methods=["POST"], max_body_size=limits.body_bytes),
            Route("/v1/models", lambda _: JSONResponse({"object": "list", "data": [card]})),
            Route(f"/v1/models/{name}", lambda _: JSONResponse(card)),
            Route("/health", lambda _: JSONResponse({"status": "ok"})),
            Route("/metrics", lambda _: Response(generate_latest(registry), media_type=CONTENT_TYPE_PLAIN_0_0_4)),
        ],
        middleware=[Middleware(Gate, registry, limits, api_key)],
        exception_handlers=dict.fromkeys(handled, error_response),
    )


def error_response(_request: Request | None, error: Exception) -> JSONResponse:
    """An exception in OpenAI's form; the client's mistakes are 400 unless the exception says otherwise."""
    status, message, param, code = 500, "the server failed; its log says why", None, None
    if isinstance(error, HTTPException):
        status, message = error.status_code, error.detail
        param, code = getattr(error, "param", None), getattr(error, "code", None)
    elif isinstance(error, ValidationError):
        first = max(error.errors(), key=lambda one: len(one["loc"]))
        place = [str(part) for part in first["loc"]]
        status, message, param = 400, f"{'.'.join(place) or 'body'}: {first['msg']}", place[0] if place else None
    elif isinstance(error, SempaError | ClientDisconnect):
        status, message = 400, str(error)
    kind = _ERROR_TYPES.get(status, "invalid_request_error")
    content = {"error": {"message": message, "type": kind, "param": param, "code": code}}
    return JSONResponse(content, status, headers=_HEADERS.get(status, getattr(error, "headers", None)))


class Gate:
    """ASGI middleware: API key, announced size, how many requests are served at once, how long, and their metrics."""

    def __init__(self, app: ASGIApp, registry: CollectorRegistry, limits: Limits, api_key: str) -> None:
        self.app, self.limits, self.requests, self.admitted = app, limits, 0, 0
        self._authorization = f"Bearer {api_key}".encode() if api_key else None
        Gauge("sempa_requests_running", "Requests under way.", registry=registry).set_function(lambda: self.requests)
        self._seconds = Histogram("sempa_request_seconds", "Seconds of each.", ["path", "status"], registry=registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, began = None, time.perf_counter()

        async def watched_send(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        self.requests += 1
        try:
            # Neither what is refused nor what asks for no model: those may wait for ever for a client to read.
            self.admitted += (counts := self._admits(scope))
            try:
                await asyncio.wait_for(self.app(scope, receive, watched_send), self.limits.seconds)
            finally:
                self.admitted -= counts
        except (ApiError, asyncio.TimeoutError) as error:
            late = ApiError(504, f"the request took more than {self.limits.seconds:g} seconds", code="timeout")
            response = error_response(None, error if isinstance(error, ApiError) else late)
            if status is None:
                await response(scope, receive, watched_send)
            else:
                # A stream has its status already: the error is its last event, unless the client has stopped reading.
                event = {"type": "http.response.body", "body": b"data: " + response.body + b"\n\n"}
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(send(event), 1)
        finally:
            self.requests -= 1
            # A stream that is cancelled, as when its client does not read, leaves its events and the answer open.
            if "events" in scope:
                await scope["events"].aclose()
            path = scope["route"].path if "route" in scope else "other"
            self._seconds.labels(path, status or 500).observe(time.perf_counter() - began)

    def _admits(self, scope: Scope) -> bool:
        if not scope["path"].startswith("/v1/"):
            return False
        headers = dict(scope["headers"])
        if self._authorization and not hmac.compare_digest(headers.get(b"authorization", b""), self._authorization):
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")
        if self.admitted >= self.limits.requests:
            raise ApiError(429, f"{self.limits.requests} requests are under way; try again later", code="queue_full")
        if int(headers.get(b"content-length", 0)) > self.limits.body_bytes:
            raise ApiError(413, "Content Too Large")
        return True


class ModelRoutes:
    """The routes that the model answers."""

    def __init__(self, embedder: Embedder, name: str, limits: Limits, engine: Engine) -> None:
        self.embedder, self.name, self.limits, self.engine = embedder, name, limits, engine
        self.most_tokens = min(limits.tokens, context_length(embedder.base.model))

    async def embeddings(self, request: Request) -> Response:
        """Embed each text inside the readout's prompt; the vectors have length 1."""
        asked = EmbeddingRequest.model_validate_json(await request.body())
        self._check_model(asked.model)
        width = self.engine.width
        if (asked.dimensions or 1) > width:
            raise ApiError(400, f"dimensions: found {asked.dimensions}, expected at most {width}", "dimensions")
        texts, tokenizer = check_sentences(asked.input), self.embedder.base.tokenizer
        prompts = await asyncio.to_thread(make_prompts, self.embedder.readout, tokenizer, texts)
        counts = [len(prompt.tokens) for prompt in prompts]
        found = f"input.{counts.index(max(counts))}: found {max(counts):,} tokens with its prompt"
        self._check_tokens(max(counts), found, "input")
        vectors = await self.engine.embed(prompts, request.is_disconnected)
        # Thousands of vectors take a while to write as JSON.
        return await asyncio.to_thread(self._embedding_list, asked, vectors, sum(counts))

    def _embedding_list(self, asked: EmbeddingRequest, vectors: np.ndarray, tokens: int) -> Response:
        whole = asked.dimensions in (None, self.engine.width)
        vectors = unit(vectors if whole else self.embedder.shorten(vectors, asked.dimensions))
        values = vectors.tolist()
        if asked.encoding_format == "base64":
            values = [base64.b64encode(vector.astype("<f4")).decode() for vector in vectors]
        data = [{"object": "embedding", "index": place, "embedding": value} for place, value in enumerate(values)]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": self.name, "usage": usage})

    async def chat(self, request: Request) -> Response:
        """An answer by the model's own chat template, whole or as a stream of events."""
        asked = ChatRequest.model_validate_json(await request.body())
        self._check_model(asked.model)
        prompt = await asyncio.to_thread(self._encode_chat, asked)
        if self.engine.answers >= self.limits.answers:
            raise ApiError(429, f"{self.engine.answers} answers are being written; try again later", code="queue_full")
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.name}
        pieces = self.engine.answer(prompt, asked)
        if asked.stream:
            # The answer begins before its response does: from here on it is among those that are being written.
            first = await anext(pieces)
            events = _events(head, len(prompt), first, pieces, asked.stream_options.get("include_usage", False))
            request.scope["events"] = events
            return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        whole: list[Piece] = []
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                whole.append(piece)
                if await request.is_disconnected():
                    break
        message = {"role": "assistant", "content": "".join(text for text, _ in whole)}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": whole[-1][1]}
        usage = _usage(len(prompt), len(whole))
        return JSONResponse(head | {"object": "chat.completion", "choices": [choice], "usage": usage})

    def _encode_chat(self, asked: ChatRequest) -> list[int]:
        """The conversation as token ids; the answer gets the rest of the tokens, or `asked.max_tokens` of them."""
        tokenizer = self.embedder.base.tokenizer
        if tokenizer.chat_template is None:
            raise SempaError("this model has no chat template: it embeds, but cannot chat")
        messages = [message.for_template() for message in asked.messages]
        (prompt,) = encode_texts(tokenizer, [render_messages(tokenizer, messages, add_generation_prompt=True)])
        least = asked.max_tokens or 1
        found = f"messages: found {len(prompt):,} tokens and {least:,} of the answer"
        self._check_tokens(len(prompt) + least, found, "messages")
        asked.max_tokens = asked.max_tokens or self.most_tokens - len(prompt)
        return prompt

    def _check_tokens(self, count: int, found: str, param: str) -> None:
        if count > self.most_tokens:
            raise ApiError(400, f"{found}, expected at most {self.most_tokens:,}", param, "context_length_exceeded")

    def _check_model(self, name: str) -> None:
        if name not in ("", self.name):
            raise ApiError(404, f"model: found {name!r}, expected {self.name!r}", "model", "model_not_found")


async def _events(
    head: dict, prompt_tokens: int, piece: Piece | None, pieces: AsyncGenerator[Piece, None], include_usage: bool
) -> AsyncIterator[str]:
    """The answer as server-sent events; `piece` is its first."""

    def event(choices: list[dict], **more: dict) -> str:
        return f"data: {json.dumps(head | {'object': 'chat.completion.chunk', 'choices': choices} | more)}\n\n"

    def chunk(delta: dict, finish_reason: str | None = None) -> str:
        return event([{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}])

    count = 0
    async with contextlib.aclosing(pieces):
        yield chunk({"role": "assistant", "content": ""})
        while piece is not None:
            text, finish_reason = piece
            count += 1
            if text or finish_reason:
                yield chunk({"content": text} if text else {}, finish_reason)
            piece = await anext(pieces, None)
    if include_usage:
        yield event([], usage=_usage(prompt_tokens, count))
    yield "data: [DONE]\n\n"


def _usage(prompt: int, answer: int) -> dict:
    """Tokens of the prompt, template included, and of the answer, its end included."""
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
