"""The engine alone: who gets the next turn, and which work is left undone."""

import asyncio
import itertools
import time

import numpy as np
import prometheus_client as prometheus
import pytest
import torch
from serving import EMBED, MESSAGES, SENTENCES, post
from starlette.requests import ClientDisconnect

from sempa.batching.prompts import encode_one_word
from sempa.integrations.server import engine as engines
from sempa.integrations.server.engine import Engine
from sempa.integrations.server.requests import ChatRequest


async def stays():
    """A client that waits for its answer."""
    return False


def test_batches_and_tokens_take_turns(adapted_embedder, monkeypatch):
    """One after another, while both are there."""
    monkeypatch.setattr(engines, "end_tokens", lambda base: [])
    asked = ChatRequest.model_validate({"messages": MESSAGES, "max_tokens": 200, "seed": 0})
    prompts = [engines.Prompt(ids) for ids in encode_one_word(adapted_embedder.base.tokenizer, SENTENCES * 40)]
    kinds = []

    async def run():
        engine = Engine(adapted_embedder, prometheus.CollectorRegistry())
        turn = engine._turn

        async def watched(job, *arguments):
            result = await turn(job, *arguments)
            kinds.append(job.__name__)
            return result

        engine._turn = watched

        async def write():
            return [piece async for piece in engine.answer([5, 9, 200], asked)]

        async def embed():
            for _ in range(4):
                await engine.embed(prompts, stays)

        await asyncio.gather(write(), write(), embed())

    asyncio.run(run())
    batches = [place for place, kind in enumerate(kinds) if kind == "embed_prompts"]
    last_token = len(kinds) - 1 - kinds[::-1].index("next")
    assert sum(place < last_token for place in batches) >= 4, "an answer kept the batches waiting"
    # Between two batches every answer gets a token at least.
    for first, second in itertools.pairwise(batches):
        if second < last_token:
            assert second - first > 2


def test_a_client_that_gave_up_leaves_the_others_their_batch(adapted_embedder):
    first, second = (engines.Prompt(ids) for ids in encode_one_word(adapted_embedder.base.tokenizer, SENTENCES[:2]))

    async def ask():
        engine = Engine(adapted_embedder, prometheus.CollectorRegistry())
        gone, other = (asyncio.create_task(engine.embed([prompt], stays)) for prompt in (first, second))
        await asyncio.sleep(0)
        gone.cancel()
        return await other

    np.testing.assert_allclose(asyncio.run(ask())[0], adapted_embedder.encode(SENTENCES[1]), rtol=1e-4, atol=1e-5)


def test_a_list_whose_client_hung_up_is_not_embedded_to_its_end(adapted_embedder):
    prompts = [engines.Prompt(ids) for ids in encode_one_word(adapted_embedder.base.tokenizer, SENTENCES * 40)]
    asked = []

    async def hangs_up():
        asked.append(True)
        return len(asked) > 2

    async def ask():
        registry = prometheus.CollectorRegistry()
        with pytest.raises(ClientDisconnect):
            await Engine(adapted_embedder, registry).embed(prompts, hangs_up)
        return registry.get_sample_value("sempa_batches_total")

    assert asyncio.run(ask()) == 2


def test_a_batch_is_one_row_where_rows_do_not_run_side_by_side(adapted_embedder, address, monkeypatch):
    sizes = []
    real = engines.embed_prompts

    def counted(base, prompts, row, *rest):
        sizes.append(row)
        return real(base, prompts, row, *rest)

    monkeypatch.setattr(engines, "embed_prompts", counted)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 16)
    assert post(address, EMBED, {"input": [f"Dog {i}." for i in range(20)]}).is_success
    assert sizes == [20]


@pytest.fixture
def batches(monkeypatch):
    """When each batch began, and how many sentences it had; a batch takes a tenth of a second."""
    found = []

    def embed_prompts(_, prompts, *__):
        found.append((time.perf_counter(), len(prompts)))
        time.sleep(0.1)
        return np.zeros((len(prompts), 32), np.float32)

    monkeypatch.setattr(engines, "embed_prompts", embed_prompts)
    return found


def test_a_batch_leaves_an_answer_as_much_time_as_the_last_one_took(adapted_embedder, batches):
    async def ask():
        engine = Engine(adapted_embedder, prometheus.CollectorRegistry())
        engine.answers = 1
        for _ in range(2):
            await engine.embed([engines.Prompt([5, 9])], stays)

    asyncio.run(ask())
    (first, _), (second, _) = batches
    assert second - first >= 0.2


def test_a_full_batch_takes_no_further_sentences(adapted_embedder, batches):
    async def ask():
        engine = Engine(adapted_embedder, prometheus.CollectorRegistry())
        await asyncio.gather(*(engine.embed([engines.Prompt([5] * 400)], stays) for _ in range(9)))

    asyncio.run(ask())
    assert [size for _, size in batches] == [3, 3, 3]
