"""One thread runs the model: sentences of many requests in one batch, and answers token by token, in turn."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from sempa.embedding.embed import embed_prompts, token_batches
from sempa.embedding.embedder import Embedder
from sempa.embedding.readouts import embedding_width
from sempa.embedding.readouts.prompts import Prompt
from sempa.integrations.server.metrics import Metrics
from sempa.integrations.server.requests import ApiError, ChatRequest
from sempa.model.base import BaseModel
from sempa.model.sampling import end_tokens
from sempa.model.streaming import IncrementalDecoder, stream_tokens

Result = TypeVar("Result")
# A batch waits so many seconds for company. Then clients that have had their answer may come again: for all of the last
# batch's it waits this share of the time that it took.
_PAUSE, _SHARE = 0.004, 0.125
# A batch holds so many sentences and tokens for each of PyTorch's threads: a turn is short however many wait.
_SENTENCES, _TOKENS = 32, 1024


@dataclass(frozen=True)
class Piece:
    """The text that one more token completes, and at the end why it is one: `stop` or `length`."""

    text: str
    finish_reason: str | None


class Engine:
    """The model's time, shared out.

    The thread takes one job after another in the order of their arrival, and nobody has two in line: a batch of
    sentences, then a token of each answer. While there are both, batches and tokens get half of the time each.
    """

    def __init__(self, embedder: Embedder, most_answers: int, metrics: Metrics) -> None:
        self.embedder, self.base, self.most_answers, self.metrics = embedder, embedder.base, most_answers, metrics
        self.width = embedding_width(embedder.readout, self.base.model, embedder.layer)
        self.answers = 0
        self._ends = end_tokens(self.base)
        # Seconds of the last batch, and how many were in it or waited behind it.
        self._spent, self._clients = 0.0, 0
        self._thread = ThreadPoolExecutor(1, "sempa-model")
        self._waiting: deque[tuple[Sequence[Prompt], asyncio.Future[np.ndarray]]] = deque()
        self._gathering: asyncio.Task | None = None

    async def embed(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """Embeddings of a request's prompts: float32 `[n, D]`. A long request lets others in between its rows."""
        vectors = np.empty((len(prompts), self.width), np.float32)
        rows = list(token_batches([len(prompt.tokens) for prompt in prompts], _SENTENCES))
        at_once = torch.get_num_threads()
        for start in range(0, len(rows), at_once):
            places = [place for row in rows[start : start + at_once] for place in row]
            future = asyncio.get_running_loop().create_future()
            self._waiting.append(([prompts[place] for place in places], future))
            if self._gathering is None:
                self._gathering = asyncio.create_task(self._gather())
            vectors[places] = await future
        self.metrics.add("sempa_sentences_total", len(prompts))
        self.metrics.add("sempa_prompt_tokens_total", _tokens(prompts), path="/v1/embeddings")
        return vectors

    async def answer(self, prompt: Sequence[int], asked: ChatRequest) -> AsyncIterator[Piece]:
        """The answer's pieces, one for every token; raises `ApiError` 429 when too many answers grow already."""
        if self.answers >= self.most_answers:
            raise ApiError(429, f"{self.answers} answers are being written; try again later", code="queue_full")
        self.answers += 1
        self.metrics.add("sempa_answers_running")
        try:
            self.metrics.add("sempa_prompt_tokens_total", len(prompt), path="/v1/chat/completions")
            pieces = _pieces(self.base, self._ends, prompt, asked)
            while (piece := await self._turn(next, pieces, None)) is not None:
                self.metrics.add("sempa_generated_tokens_total")
                yield piece
        finally:
            self.answers -= 1
            self.metrics.add("sempa_answers_running", -1)

    def close(self) -> None:
        """Wait for the job that runs."""
        self._thread.shutdown(cancel_futures=True)

    async def _gather(self) -> None:
        try:
            while self._waiting:
                await self._wait_for_company()
                began = time.perf_counter()
                batch = self._next_batch()
                await self._run_batch(batch)
                self._spent, self._clients = time.perf_counter() - began, len(batch) + len(self._waiting)
                while self.answers and time.perf_counter() - began < 2 * self._spent:
                    await asyncio.sleep(_PAUSE)
        finally:
            self._gathering = None

    async def _wait_for_company(self) -> None:
        until, full = time.perf_counter() + _SHARE * self._spent, _TOKENS * torch.get_num_threads()
        while sum(_tokens(prompts) for prompts, _ in self._waiting) < full:
            await asyncio.sleep(_PAUSE)
            if len(self._waiting) >= self._clients or time.perf_counter() > until:
                return

    def _next_batch(self) -> list[tuple[Sequence[Prompt], asyncio.Future]]:
        """What waits, as far as it fits into one turn; who gave up waiting is left out."""
        batch, room = [], _TOKENS * torch.get_num_threads()
        while self._waiting and (not batch or _tokens(self._waiting[0][0]) <= room):
            prompts, future = self._waiting.popleft()
            if not future.done():
                batch.append((prompts, future))
                room -= _tokens(prompts)
        return batch

    async def _run_batch(self, batch: Sequence[tuple[Sequence[Prompt], asyncio.Future]]) -> None:
        """Embed what waited together, and hand everyone their own vectors, or the error that came instead."""
        if not batch:
            return
        everything = [prompt for prompts, _ in batch for prompt in prompts]
        # Rows of a size, so that PyTorch's threads end together.
        size = min(_SENTENCES, -(-len(everything) // torch.get_num_threads()))
        readout, layer = self.embedder.readout, self.embedder.layer
        try:
            vectors = await self._turn(embed_prompts, self.base, everything, size, layer, readout)
        except Exception as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        self.metrics.add("sempa_batches_total")
        begin = 0
        for prompts, future in batch:
            if not future.done():
                future.set_result(vectors[begin : begin + len(prompts)])
            begin += len(prompts)

    async def _turn(self, run: Callable[..., Result], *arguments: object) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, run, *arguments)


def _tokens(prompts: Sequence[Prompt]) -> int:
    return sum(len(prompt.tokens) for prompt in prompts)


def _pieces(base: BaseModel, ends: Sequence[int], prompt: Sequence[int], asked: ChatRequest) -> Iterator[Piece]:
    """The answer up to the first of `stops`; what may be a stop's beginning is held back until it is known."""
    decoder, held = IncrementalDecoder(base.tokenizer), ""
    tokens = stream_tokens(base, prompt, asked.max_tokens, asked.temperature, asked.top_p, asked.seed, ends)
    for count, token in enumerate(tokens, 1):
        held += decoder.push(token)
        finish_reason = "stop" if token in ends else "length" if count == asked.max_tokens else None
        if finish_reason:
            held += decoder.flush()
        found = [place for stop in asked.stops if (place := held.find(stop)) >= 0]
        if found:
            yield Piece(held[: min(found)], "stop")
            return
        certain = len(held) if finish_reason else len(held) - _begun(held, asked.stops)
        yield Piece(held[:certain], finish_reason)
        held = held[certain:]


def _begun(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end of the text are the beginning of a stop."""
    lengths = (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
    return max(lengths, default=0)
