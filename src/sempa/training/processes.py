"""Data-parallel training under torchrun: each process runs its share of a batch's rows, and the gradients are summed.

Batches, data order and learning rate are those of one process, so the number of processes changes a run by rounding,
noise and dropout masks alone; a checkpoint does not depend on it. Processes exchange the adapter's gradients, a few
metrics, and the embeddings that the contrast compares.
"""

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from sempa.errors import SempaError
from sempa.model.resolve import first_line


def join_processes() -> None:
    """Join the other processes that torchrun started; without torchrun there are none.

    Raises `SempaError` when the environment names other processes but not how to reach them.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" or dist.is_initialized():
        return
    try:
        if (device := local_device()) is not None:
            torch.cuda.set_device(device)
        # Tensors travel from where they are: gradients from the device, the rest from the host.
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    except (ValueError, RuntimeError) as error:
        raise SempaError(f"WORLD_SIZE is set, but {first_line(error)}: start with torchrun, or unset it") from error


def process_count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def process_rank() -> int:
    """This process's number; the first, 0, evaluates, writes files and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_device() -> str | None:
    """This process's CUDA device, by the number that torchrun gave it; None without torchrun or without CUDA."""
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if rank is not None and torch.cuda.is_available() else None


def sum_gradients(parameters: Sequence[Tensor]) -> None:
    """Replace each parameter's gradient by the sum over all processes (a missing one counts as zero)."""
    if process_count() == 1:
        return
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters])
    dist.all_reduce(flat)
    for parameter, grad in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = grad.view_as(parameter)


def sum_metrics(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics summed over all processes; one that a process does not have counts as zero."""
    if process_count() == 1:
        return metrics
    gathered: list[dict[str, float]] = [{}] * process_count()
    dist.all_gather_object(gathered, metrics)
    names = dict.fromkeys(name for own in gathered for name in own)
    return {name: sum(own.get(name, 0.0) for own in gathered) for name in names}


def sum_number(value: float) -> float:
    """The number summed over all processes; also a barrier, since none returns before all have called it."""
    return sum_metrics({"value": value})["value"]


def gather_rows(empty: Tensor, parts: Sequence[Tensor], places: Sequence[int], count: int) -> Tensor:
    """All rows `[count, D]`; this process computed `parts` at `places`, and only these carry a gradient here.

    If every process takes the same function of the result, the sum of their gradients is that function's gradient.
    `empty` `[0, D]` gives the width where a process has no row.
    """
    own = torch.cat([empty, *parts])
    index = torch.tensor(places, dtype=torch.int64, device=own.device)
    everything = own.new_zeros(count, own.shape[1]).index_copy(0, index, own)
    if process_count() == 1:
        return everything
    gathered = everything.detach().clone()
    dist.all_reduce(gathered)
    return gathered.index_copy(0, index, own)
