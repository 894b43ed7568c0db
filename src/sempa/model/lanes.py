"""Passes of the model over several rows at the same time, each on threads of its own.

PyTorch runs one operation after another, each on all of the processor's threads. Float32 products share them well; most
bfloat16 products of a packed row run on one, and the others wait. There rows run side by side instead.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from transformers import PreTrainedModel

Item = TypeVar("Item")
Result = TypeVar("Result")


def count_lanes(model: PreTrainedModel, passes: int) -> int:
    """How many of so many passes should run at the same time: 1 where an operation makes use of all threads.

    One after another run, too, models whose rotation of positions follows the longest text that is being read: they
    keep it in the model.
    """
    if model.device.type != "cpu" or model.dtype == torch.float32 or torch.is_autocast_enabled("cpu"):
        return 1
    kinds = str([getattr(module, "rope_type", "") for module in model.modules()])
    return 1 if "dynamic" in kinds or "longrope" in kinds else max(1, min(passes, torch.get_num_threads()))


def lane_threads(lanes: int) -> int:
    """How many threads an operation in one of so many lanes has."""
    return max(1, torch.get_num_threads() // lanes)


def in_lanes(run: Callable[[Item], Result], items: Sequence[Item], lanes: int) -> Iterator[Result]:
    """`run` of each item, in their order; `lanes` at a time, begun in that order, on their share of the threads each.

    Whether gradients are recorded is as where this is called. An exception ends the rest.
    """
    if lanes == 1:
        yield from map(run, items)
        return
    threads = torch.get_num_threads()
    inference, gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def run_alike(item: Item) -> Result:
        with torch.inference_mode(inference), torch.set_grad_enabled(gradients):
            return run(item)

    try:
        with ThreadPoolExecutor(lanes, initializer=torch.set_num_threads, initargs=(lane_threads(lanes),)) as pool:
            yield from pool.map(run_alike, items)
    finally:
        # Each thread has a number of its own; but one that begins takes over the number that was set last.
        torch.set_num_threads(threads)
