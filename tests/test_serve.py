"""The server by its clients: openai and LangChain, many at once, malformed, too many, too late, and hanging up."""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sempa import Embedder, SempaError
from sempa.batching.prompts import encode_one_word, encode_texts, render_messages
from sempa.cli import main
from sempa.model.adapter_files import save_adapter
from sempa.model.lora import add_lora, lora_parameters
from sempa.model.sampling import sample

httpx = pytest.importorskip("httpx", reason="httpx is not installed")
openai = pytest.importorskip("openai", reason="openai is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed")
pytest.importorskip("starlette", reason="starlette is not installed")
pydantic = pytest.importorskip("pydantic", reason="pydantic is not installed")
prometheus = pytest.importorskip("prometheus_client", reason="prometheus_client is not installed")

from prometheus_client.parser import text_string_to_metric_families  # noqa: E402
from starlette.requests import ClientDisconnect  # noqa: E402

from sempa.integrations.server import engine as engines  # noqa: E402
from sempa.integrations.server.app import Gate, make_app  # noqa: E402
from sempa.integrations.server.engine import Engine  # noqa: E402
from sempa.integrations.server.requests import ChatRequest, EmbeddingRequest, Limits  # noqa: E402

SENTENCES = ["A man pets a dog.", "Two girls ride a horse over there, don't they?", "Hi", "A bird sings 🎵 to a cat"]
MESSAGES = [{"role": "user", "content": "Who pets a dog?"}]


@pytest.fixture(scope="module")
def embedder(tiny_folder):
    embedder = Embedder(str(tiny_folder), dtype="float32", device="cpu")
    add_lora(embedder.base.model, 2, 4)
    with torch.no_grad():
        for parameter in lora_parameters(embedder.base.model).values():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return embedder


@contextlib.contextmanager
def serving(embedder, api_key="", **limits):
    """The server in a thread; yields its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    app = make_app(embedder, "tiny", Limits(**limits), api_key)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def address(embedder):
    with serving(embedder) as address:
        yield address


@pytest.fixture
def endless(monkeypatch):
    """No token ends an answer of a server that starts now."""
    monkeypatch.setattr(engines, "end_tokens", lambda base: [])


def client(address, **options):
    return openai.OpenAI(base_url=f"{address}/v1", **{"api_key": "any", "max_retries": 0} | options)


def post(address, path, body, **options):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(f"{address}{path}", content=content, timeout=60, **options)


def metric(address, name):
    found = re.search(rf"^{re.escape(name)} (\S+)$", httpx.get(f"{address}/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def reference(embedder, sentences):
    return embedder.encode(sentences, normalize=True)


def answer(embedder, messages, count, temperature=0.0, top_p=1.0, seed=0):
    """What `sample` makes of the model's own template."""
    base = embedder.base
    (prompt,) = encode_texts(base.tokenizer, [render_messages(base.tokenizer, messages, add_generation_prompt=True)])
    ((found,),) = sample(base, [prompt], 1, count, temperature, top_p, seed)
    return prompt, found


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_embeddings_are_the_embedders_unit_vectors(embedder, address, encoding):
    options = {} if encoding is None else {"encoding_format": encoding}
    found = client(address).embeddings.create(model="tiny", input=SENTENCES, **options)
    values = [one.embedding for one in found.data]
    if encoding == "base64":
        values = [np.frombuffer(base64.b64decode(value), "<f4") for value in values]
    np.testing.assert_allclose(np.array(values), reference(embedder, SENTENCES), atol=2e-6)
    assert [one.index for one in found.data] == [0, 1, 2, 3]
    tokens = sum(map(len, encode_one_word(embedder.base.tokenizer, SENTENCES)))
    assert found.usage.prompt_tokens == found.usage.total_tokens == tokens
    (one,) = client(address).embeddings.create(model="tiny", input=SENTENCES[1]).data
    np.testing.assert_allclose(one.embedding, values[1], atol=2e-6)


def test_dimensions_are_the_embedders_dim_at_length_one(embedder, address):
    found = client(address).embeddings.create(model="tiny", input=SENTENCES, dimensions=5)
    values = np.array([one.embedding for one in found.data])
    np.testing.assert_allclose(values, embedder.encode(SENTENCES, normalize=True, dim=5), atol=1e-5)


def test_all_dimensions_are_the_vector_without_the_option(embedder, address):
    found = client(address).embeddings.create(model="tiny", input=SENTENCES, dimensions=32)
    np.testing.assert_allclose(
        np.array([one.embedding for one in found.data]), reference(embedder, SENTENCES), atol=2e-6
    )


def test_requests_at_the_same_time_share_batches_and_get_their_own_vectors(embedder, address):
    sentences = [f"A man number {i} pets {i % 5} dogs." for i in range(48)]
    before = metric(address, "sempa_batches_total")
    with client(address) as shared, ThreadPoolExecutor(24) as pool:
        found = pool.map(lambda text: shared.embeddings.create(model="tiny", input=text).data[0].embedding, sentences)
        np.testing.assert_allclose(np.array(list(found)), reference(embedder, sentences), atol=2e-6)
    assert metric(address, "sempa_batches_total") - before < 24


def test_a_long_list_lets_others_in_and_comes_back_in_order(embedder, address):
    many = [f"{'A small bird sings. ' * (1 + i % 7)}{i}" for i in range(300)]
    with ThreadPoolExecutor(2) as pool:
        ended = []

        def ask(texts):
            values = client(address).embeddings.create(model="tiny", input=texts).data
            ended.append(len(texts))
            return np.array([one.embedding for one in values])

        long = pool.submit(ask, many)
        until(lambda: metric(address, "sempa_requests_running") >= 2)
        pool.submit(ask, SENTENCES[0]).result()
        np.testing.assert_allclose(long.result(), reference(embedder, many), atol=2e-6)
    assert ended[-1] == len(many)


def test_langchain_embeds_and_its_token_ids_are_refused_with_the_remedy(embedder, address):
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    embeddings = langchain.OpenAIEmbeddings(
        base_url=f"{address}/v1", api_key="any", model="tiny", check_embedding_ctx_length=False, dimensions=8
    )
    expected = embedder.encode(SENTENCES, normalize=True, dim=8)
    np.testing.assert_allclose(embeddings.embed_documents(SENTENCES), expected, atol=1e-5)
    np.testing.assert_allclose(asyncio.run(embeddings.aembed_query(SENTENCES[2])), expected[2], atol=1e-5)
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        client(address).embeddings.create(model="tiny", input=[[5, 9, 200]])


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.3, "seed": 7}, {"top_p": 0.6, "temperature": 0.8}])
def test_an_answer_whole_and_streamed_is_that_of_the_models_own_template(embedder, address, settings):
    messages = [{"role": "system", "content": "Be brief."}, *MESSAGES, {"role": "assistant", "content": "I do."}]
    messages.append({"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "why?"}]})
    options = {"temperature": 0.0, "seed": 3} | settings
    plain = [*messages[:-1], {"role": "user", "content": "And why?"}]
    prompt, expected = answer(embedder, plain, 60, **options)
    ask = {"model": "tiny", "messages": messages, "max_tokens": 60, **options}
    whole = client(address).chat.completions.create(**ask)
    # A character that the last token leaves unfinished is not said.
    assert whole.choices[0].message.content.strip() == expected.text.rstrip("\N{REPLACEMENT CHARACTER}").strip()
    assert whole.choices[0].finish_reason == ("stop" if expected.ended else "length")
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (len(prompt), len(expected.tokens))
    *chunks, last = client(address).chat.completions.create(**ask, stream=True, stream_options={"include_usage": True})
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert last.usage == whole.usage
    assert len({c.id for c in chunks}) == 1 and len(chunks) > 3


@settings(max_examples=20)
@given(st.data())
def test_an_answer_ends_before_its_first_stop(address, data):
    text = (
        client(address)
        .chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=30, temperature=0)
        .choices[0]
        .message.content
    )
    begins = data.draw(st.lists(st.integers(0, len(text) - 1), min_size=1, max_size=4))
    stops = [text[b : b + data.draw(st.integers(1, 6))] for b in begins]
    ask = {"model": "tiny", "messages": MESSAGES, "max_tokens": 30, "temperature": 0, "stop": stops}
    found = client(address).chat.completions.create(**ask).choices[0]
    # Of stops that overlap, the one that is whole first ends the answer.
    places = [(text.find(stop), text.find(stop) + len(stop)) for stop in stops]
    first = min(end for _, end in places)
    assert found.message.content in {text[:begin] for begin, _ in places if begin < first}
    assert not any(stop in found.message.content for stop in stops)
    if min(places)[1] == first:
        assert found.message.content == text[: min(places)[0]]
    assert found.finish_reason == "stop"
    streamed = client(address).chat.completions.create(**ask, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in streamed) == found.message.content


def test_without_a_seed_answers_differ(address):
    ask = {"model": "tiny", "messages": MESSAGES, "max_tokens": 20, "temperature": 2}
    texts = {client(address).chat.completions.create(**ask).choices[0].message.content for _ in range(5)}
    assert len(texts) > 1


def test_models_health_and_metrics(address):
    assert [model.id for model in client(address).models.list()] == ["tiny"]
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}
    found = httpx.get(f"{address}/metrics")
    assert found.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = text_string_to_metric_families(found.text)
    kinds = {family.name: family.type for family in families}
    assert kinds["sempa_requests_running"] == "gauge" and kinds["sempa_generated_tokens"] == "counter"
    assert kinds["sempa_request_seconds"] == "summary"


def test_metrics_count_sentences_and_tokens_and_name_no_path_of_a_clients_own(address):
    names = ["sempa_sentences_total", *(f'sempa_prompt_tokens_total{{path="{path}"}}' for path in (EMBED, CHAT))]
    before = [metric(address, name) for name in names]
    post(address, "/v1/of-my-own", {})
    asked = ((EMBED, {"input": ["a", "b", "c"]}), (CHAT, {"messages": MESSAGES, "max_tokens": 3}))
    read = [post(address, path, body).json()["usage"]["prompt_tokens"] for path, body in asked]
    assert [metric(address, name) - old for name, old in zip(names, before, strict=True)] == [3, *read]
    assert "of-my-own" not in httpx.get(f"{address}/metrics").text


LONG = "dog " * 3000
CHAT, EMBED = "/v1/chat/completions", "/v1/embeddings"


@pytest.mark.parametrize(
    "path, body, param, message",
    [
        (EMBED, b"", None, "body: Invalid JSON"),
        (EMBED, b"\xff\xfe{", None, "body: Invalid JSON"),
        (EMBED, b"[" * 100_000, None, "body: Invalid JSON"),
        (EMBED, b'{"input": "a", "dimensions": NaN}', "dimensions", "dimensions: Input should be a valid integer"),
        (EMBED, b'{"input": "a", "dimensions": 1' + b"0" * 5000 + b"}", None, "body: Invalid JSON"),
        (EMBED, [1], None, "body: Input should be an object"),
        (EMBED, {}, "input", "input: Field required"),
        (EMBED, {"input": []}, "input", "input: List should have at least 1 item"),
        (EMBED, {"input": ["a"] * 2049}, "input", "input: List should have at most 2048 items"),
        (EMBED, {"input": ["a", 3.5]}, "input", "input.1: Input should be a valid string"),
        (EMBED, {"input": [[5, 9, 200]]}, "input", "check_embedding_ctx_length=False"),
        (EMBED, {"input": {"text": "a"}}, "input", "input: Input should be a valid array"),
        (EMBED, {"input": ["a", " "]}, None, "sentence 1: is empty"),
        (EMBED, {"input": "half \ud83d"}, None, "body: Invalid JSON"),
        (EMBED, {"input": ["a", LONG]}, None, "sentence 1: has .* tokens in its prompt"),
        (
            EMBED,
            {"input": "a", "dimensions": 0},
            "dimensions",
            "greater than or equal to 1",
        ),
        (EMBED, {"input": "a", "dimensions": 33}, "dimensions", "dimensions: found 33, expected at most 32"),
        (EMBED, {"input": "a", "dimensions": True}, "dimensions", "dimensions: Input should be a valid integer"),
        (EMBED, {"input": "a", "encoding_format": "hex"}, "encoding_format", "should be 'float' or 'base64'"),
        (CHAT, {}, "messages", "messages: Field required"),
        (CHAT, {"messages": []}, "messages", "messages: List should have at least 1 item"),
        (CHAT, {"messages": ["hello"]}, "messages", "messages.0: Input should be an object"),
        (
            CHAT,
            {"messages": [{"role": "tool", "content": "x"}]},
            "messages",
            "messages.0.role: Input should be",
        ),
        (CHAT, {"messages": [{"role": ["user"], "content": "x"}]}, "messages", "messages.0.role: Input should be"),
        (CHAT, {"messages": [{"role": "user", "content": None}]}, "messages", "messages.0.content: Field required"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "messages.0.content"),
        (CHAT, {"messages": [{"role": "user", "content": "\udc00"}]}, None, "body: Invalid JSON"),
        (CHAT, {"messages": [{"role": "user", "content": LONG}]}, "messages", "expected at most 2,048"),
        (CHAT, {"messages": MESSAGES, "max_tokens": 2040}, "messages", "2,040 of the answer"),
        (CHAT, {"messages": MESSAGES, "max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        (CHAT, {"messages": MESSAGES, "max_completion_tokens": "9"}, "max_completion_tokens", "a valid integer"),
        (CHAT, {"messages": MESSAGES, "temperature": -1}, "temperature", "greater than or equal to 0"),
        (CHAT, {"messages": MESSAGES, "temperature": "hot"}, "temperature", "a valid number"),
        (CHAT, b'{"messages": [], "temperature": 1e999}', "messages", "messages: List"),
        (CHAT, {"messages": MESSAGES, "temperature": 2.1}, "temperature", "less than or equal to 2"),
        (CHAT, {"messages": MESSAGES, "top_p": 1.5}, "top_p", "less than or equal to 1"),
        (CHAT, {"messages": MESSAGES, "top_p": 0}, "top_p", "greater than 0"),
        (CHAT, {"messages": MESSAGES, "seed": 2**63}, "seed", "less than"),
        (CHAT, {"messages": MESSAGES, "stop": [""]}, "stop", "stop.0: String should have at least 1 character"),
        (CHAT, {"messages": MESSAGES, "stop": list("abcde")}, "stop", "at most 4 items"),
        (CHAT, {"messages": MESSAGES, "stream": "yes"}, "stream", "a valid boolean"),
        (CHAT, {"messages": MESSAGES, "stream_options": [1]}, "stream_options", "should be an object"),
        (CHAT, {"messages": MESSAGES, "n": 2}, "n", "n: Input should be 1"),
        (CHAT, {"messages": MESSAGES, "tools": [{"type": "function"}]}, "tools", "at most 0 items"),
        (CHAT, {"messages": [{**MESSAGES[0], "tool_calls": [{"id": "1"}]}]}, "messages", "at most 0 items"),
        (CHAT, {"messages": MESSAGES, "modalities": ["text", "audio"]}, "modalities", "'text'"),
        (CHAT, {"messages": MESSAGES, "audio": {"voice": "alloy"}}, "audio", "at most 0 items"),
        (CHAT, {"messages": MESSAGES, "presence_penalty": 0.5}, "presence_penalty", "Input should be 0"),
        (CHAT, {"messages": MESSAGES, "response_format": {"type": "json_object"}}, "response_format", "'text'"),
    ],
)
def test_what_the_client_got_wrong_is_400_and_names_the_field(address, path, body, param, message):
    found = post(address, path, body)
    assert found.status_code == 400, found.text
    error = found.json()["error"]
    assert error["param"] == param and re.search(message, error["message"])
    assert error["type"] == "invalid_request_error" and set(error) == {"message", "type", "param", "code"}


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
FIELDS = (
    *("input", "dimensions", "encoding_format", "messages", "max_tokens", "temperature", "top_p", "seed", "stop", "n"),
    *("stream", "stream_options"),
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(FIELDS, ANYTHING)).map(json.dumps) | st.binary())
def test_any_body_is_read_or_refused(body):
    for kind in (ChatRequest, EmbeddingRequest):
        with contextlib.suppress(pydantic.ValidationError):
            assert kind.model_validate_json(body)


def test_null_and_zero_stand_for_the_default():
    asked = {"messages": MESSAGES, "stop": None, "temperature": None, "frequency_penalty": 0.0, "user": "me"}
    found = ChatRequest.model_validate(asked | {"response_format": {"type": "text"}})
    assert (found.stop, found.temperature, found.max_tokens) == ([], 1.0, None)


def test_openais_newer_names_come_before_the_older_ones():
    messages = [{"role": "developer", "content": "Be brief."}]
    found = ChatRequest.model_validate({"messages": messages, "max_tokens": 3, "max_completion_tokens": 5})
    assert found.max_tokens == 5
    assert found.messages[0].for_template() == {"role": "system", "content": "Be brief."}


def test_other_paths_methods_and_models_are_404_and_405(address):
    assert httpx.get(f"{address}/v1/nothing").json()["error"]["message"] == "Not Found"
    assert httpx.get(f"{address}/v1/nothing").status_code == 404
    assert httpx.get(f"{address}/v1/embeddings").status_code == 405
    with pytest.raises(openai.NotFoundError, match="model: found 'gpt-4', expected 'tiny'") as raised:
        client(address).embeddings.create(model="gpt-4", input="a")
    assert raised.value.code == "model_not_found"
    assert post(address, EMBED, {"input": "no model named"}).status_code == 200


def test_the_key_is_asked_for_below_v1(embedder):
    with serving(embedder, api_key="s3cret-ü") as address:
        for key in ("x", "s3cret", "S3CRET-ü"):
            header = {"authorization": f"Bearer {key}".encode()}
            found = post(address, EMBED, {"input": "a"}, headers=header)
            assert (found.status_code, found.json()["error"]["code"]) == (401, "invalid_api_key")
        with pytest.raises(openai.AuthenticationError):
            client(address).models.list()
        assert post(address, EMBED, {"input": "a"}, headers={"authorization": "Bearer s3cret-ü".encode()}).is_success
        assert httpx.get(f"{address}/health").is_success and httpx.get(f"{address}/metrics").is_success


def test_a_large_body_is_413_told_by_its_length_or_not(embedder):
    with serving(embedder, body_bytes=1000) as address:
        body = json.dumps({"input": "a" * 2000}).encode()
        assert post(address, EMBED, body).status_code == 413
        parts = (body[i : i + 500] for i in range(0, len(body), 500))
        assert httpx.post(f"{address}{EMBED}", content=parts).status_code == 413
        assert post(address, EMBED, {"input": "a"}).is_success


def test_a_sentence_longer_than_the_servers_limit(embedder):
    with serving(embedder, tokens=40) as address:
        found = post(address, EMBED, {"input": ["a", "dog " * 40]}).json()["error"]
        assert found["message"].startswith("input.1: found") and found["code"] == "context_length_exceeded"


def test_an_answer_without_a_limit_of_its_own_ends_at_the_servers(embedder, endless):
    with serving(embedder, tokens=64) as address:
        found = post(address, CHAT, {"messages": MESSAGES}).json()
    assert (found["usage"]["total_tokens"], found["choices"][0]["finish_reason"]) == (64, "length")


def test_what_fails_inside_is_not_told_to_clients(address, monkeypatch):
    async def broken(self, *_):
        raise RuntimeError("/home/somebody/secret")

    monkeypatch.setattr(Engine, "embed", broken)
    found = post(address, EMBED, {"input": "a"})
    assert (found.status_code, found.json()["error"]["type"]) == (500, "server_error")
    assert found.json()["error"]["message"] == "the server failed; its log says why"


def test_a_full_queue_is_429_and_its_clients_come_in_later(embedder, endless):
    ask = {"model": "tiny", "messages": MESSAGES, "max_tokens": 400}
    with serving(embedder, requests=2, answers=1) as address, ThreadPoolExecutor(1) as pool:
        running = pool.submit(client(address).chat.completions.create, **ask)
        until(lambda: metric(address, "sempa_answers_running") == 1)
        for stream in (False, True):
            with pytest.raises(openai.RateLimitError, match="1 answers are being written") as raised:
                client(address).chat.completions.create(**ask, stream=stream)
            assert raised.value.response.headers["retry-after"] == "1"
        assert running.result().usage.completion_tokens == 400
        until(lambda: metric(address, "sempa_requests_running") == 1)
        assert client(address).chat.completions.create(**ask | {"max_tokens": 3})
    with serving(embedder, requests=1) as address, ThreadPoolExecutor(1) as pool:
        running = pool.submit(client(address).chat.completions.create, **ask)
        until(lambda: metric(address, "sempa_answers_running") == 1)
        with pytest.raises(openai.RateLimitError, match="1 requests are under way"):
            client(address).embeddings.create(model="tiny", input="a")
        assert client(address, max_retries=9).embeddings.create(model="tiny", input="a").data
        assert running.result()


def test_streams_that_begin_at_once_count_as_answers_at_once(embedder, endless):
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 400, "stream": True}
    with serving(embedder, answers=2) as address, ThreadPoolExecutor(24) as pool:
        found = list(pool.map(lambda _: post(address, CHAT, body).status_code, range(24)))
        assert (found.count(200), found.count(429)) == (2, 22)
        until(lambda: metric(address, "sempa_answers_running") == 0)


def test_what_takes_too_long_is_504_and_stops(embedder, endless):
    ask = {"model": "tiny", "messages": MESSAGES, "max_tokens": 2000}
    with serving(embedder, seconds=0.3) as address:
        assert post(address, CHAT, ask).status_code == 504
        with pytest.raises(openai.APIError, match=r"took more than 0\.3 seconds"):
            list(client(address).chat.completions.create(**ask, stream=True))
        assert post(address, EMBED, {"input": ["a dog " * 100] * 2000}).status_code == 504
        until(lambda: metric(address, "sempa_answers_running") == 0)
        # The queue is empty again.
        until(lambda: post(address, EMBED, {"input": "a"}).is_success)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_hangs_up_ends_its_answer(embedder, endless, stream):
    body = {"messages": MESSAGES, "max_tokens": 2000, "stream": stream}
    with serving(embedder) as address:
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


async def stays():
    """A client that waits for its answer."""
    return False


def test_batches_and_tokens_take_turns(embedder, monkeypatch):
    """One after another, and each kind gets its part of the time while both are there."""
    monkeypatch.setattr(engines, "end_tokens", lambda base: [])
    asked = ChatRequest.model_validate({"messages": MESSAGES, "max_tokens": 200, "seed": 0})
    prompts = [engines.Prompt(ids) for ids in encode_one_word(embedder.base.tokenizer, SENTENCES * 40)]
    turns = []

    async def run():
        engine = Engine(embedder, prometheus.CollectorRegistry())
        turn = engine._turn

        async def watched(job, *arguments):
            began = time.perf_counter()
            result = await turn(job, *arguments)
            turns.append((job.__name__, time.perf_counter() - began))
            return result

        engine._turn = watched

        async def write():
            return [piece async for piece in engine.answer([5, 9, 200], asked)]

        async def embed():
            for _ in range(4):
                await engine.embed(prompts, stays)

        await asyncio.gather(write(), write(), embed())

    asyncio.run(run())
    kinds = [kind for kind, _ in turns]
    batches = [place for place, kind in enumerate(kinds) if kind == "embed_prompts"]
    together = kinds[batches[0] : len(kinds) - 1 - kinds[::-1].index("next")]
    assert together.count("embed_prompts") >= 4, "an answer kept the batches waiting"
    # Between two batches every answer gets a token at least.
    for first, second in itertools.pairwise(batches):
        if second < len(together):
            assert second - first > 2


def test_a_client_that_gave_up_leaves_the_others_their_batch(embedder):
    first, second = (engines.Prompt(ids) for ids in encode_one_word(embedder.base.tokenizer, SENTENCES[:2]))

    async def ask():
        engine = Engine(embedder, prometheus.CollectorRegistry())
        gone, other = (asyncio.create_task(engine.embed([prompt], stays)) for prompt in (first, second))
        await asyncio.sleep(0)
        gone.cancel()
        return await other

    np.testing.assert_allclose(asyncio.run(ask())[0], embedder.encode(SENTENCES[1]), rtol=1e-4, atol=1e-5)


def test_a_list_whose_client_hung_up_is_not_embedded_to_its_end(embedder):
    prompts = [engines.Prompt(ids) for ids in encode_one_word(embedder.base.tokenizer, SENTENCES * 40)]
    asked = []

    async def hangs_up():
        asked.append(True)
        return len(asked) > 2

    async def ask():
        registry = prometheus.CollectorRegistry()
        with pytest.raises(ClientDisconnect):
            await Engine(embedder, registry).embed(prompts, hangs_up)
        return registry.get_sample_value("sempa_batches_total")

    assert asyncio.run(ask()) == 2


@pytest.mark.parametrize("wait", [0, 0.05])
def test_a_sigterm_while_the_server_starts_ends_it(tiny_folder, wait):
    command = [sys.executable, "-m", "sempa", "serve", str(tiny_folder), "--port", "0", "--dtype", "float32"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert "http://127.0.0.1:" in process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGTERM)
        try:
            assert process.wait(30) in (0, 130)
        finally:
            process.kill()


def test_the_command_serves_an_adapter_and_sigterm_finishes_what_is_running(embedder, tiny_folder, tmp_path):
    save_adapter(embedder.base.model, tmp_path / "adapter", str(tiny_folder))
    command = [sys.executable, "-m", "sempa", "serve", "--adapter", str(tmp_path), "--port", "0", "--dtype", "float32"]
    # Served from within, a folder has its own name.
    command += ["."]
    # A secret from a file often ends with a line feed.
    environment = os.environ | {"SEMPA_API_KEY": "k\n"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, env=environment, cwd=tiny_folder) as process:
        address = re.search(r"http://127\.0\.0\.1:\d+", process.stdout.readline())[0]
        name = tiny_folder.name
        own = client(address, api_key="k")
        (found,) = own.embeddings.create(model=name, input=SENTENCES[0]).data
        np.testing.assert_allclose(found.embedding, reference(embedder, SENTENCES[:1])[0], atol=2e-6)
        stream = own.chat.completions.create(model=name, messages=MESSAGES, max_tokens=500, seed=1, stream=True)
        next(iter(stream))
        process.send_signal(signal.SIGTERM)
        finished = [chunk.choices[0].finish_reason for chunk in stream]
        assert finished[-1] in ("stop", "length")
        assert process.wait(30) == 0
        assert process.stderr.read() == ""
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")


def test_an_address_that_is_taken_and_numbers_out_of_range_are_a_sentence(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--port", port]) == 2
        assert f"serve: cannot listen on 127.0.0.1 port {port}" in capsys.readouterr().err
    assert main(["serve", "--host", "a..b"]) == 2
    assert "serve: cannot listen on a..b" in capsys.readouterr().err
    assert main(["serve", "--port", "70000"]) == 2
    assert main(["serve", "--timeout", "nan"]) == 2
    assert "timeout: found nan, expected more than 0" in capsys.readouterr().err


@pytest.fixture
def limits_of(monkeypatch):
    """What the command would let its server do, by its arguments."""

    def asked(*arguments):
        found = []

        def stop(_embedder, _name, limits, _key):
            found.append(limits)
            raise SempaError("that is all")

        monkeypatch.setattr("sempa.integrations.server.app.make_app", stop)
        monkeypatch.setattr("sempa.commands.serve.load_embedder", lambda _: None)
        assert main(["serve", "--port", "0", *arguments, "model"]) == 2
        return found[0]

    return asked


def test_the_servers_limits_are_those_of_the_command_line(limits_of):
    found = limits_of("--max-tokens", "77", "--queue", "5", "--timeout", "9")
    assert found == Limits(tokens=77, requests=5, seconds=9.0)


@pytest.mark.parametrize(
    "host, key, warned", [("0.0.0.0", "", True), ("0.0.0.0", "k", False), ("127.0.0.1", "", False)]
)
def test_a_server_that_anybody_reaches_without_a_key_is_warned_of(limits_of, monkeypatch, capsys, host, key, warned):
    monkeypatch.setenv("SEMPA_API_KEY", key)
    limits_of("--host", host)
    assert (f"anyone who reaches {host} can use the model" in capsys.readouterr().err) == warned


def test_a_server_listens_on_an_address_of_version_6(limits_of):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    limits_of("--host", "::1")


def test_without_the_extra_it_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve"]) == 2
    assert "uvicorn is missing; install sempa with its extra `serve`" in capsys.readouterr().err


def test_a_model_is_found_by_its_name_and_methods_are_told(address):
    assert client(address).models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client(address).models.retrieve("gpt-4")
    assert httpx.get(f"{address}/v1/embeddings").headers["allow"] == "POST"


def test_a_batch_is_one_row_where_rows_do_not_run_side_by_side(embedder, address, monkeypatch):
    sizes = []
    real = engines.embed_prompts

    def counted(base, prompts, row, *rest):
        sizes.append(row)
        return real(base, prompts, row, *rest)

    monkeypatch.setattr(engines, "embed_prompts", counted)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert post(address, EMBED, {"input": [f"Dog {i}." for i in range(20)]}).is_success
    assert sizes == [20]


def test_a_conversation_that_leaves_no_room_for_an_answer_is_too_long(embedder):
    prompt, _ = answer(embedder, MESSAGES, 1)
    with serving(embedder, tokens=len(prompt)) as address:
        found = post(address, CHAT, {"messages": MESSAGES})
    assert (found.status_code, found.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_a_stream_says_that_it_is_done(address):
    found = post(address, CHAT, {"messages": MESSAGES, "max_tokens": 3, "stream": True})
    assert found.text.endswith("data: [DONE]\n\n")


def test_a_model_without_a_chat_template_embeds_but_does_not_chat(tiny_folder):
    plain = Embedder(str(tiny_folder), dtype="float32", device="cpu")
    plain.base.tokenizer.chat_template = None
    with serving(plain) as address:
        found = post(address, CHAT, {"messages": MESSAGES})
        assert found.status_code == 400
        assert "no chat template" in found.json()["error"]["message"]
        assert post(address, EMBED, {"input": "a"}).is_success


def test_an_answer_names_the_model_that_gave_it(address):
    for path, body in ((EMBED, {"input": "a"}), (CHAT, {"messages": MESSAGES, "max_tokens": 2})):
        assert post(address, path, body).json()["model"] == "tiny"


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
