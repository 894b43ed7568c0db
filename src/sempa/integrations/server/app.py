"""The routes: what a request asks is read, done within its time, and answered."""

import asyncio
import dataclasses
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from contextlib import aclosing, asynccontextmanager
from typing import TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from sempa.batching.prompts import encode_texts, render_messages
from sempa.embedding.embed import sentence_prompts
from sempa.embedding.embedder import Embedder
from sempa.errors import SempaError
from sempa.integrations.server import replies
from sempa.integrations.server.engine import Engine, Piece
from sempa.integrations.server.gate import Gate, error_response
from sempa.integrations.server.metrics import CONTENT_TYPE, Metrics
from sempa.integrations.server.requests import (
    ApiError,
    ChatRequest,
    Limits,
    check_model,
    parse_body,
    parse_chat_request,
    parse_embedding_request,
)
from sempa.model.forward import context_length

Result = TypeVar("Result")


def make_app(embedder: Embedder, name: str, limits: Limits, api_key: str = "") -> Starlette:
    """The server as an ASGI application.

    Args:
        embedder: the model, with whatever adapter it holds.
        name: what clients call the model.
        limits: what a request may ask for, and how many are served at once.
        api_key: what a client must show as `Authorization: Bearer KEY` below `/v1`; "" asks for none.
    """
    metrics = Metrics()
    routes = Routes(embedder, name, limits, metrics)

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(routes.engine.close)

    return Starlette(
        routes=[
            Route("/v1/embeddings", routes.embeddings, methods=["POST"]),
            Route("/v1/chat/completions", routes.chat, methods=["POST"]),
            Route("/v1/models", routes.models),
            Route("/v1/models/{name:path}", routes.model),
            Route("/health", routes.health),
            Route("/metrics", routes.prometheus),
        ],
        middleware=[Middleware(Gate, metrics, api_key, limits.requests, 2 * limits.seconds)],
        exception_handlers=dict.fromkeys((SempaError, HTTPException, ClientDisconnect, Exception), error_response),
        lifespan=lifespan,
    )


class Routes:
    """One method for each route."""

    def __init__(self, embedder: Embedder, name: str, limits: Limits, metrics: Metrics) -> None:
        self.base, self.readout = embedder.base, embedder.readout
        self.name, self.limits, self.metrics = name, limits, metrics
        self.engine = Engine(embedder, limits.answers, metrics)
        self.most_tokens = min(limits.tokens, context_length(embedder.base.model))
        self.card = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "sempa"}

    async def embeddings(self, request: Request) -> Response:
        """Vectors of length 1; the one-word prompt is put around each text here."""
        return await self._in_time(request, self._embed(await self._read(request)))

    async def chat(self, request: Request) -> Response:
        """An answer, whole or as a stream of events."""
        deadline = time.monotonic() + self.limits.seconds
        asked = parse_chat_request(await self._read(request))
        prompt, asked = await asyncio.to_thread(self._encode_chat, asked)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.name}
        pieces = self.engine.answer(prompt, asked)
        if not asked.stream:
            return await self._in_time(request, self._complete(head, len(prompt), pieces))
        # Until the first token is there, an error has a status of its own.
        first = await self._in_time(request, anext(pieces))
        events = self._events(head, len(prompt), first, pieces, deadline, asked.include_usage)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    async def models(self, _request: Request) -> Response:
        """The one model."""
        return JSONResponse({"object": "list", "data": [self.card]})

    async def model(self, request: Request) -> Response:
        """The model of that name."""
        check_model({"model": request.path_params["name"]}, self.name)
        return JSONResponse(self.card)

    async def health(self, _request: Request) -> Response:
        """That the model is loaded."""
        return JSONResponse({"status": "ok"})

    async def prometheus(self, _request: Request) -> Response:
        """The counters."""
        return PlainTextResponse(self.metrics.text(), media_type=CONTENT_TYPE)

    async def _read(self, request: Request) -> dict:
        """The body's JSON, which names this model or none; raises `ApiError`."""
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self.limits.body_bytes:
                raise ApiError(413, f"body: found more than {self.limits.body_bytes:,} bytes")
        parsed = parse_body(bytes(body))
        check_model(parsed, self.name)
        return parsed

    async def _in_time(self, request: Request, work: Awaitable[Result]) -> Result:
        """The result of `work`, which is cancelled when its time is out or the client hangs up."""
        task = asyncio.ensure_future(work)
        # Behind the body there is nothing to receive but the end of the connection.
        gone = asyncio.ensure_future(request.receive())
        try:
            await asyncio.wait((task, gone), timeout=self.limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise ClientDisconnect if gone.done() else self._late()
        finally:
            task.cancel()
            gone.cancel()

    def _late(self) -> ApiError:
        return ApiError(504, f"the request took more than {self.limits.seconds:g} seconds", code="timeout")

    async def _embed(self, body: dict) -> Response:
        asked = parse_embedding_request(body, self.engine.width, self.limits.texts)
        prompts = await asyncio.to_thread(sentence_prompts, self.base, self.readout, asked.sentences)
        counts = [len(prompt.tokens) for prompt in prompts]
        if max(counts) > self.most_tokens:
            place, found = counts.index(max(counts)), f"found {max(counts):,} tokens with its prompt"
            raise _too_long(f"input[{place}]: {found}, expected at most {self.most_tokens:,}", "input")
        vectors = await self.engine.embed(prompts)

        def reply() -> JSONResponse:
            shown = vectors if asked.dimensions is None else self.engine.embedder.shorten(vectors, asked.dimensions)
            return JSONResponse(replies.embedding_list(shown, asked.base64, self.name, sum(counts)))

        # Thousands of vectors take a while to write as JSON.
        return await asyncio.to_thread(reply)

    def _encode_chat(self, asked: ChatRequest) -> tuple[list[int], ChatRequest]:
        """The conversation by the model's own template as token ids, and the request with its length and seed set."""
        tokenizer = self.base.tokenizer
        if tokenizer.chat_template is None:
            raise ApiError(400, "this model has no chat template: it embeds, but cannot chat")
        (prompt,) = encode_texts(tokenizer, [render_messages(tokenizer, asked.messages, add_generation_prompt=True)])
        room = self.most_tokens - len(prompt)
        if room < (asked.max_tokens or 1):
            asks = f"{len(prompt):,} tokens and {asked.max_tokens or 1:,} of the answer"
            raise _too_long(f"messages: found {asks}, expected at most {self.most_tokens:,} together", "messages")
        seed = secrets.randbits(63) if asked.seed is None else asked.seed
        return prompt, dataclasses.replace(asked, max_tokens=asked.max_tokens or room, seed=seed)

    async def _complete(self, head: dict, prompt_tokens: int, pieces: AsyncIterator[Piece]) -> Response:
        whole = [piece async for piece in pieces]
        text, usage = "".join(piece.text for piece in whole), replies.chat_usage(prompt_tokens, len(whole))
        return JSONResponse(replies.completion(head, text, whole[-1].finish_reason, usage))

    async def _events(
        self,
        head: dict,
        prompt_tokens: int,
        piece: Piece,
        pieces: AsyncGenerator[Piece, None],
        deadline: float,
        include_usage: bool,
    ) -> AsyncIterator[str]:
        """The answer as server-sent events, from its first `piece` on."""
        async with aclosing(pieces):
            yield replies.chunk(head, {"role": "assistant", "content": ""})
            count = 1
            while True:
                if piece.text:
                    yield replies.chunk(head, {"content": piece.text})
                if piece.finish_reason:
                    break
                if time.monotonic() > deadline:
                    yield replies.event(replies.error(504, str(self._late()), code="timeout"))
                    return
                piece, count = await anext(pieces), count + 1
            yield replies.chunk(head, {}, piece.finish_reason)
            if include_usage:
                yield replies.usage_chunk(head, replies.chat_usage(prompt_tokens, count))
            yield "data: [DONE]\n\n"


def _too_long(message: str, param: str) -> ApiError:
    return ApiError(400, message, param, "context_length_exceeded")
