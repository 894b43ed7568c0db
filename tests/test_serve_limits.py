"""Clients without the key, too many, too long, too late, and hanging up."""

import asyncio
import contextlib
import gc
import itertools
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import prometheus_client as prometheus
import pytest
from serving import CHAT, EMBED, MESSAGES, answer, client, metric, post, serving, until

from sempa.integrations.server import app as server
from sempa.integrations.server.app import Gate
from sempa.integrations.server.engine import Engine
from sempa.integrations.server.requests import Limits


def test_the_key_is_asked_for_below_v1(adapted_embedder):
    with serving(adapted_embedder, api_key="s3cret-ü") as address:
        for key in ("x", "s3cret", "S3CRET-ü"):
            header = {"authorization": f"Bearer {key}".encode()}
            found = post(address, EMBED, {"input": "a"}, headers=header)
            assert (found.status_code, found.json()["error"]["code"]) == (401, "invalid_api_key")
        with pytest.raises(openai.AuthenticationError):
            client(address).models.list()
        assert post(address, EMBED, {"input": "a"}, headers={"authorization": "Bearer s3cret-ü".encode()}).is_success
        assert httpx.get(f"{address}/health").is_success and httpx.get(f"{address}/metrics").is_success


def test_a_large_body_is_413_told_by_its_length_or_not(adapted_embedder):
    with serving(adapted_embedder, body_bytes=1000) as address:
        body = json.dumps({"input": "a" * 2000}).encode()
        parts = (body[i : i + 500] for i in range(0, len(body), 500))
        for found in (post(address, EMBED, body), httpx.post(f"{address}{EMBED}", content=parts)):
            assert (found.status_code, found.json()["error"]["type"]) == (413, "invalid_request_error")
        assert post(address, EMBED, {"input": "a"}).is_success


def test_a_sentence_longer_than_the_servers_limit(adapted_embedder):
    with serving(adapted_embedder, tokens=40) as address:
        found = post(address, EMBED, {"input": ["a", "dog " * 40]}).json()["error"]
        assert found["message"].startswith("input.1: found") and found["code"] == "context_length_exceeded"


def test_an_answer_without_a_limit_of_its_own_ends_at_the_servers(adapted_embedder, endless):
    with serving(adapted_embedder, tokens=64) as address:
        found = post(address, CHAT, {"messages": MESSAGES}).json()
    assert (found["usage"]["total_tokens"], found["choices"][0]["finish_reason"]) == (64, "length")


def test_a_conversation_that_leaves_no_room_for_an_answer_is_too_long(adapted_embedder):
    prompt, _ = answer(adapted_embedder, MESSAGES, 1)
    with serving(adapted_embedder, tokens=len(prompt)) as address:
        found = post(address, CHAT, {"messages": MESSAGES})
    assert (found.status_code, found.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_a_full_queue_is_429_and_its_clients_come_in_later(adapted_embedder, endless):
    ask = {"model": "tiny", "messages": MESSAGES, "max_tokens": 400}
    with serving(adapted_embedder, requests=2, answers=1) as address, ThreadPoolExecutor(1) as pool:
        running = pool.submit(client(address).chat.completions.create, **ask)
        until(lambda: metric(address, "sempa_answers_running") == 1)
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError, match="1 answers are being written") as raised:
                client(address).chat.completions.create(**ask, stream=stream)
            assert raised.value.response.headers["retry-after"] == "1"
        assert running.result().usage.completion_tokens == 400
        until(lambda: metric(address, "sempa_requests_running") == 1)
        assert client(address).chat.completions.create(**ask | {"max_tokens": 3})
    with serving(adapted_embedder, requests=1) as address, ThreadPoolExecutor(1) as pool:
        running = pool.submit(client(address).chat.completions.create, **ask)
        until(lambda: metric(address, "sempa_answers_running") == 1)
        with pytest.raises(openai.RateLimitError, match="1 requests are under way"):
            client(address).embeddings.create(model="tiny", input="a")
        assert client(address, max_retries=9).embeddings.create(model="tiny", input="a").data
        assert running.result()


def test_streams_that_begin_at_once_count_as_answers_at_once(adapted_embedder, endless):
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 400, "stream": True}
    with serving(adapted_embedder, answers=2) as address, ThreadPoolExecutor(24) as pool:
        found = list(pool.map(lambda _: post(address, CHAT, body).status_code, range(24)))
        assert (found.count(200), found.count(429)) == (2, 22)
        until(lambda: metric(address, "sempa_answers_running") == 0)


def test_what_takes_too_long_is_504_and_stops(adapted_embedder, endless):
    ask = {"model": "tiny", "messages": MESSAGES, "max_tokens": 2000}
    with serving(adapted_embedder, seconds=0.3) as address:
        found = post(address, CHAT, ask)
        assert (found.status_code, found.json()["error"]["type"]) == (504, "timeout_error")
        with pytest.raises(openai.APIError, match=r"took more than 0\.3 seconds"):
            list(client(address).chat.completions.create(**ask, stream=True))
        with pytest.raises(openai.InternalServerError, match=r"took more than 0\.3 seconds"):
            client(address, max_retries=2).chat.completions.create(**ask)
        # The client did not try again what takes too long: the first request, and this one; the stream's status is 200.
        assert metric(address, f'sempa_request_seconds_count{{path="{CHAT}",status="504"}}') == 2
        assert post(address, EMBED, {"input": ["a dog " * 100] * 2000}).status_code == 504
        until(lambda: metric(address, "sempa_answers_running") == 0)
        # The queue is empty again.
        until(lambda: post(address, EMBED, {"input": "a"}).is_success)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_ends_its_answer(adapted_embedder, endless, stream):
    body = {"messages": MESSAGES, "max_tokens": 2000, "stream": stream}
    with serving(adapted_embedder) as address:
        with (
            contextlib.suppress(httpx.ReadTimeout),
            httpx.stream("POST", f"{address}{CHAT}", json=body, timeout=0.5) as response,
        ):
            # The first event, an empty line, the first text.
            assert len(list(itertools.islice(response.iter_lines(), 3))) == 3
        until(lambda: metric(address, "sempa_answers_running") == 0)
        written = metric(address, "sempa_generated_tokens_total")
        assert 0 < written < 1900
        time.sleep(0.2)
        assert metric(address, "sempa_generated_tokens_total") == written
        assert metric(address, f'sempa_request_seconds_count{{path="{CHAT}",status="200"}}') == 1


def test_a_client_that_does_not_read_its_answer_loses_its_place():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})
        await asyncio.sleep(600)

    async def run():
        registry = prometheus.CollectorRegistry()
        gate = Gate(app, registry, Limits(requests=1, seconds=0.05), "")
        scope = {"type": "http", "path": "/v1/embeddings", "headers": []}
        await asyncio.wait_for(gate(scope, None, lambda message: asyncio.sleep(600 * ("body" in message))), 30)
        return gate.requests, prometheus.generate_latest(registry).decode()

    requests, text = asyncio.run(run())
    assert requests == 0 and 'sempa_request_seconds_count{path="other",status="200"} 1.0' in text


def test_a_stream_whose_client_stops_reading_ends_its_answer(adapted_embedder, endless, monkeypatch):
    engines = []
    monkeypatch.setattr(server, "Engine", lambda *given: engines.append(Engine(*given)) or engines[-1])
    app = server.make_app(adapted_embedder, "tiny", Limits(seconds=0.5))
    body = json.dumps({"messages": MESSAGES, "max_tokens": 2000, "stream": True}).encode()
    requests = [{"type": "http.request", "body": body, "more_body": False}]
    answering = []

    async def receive():
        return requests.pop() if requests else await asyncio.sleep(600)

    async def send(message):
        if message["type"] == "http.response.body":
            answering.append(engines[0].answers)
            await asyncio.sleep(600)

    async def run():
        scope = {"type": "http", "method": "POST", "path": CHAT, "query_string": b"", "headers": []}
        await asyncio.wait_for(app(scope, receive, send), 60)
        return engines[0].answers

    # What the answer holds must wait neither for the garbage collector nor for the loop's end.
    gc.disable()
    try:
        assert asyncio.run(run()) == 0
    finally:
        gc.enable()
    assert answering[0] == 1


def test_a_requests_seconds_are_those_from_its_beginning_to_its_end(monkeypatch):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200})

    ticks = iter([10.0, 12.5])
    monkeypatch.setattr("sempa.integrations.server.app.time.perf_counter", lambda: next(ticks))
    registry = prometheus.CollectorRegistry()
    scope = {"type": "http", "path": "/health", "headers": []}
    asyncio.run(Gate(app, registry, Limits(), "")(scope, None, lambda message: asyncio.sleep(0)))
    labels = {"path": "other", "status": "200"}
    assert registry.get_sample_value("sempa_request_seconds_sum", labels) == 2.5


def test_a_limit_is_the_most_that_is_taken(adapted_embedder):
    prompt, _ = answer(adapted_embedder, MESSAGES, 1)
    with serving(adapted_embedder, tokens=len(prompt) + 1) as address:
        assert post(address, CHAT, {"messages": MESSAGES}).json()["usage"]["total_tokens"] == len(prompt) + 1


def test_who_has_no_key_and_does_not_read_takes_nobodys_place(adapted_embedder):
    with serving(adapted_embedder, api_key="k", requests=1) as address, socket.socket() as idle:
        idle.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        idle.settimeout(2)
        idle.connect(("127.0.0.1", int(address.rpartition(":")[2])))
        with pytest.raises(TimeoutError):
            while True:
                idle.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n" * 1000)
        allowed = {"Authorization": "Bearer k"}
        assert httpx.get(f"{address}/v1/models", headers=allowed).status_code == 200
