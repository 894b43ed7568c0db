"""In front of every route: the API key, how many requests are under way, and the error in OpenAI's form."""

import asyncio
import contextlib
import hmac
import time

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sempa.errors import SempaError
from sempa.integrations.server import replies
from sempa.integrations.server.metrics import Metrics
from sempa.integrations.server.requests import ApiError

_PATHS = ("/v1/embeddings", "/v1/chat/completions", "/v1/models", "/health", "/metrics")
# For the counters alone: the client that hung up reads no answer.
_HUNG_UP = 499


class Gate:
    """ASGI middleware that lets a request below `/v1` in with the key, while fewer than `most_requests` are served.

    After `seconds` the connection is closed: a client that does not read its answer would hold its place for ever.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, api_key: str, most_requests: int, seconds: float) -> None:
        self.app, self.metrics, self.requests = app, metrics, 0
        self.most_requests, self.seconds = most_requests, seconds
        self._authorization = f"Bearer {api_key}".encode() if api_key else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it, and count it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status, began = 500, time.perf_counter()

        async def watched_send(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        error = self._refusal(scope) if scope["path"].startswith("/v1/") else None
        self.requests += 1
        self.metrics.add("sempa_requests_running")
        try:
            app = self.app if error is None else await error_response(Request(scope), error)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(app(scope, receive, watched_send), self.seconds)
        finally:
            self.requests -= 1
            self.metrics.add("sempa_requests_running", -1)
            path = scope["path"] if scope["path"] in _PATHS else "other"
            self.metrics.add("sempa_requests_total", path=path, status=status)
            self.metrics.add("sempa_request_seconds_total", time.perf_counter() - began, path=path)

    def _refusal(self, scope: Scope) -> ApiError | None:
        shown = dict(scope["headers"]).get(b"authorization", b"")
        if self._authorization is not None and not hmac.compare_digest(shown, self._authorization):
            return ApiError(401, "the API key is missing or wrong", code="invalid_api_key")
        if self.requests >= self.most_requests:
            return ApiError(429, f"{self.requests} requests are under way; try again later", code="queue_full")
        return None


async def error_response(_request: Request, error: Exception) -> JSONResponse:
    """The answer that stands for an exception: what the user got wrong is 400 unless it says otherwise."""
    if isinstance(error, ApiError):
        status, content = error.status, replies.error(error.status, str(error), error.param, error.code)
    elif isinstance(error, SempaError):
        status, content = 400, replies.error(400, str(error))
    elif isinstance(error, HTTPException):
        status, content = error.status_code, replies.error(error.status_code, error.detail)
    elif isinstance(error, ClientDisconnect):
        status, content = _HUNG_UP, {}
    else:
        # The traceback is in the server's log.
        status, content = 500, replies.error(500, "the server failed")
    return JSONResponse(content, status, headers={"Retry-After": "1"} if status == 429 else None)
