"""Independent passes of one model on several threads of a processor.

PyTorch runs one operation after another, each on all threads. Float32 products use them well; bfloat16 products of a
packed row leave some of them waiting. Passes that run side by side fill the processor instead.
"""

import contextvars
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from transformers import PreTrainedModel

Item = TypeVar("Item")
Result = TypeVar("Result")
_making_a_pool = threading.Lock()


def parallel_map(model: PreTrainedModel, run: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yield `run(item)` for each item, in order; in parallel for a model on a CPU that is not float32.

    Each pass then has its share of the threads. It sees the caller's gradient mode and context variables, so that
    `adapter_disabled` holds inside. The first exception is raised, and passes that have not begun are dropped.
    """
    workers = min(len(items), passes_at_once(model))
    if workers < 2:
        yield from map(run, items)
        return
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def run_as_the_caller(context: contextvars.Context, item: Item) -> Result:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            return context.run(run, item)

    contexts = [contextvars.copy_context() for _ in items]
    with _making_a_pool:
        pool = _pool(workers, torch.get_num_threads())
    yield from pool.map(run_as_the_caller, contexts, items)


def passes_at_once(model: PreTrainedModel) -> int:
    """How many passes `parallel_map` runs side by side."""
    return torch.get_num_threads() if model.device.type == "cpu" and model.dtype != torch.float32 else 1


@functools.lru_cache(maxsize=8)
def _pool(workers: int, threads: int) -> ThreadPoolExecutor:
    """A lasting pool of `workers` threads that divide `threads` compute threads; at most eight pools are kept."""

    def begin() -> None:
        torch.set_num_threads(max(1, threads // workers))
        # Reading the thread count makes it this thread's own.
        torch.get_num_threads()

    pool = ThreadPoolExecutor(workers, "sempa", initializer=begin)
    all_started = threading.Barrier(workers + 1)
    for _ in range(workers):
        pool.submit(all_started.wait)
    all_started.wait()
    # A thread that has not read its count uses the one set last, whichever thread set it.
    torch.set_num_threads(threads)
    return pool


# A forked child computes on one thread: it would wait for ever for the others of PyTorch's own pool.
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
