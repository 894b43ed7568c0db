"""One thread runs the model: sentences of many requests in one batch, and answers token by token, in turn."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge
from starlette.requests import ClientDisconnect

from sempa.batching.packing import next_fit
from sempa.embedding.embed import ROW_TOKENS, embed_prompts
from sempa.embedding.embedder import Embedder
from sempa.embedding.readouts import embedding_width
from sempa.embedding.readouts.plain import Prompt
from sempa.integrations.server.requests import ChatRequest
from sempa.model.base import BaseModel
from sempa.model.sampling import end_tokens, stream_answer
from sempa.model.threads import passes_at_once

# The text that one more token completes, and why the answer ends here: `stop`, `length`, or None.
Piece = tuple[str, str | None]
# Seconds without a new request after which a batch begins.
_PAUSE = 0.004
# At most so many sentences per row, and tokens per parallel row of a batch: a turn stays short however many wait.
_SENTENCES, _TOKENS = 32, 1024


class Engine:
    """The model's time, shared out.

    The thread takes one job after another in the order of their arrival: a batch of sentences, then a token of each
    answer. While there are both, batches and tokens get half of the time each.
    """

    def __init__(self, embedder: Embedder, registry: CollectorRegistry) -> None:
        self.embedder, self.base = embedder, embedder.base
        self.width = embedding_width(embedder.readout, self.base.model, embedder.layer)
        self.answers = 0
        self._thread = ThreadPoolExecutor(1, "sempa-model")
        # The batch that requests may still join, and the task that embeds it.
        self._open: tuple[list[Prompt], asyncio.Task[np.ndarray]] | None = None
        self._embedding = asyncio.Lock()
        self._next_batch_at = 0.0
        Gauge("sempa_answers_running", "Answers being written.", registry=registry).set_function(lambda: self.answers)
        self._sentences = Counter("sempa_sentences", "Sentences embedded.", registry=registry)
        self._batches = Counter("sempa_batches", "Batches that they were embedded in.", registry=registry)
        self._prompt_tokens = Counter("sempa_prompt_tokens", "Tokens read, by path.", ["path"], registry=registry)
        self._generated_tokens = Counter("sempa_generated_tokens", "Tokens written.", registry=registry)

    async def embed(self, prompts: Sequence[Prompt], is_gone: Callable[[], Awaitable[bool]]) -> np.ndarray:
        """Float32 embeddings `[n, D]`; others run between rows. Raises `ClientDisconnect` once `is_gone` says so."""
        vectors = np.empty((len(prompts), self.width), np.float32)
        rows = next_fit([len(prompt.tokens) for prompt in prompts], ROW_TOKENS, _SENTENCES)
        at_once = passes_at_once(self.base.model)
        for start in range(0, len(rows), at_once):
            if await is_gone():
                raise ClientDisconnect
            places = [place for row in rows[start : start + at_once] for place in row]
            if self._open is None or _tokens(self._open[0]) >= _TOKENS * at_once:
                batch: list[Prompt] = []
                self._open = batch, asyncio.create_task(self._embed_batch(batch))
            batch, task = self._open
            begin = len(batch)
            batch += [prompts[place] for place in places]
            # A client that hangs up leaves the others their batch.
            vectors[places] = (await asyncio.shield(task))[begin : begin + len(places)]
        self._sentences.inc(len(prompts))
        self._prompt_tokens.labels("/v1/embeddings").inc(_tokens(prompts))
        return vectors

    async def answer(self, prompt: Sequence[int], asked: ChatRequest) -> AsyncIterator[Piece]:
        """A piece for each token of the answer; `asked.max_tokens` must be set."""
        self.answers += 1
        try:
            self._prompt_tokens.labels("/v1/chat/completions").inc(len(prompt))
            pieces = _pieces(self.base, prompt, asked)
            while (piece := await self._turn(next, pieces, None)) is not None:
                self._generated_tokens.inc()
                yield piece
        finally:
            self.answers -= 1

    async def _embed_batch(self, batch: list[Prompt]) -> np.ndarray:
        async with self._embedding:
            size = 0
            while size < len(batch) or (self.answers and time.perf_counter() < self._next_batch_at):
                size = len(batch)
                await asyncio.sleep(_PAUSE)
            if self._open is not None and self._open[0] is batch:
                self._open = None
            # Rows of equal size, so that those side by side end together.
            row = min(_SENTENCES, -(-len(batch) // passes_at_once(self.base.model)))
            began = time.perf_counter()
            vectors = await self._turn(embed_prompts, self.base, batch, row, self.embedder.layer, self.embedder.readout)
            self._next_batch_at = 2 * time.perf_counter() - began
            self._batches.inc()
            return vectors

    async def _turn(self, run: Callable, *arguments: object) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, run, *arguments)


def _tokens(prompts: Sequence[Prompt]) -> int:
    return sum(len(prompt.tokens) for prompt in prompts)


def _pieces(base: BaseModel, prompt: Sequence[int], asked: ChatRequest) -> Iterator[Piece]:
    """The answer up to its first stop; as many characters are held back as may be the beginning of one."""
    held, longest, ends = "", max(map(len, asked.stop), default=1), end_tokens(base)
    tokens = stream_answer(base, prompt, asked.max_tokens, asked.temperature, asked.top_p, asked.seed, ends)
    for count, (token, text) in enumerate(tokens, 1):
        held += text
        found = [place for stop in asked.stop if (place := held.find(stop)) >= 0]
        if found:
            yield held[: min(found)], "stop"
            return
        finish_reason = "stop" if token in ends else "length" if count == asked.max_tokens else None
        certain = len(held) if finish_reason else max(0, len(held) - longest + 1)
        yield held[:certain], finish_reason
        held = held[certain:]
