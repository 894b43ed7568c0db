"""What the server refuses, and how it says so: malformed bodies, other paths, methods and models."""

import contextlib
import json
import re

import httpx
import openai
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import CHAT, EMBED, MESSAGES, client, post, serving

from sempa import Embedder
from sempa.integrations.server.engine import Engine
from sempa.integrations.server.requests import ChatRequest, EmbeddingRequest

LONG = "dog " * 3000


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
        (EMBED, {"input": ["a", 5]}, "input", "input.1: Input should be a valid string"),
        (EMBED, {"input": [[5, 9, 200]]}, "input", "check_embedding_ctx_length=False"),
        (EMBED, {"input": {"text": "a"}}, "input", "input: Input should be a valid array"),
        (EMBED, {"input": ["a", " "]}, None, "sentence 1: is empty"),
        (EMBED, {"input": "half \ud83d"}, None, "body: Invalid JSON"),
        (EMBED, {"input": ["a", LONG]}, "input", r"input\.1: found .* tokens with its prompt, expected at most 2,048"),
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
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", "should be 'text'"),
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
        (CHAT, {"messages": MESSAGES, "tool_choice": "required"}, "tool_choice", "should be 'none' or 'auto'"),
        (CHAT, {"messages": [{**MESSAGES[0], "tool_calls": [{"id": "1"}]}]}, "messages", "at most 0 items"),
        (CHAT, {"messages": MESSAGES, "modalities": ["text", "audio"]}, "modalities", "'text'"),
        (CHAT, {"messages": MESSAGES, "audio": {"voice": "alloy"}}, "audio", "at most 0 items"),
        (CHAT, {"messages": MESSAGES, "logprobs": True}, "logprobs", "Input should be False"),
        (CHAT, {"messages": MESSAGES, "logit_bias": {"5": 1}}, "logit_bias", "at most 0 items"),
        (CHAT, {"messages": MESSAGES, "functions": [{"name": "f"}]}, "functions", "at most 0 items"),
        (CHAT, {"messages": MESSAGES, "frequency_penalty": 0.5}, "frequency_penalty", "Input should be 0"),
        (CHAT, {"messages": MESSAGES, "presence_penalty": 0.5}, "presence_penalty", "Input should be 0"),
        (CHAT, {"messages": MESSAGES, "response_format": {"type": "json_object"}}, "response_format", "'text'"),
        (
            CHAT,
            {"messages": MESSAGES, "response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format",
            r"response_format\.type: Input should be 'text'",
        ),
        (CHAT, {"messages": MESSAGES, "web_search_options": {}}, "web_search_options", "Input should be null"),
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


def test_what_fails_inside_is_not_told_to_clients(address, monkeypatch):
    async def broken(self, *_):
        raise RuntimeError("/home/somebody/secret")

    monkeypatch.setattr(Engine, "embed", broken)
    found = post(address, EMBED, {"input": "a"})
    assert (found.status_code, found.json()["error"]["type"]) == (500, "server_error")
    assert found.json()["error"]["message"] == "the server failed; its log says why"
    # The server closes this connection: a client must not send its next request on it.
    assert found.headers["connection"] == "close"


def test_a_model_is_found_by_its_name_and_methods_are_told(address):
    assert client(address).models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client(address).models.retrieve("gpt-4")
    assert httpx.get(f"{address}/v1/embeddings").headers["allow"] == "POST"


def test_a_model_without_a_chat_template_embeds_but_does_not_chat(tiny_folder):
    plain = Embedder(str(tiny_folder), dtype="float32", device="cpu")
    plain.base.tokenizer.chat_template = None
    with serving(plain) as address:
        found = post(address, CHAT, {"messages": MESSAGES})
        assert found.status_code == 400
        assert "no chat template" in found.json()["error"]["message"]
        assert post(address, EMBED, {"input": "a"}).is_success


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": [0] * 10**5},
        {"messages": [{"role": "user", "content": [0] * 10**5}]},
        {"messages": MESSAGES, "modalities": [0] * 10**5},
    ],
    ids=["messages", "parts", "modalities"],
)
def test_a_body_of_many_mistakes_is_refused_by_the_first(wrong):
    """An error for each would take minutes of the server's one loop, and gigabytes."""
    with pytest.raises(pydantic.ValidationError) as found:
        ChatRequest.model_validate_json(json.dumps(wrong))
    # Of content both forms are named.
    assert found.value.error_count() <= 2
