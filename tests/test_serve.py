"""The server by its clients: openai and LangChain, embeddings and answers, whole and streamed."""

import asyncio
import base64
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_openai import OpenAIEmbeddings
from prometheus_client.parser import text_string_to_metric_families
from serving import CHAT, EMBED, MESSAGES, SENTENCES, answer, client, metric, post, reference, until

from sempa.batching.prompts import encode_one_word


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_embeddings_are_the_embedders_unit_vectors(adapted_embedder, address, encoding):
    options = {} if encoding is None else {"encoding_format": encoding}
    found = client(address).embeddings.create(model="tiny", input=SENTENCES, **options)
    values = [one.embedding for one in found.data]
    if encoding == "base64":
        values = [np.frombuffer(base64.b64decode(value), "<f4") for value in values]
    np.testing.assert_allclose(np.array(values), reference(adapted_embedder, SENTENCES), atol=2e-6)
    assert [one.index for one in found.data] == [0, 1, 2, 3]
    tokens = sum(map(len, encode_one_word(adapted_embedder.base.tokenizer, SENTENCES)))
    assert found.usage.prompt_tokens == found.usage.total_tokens == tokens
    (one,) = client(address).embeddings.create(model="tiny", input=SENTENCES[1]).data
    np.testing.assert_allclose(one.embedding, values[1], atol=2e-6)


def test_dimensions_are_the_embedders_dim_at_length_one(adapted_embedder, address):
    found = client(address).embeddings.create(model="tiny", input=SENTENCES, dimensions=5)
    values = np.array([one.embedding for one in found.data])
    np.testing.assert_allclose(values, adapted_embedder.encode(SENTENCES, normalize=True, dim=5), atol=1e-5)


def test_all_dimensions_are_the_vector_without_the_option(adapted_embedder, address):
    found = client(address).embeddings.create(model="tiny", input=SENTENCES, dimensions=32)
    np.testing.assert_allclose(
        np.array([one.embedding for one in found.data]), reference(adapted_embedder, SENTENCES), atol=2e-6
    )


def test_requests_at_the_same_time_share_batches_and_get_their_own_vectors(adapted_embedder, address):
    sentences = [f"A man number {i} pets {i % 5} dogs." for i in range(48)]
    before = metric(address, "sempa_batches_total")
    with client(address) as shared, ThreadPoolExecutor(24) as pool:
        found = pool.map(lambda text: shared.embeddings.create(model="tiny", input=text).data[0].embedding, sentences)
        np.testing.assert_allclose(np.array(list(found)), reference(adapted_embedder, sentences), atol=2e-6)
    assert metric(address, "sempa_batches_total") - before < 24


def test_a_long_list_lets_others_in_and_comes_back_in_order(adapted_embedder, address):
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
        np.testing.assert_allclose(long.result(), reference(adapted_embedder, many), atol=2e-6)
    assert ended[-1] == len(many)


def test_langchain_embeds_and_its_token_ids_are_refused_with_the_remedy(adapted_embedder, address):
    embeddings = OpenAIEmbeddings(
        base_url=f"{address}/v1", api_key="any", model="tiny", check_embedding_ctx_length=False, dimensions=8
    )
    expected = adapted_embedder.encode(SENTENCES, normalize=True, dim=8)
    np.testing.assert_allclose(embeddings.embed_documents(SENTENCES), expected, atol=1e-5)
    np.testing.assert_allclose(asyncio.run(embeddings.aembed_query(SENTENCES[2])), expected[2], atol=1e-5)
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False"):
        client(address).embeddings.create(model="tiny", input=[[5, 9, 200]])


@pytest.mark.parametrize("settings", [{}, {"temperature": 1.3, "seed": 7}, {"top_p": 0.6, "temperature": 0.8}])
def test_an_answer_whole_and_streamed_is_that_of_the_models_own_template(adapted_embedder, address, settings):
    messages = [{"role": "system", "content": "Be brief."}, *MESSAGES, {"role": "assistant", "content": "I do."}]
    messages.append({"role": "user", "content": [{"type": "text", "text": "And "}, {"type": "text", "text": "why?"}]})
    options = {"temperature": 0.0, "seed": 3} | settings
    plain = [*messages[:-1], {"role": "user", "content": "And why?"}]
    prompt, expected = answer(adapted_embedder, plain, 60, **options)
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
    assert kinds["sempa_request_seconds"] == "histogram"


def test_metrics_count_sentences_and_tokens_and_name_no_path_of_a_clients_own(address):
    names = ["sempa_sentences_total", *(f'sempa_prompt_tokens_total{{path="{path}"}}' for path in (EMBED, CHAT))]
    before = [metric(address, name) for name in names]
    post(address, "/v1/of-my-own", {})
    asked = ((EMBED, {"input": ["a", "b", "c"]}), (CHAT, {"messages": MESSAGES, "max_tokens": 3}))
    read = [post(address, path, body).json()["usage"]["prompt_tokens"] for path, body in asked]
    assert [metric(address, name) - old for name, old in zip(names, before, strict=True)] == [3, *read]
    assert "of-my-own" not in httpx.get(f"{address}/metrics").text


def test_a_metric_counts_the_tokens_of_answers(address):
    before = metric(address, "sempa_generated_tokens_total")
    usage = post(address, CHAT, {"messages": MESSAGES, "max_tokens": 3}).json()["usage"]
    assert metric(address, "sempa_generated_tokens_total") - before == usage["completion_tokens"]


def test_a_stream_says_that_it_is_done(address):
    found = post(address, CHAT, {"messages": MESSAGES, "max_tokens": 3, "stream": True})
    assert found.text.endswith("data: [DONE]\n\n")
    assert found.text.count('"object": "chat.completion.chunk"') == found.text.count("data: ") - 1
    assert found.headers["cache-control"] == "no-cache"


def test_an_answer_names_the_model_that_gave_it(address):
    for path, body in ((EMBED, {"input": "a"}), (CHAT, {"messages": MESSAGES, "max_tokens": 2})):
        assert post(address, path, body).json()["model"] == "tiny"
