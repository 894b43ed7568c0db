"""Data-parallel training under torchrun: every process runs its share of a batch's rows, and the gradients are added.

Batches, data order and learning rate are those of one process, so the number of processes changes a run by rounding
alone; a checkpoint does not know it. Only sums and maxima of tensors travel: the adapter's gradients, a few metrics,
and the embeddings that in-batch contrast compares.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Item = TypeVar("Item")


@dataclass(frozen=True)
class World:
    """This process's number, how many there are, and whether each keeps but a share of the base.

    With a sharded base no process can run a pass alone: all make the same number of passes, in the same order.
    """

    rank: int = 0
    size: int = 1
    sharded: bool = False

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    @property
    def evaluates(self) -> bool:
        """Whether this process runs the model to score it: the leading one, and with a sharded base all together."""
        return self.leads or self.sharded


ALONE = World()


def join_world(shard: bool = False) -> World:
    """Join the other processes that torchrun started; alone, there is nothing to join and nothing to `shard`."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return World()
    if not dist.is_initialized():
        if (device := local_device()) is not None:
            torch.cuda.set_device(device)
        # Tensors travel from where they lie: gradients from the device, what is kept on the host from there.
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return World(dist.get_rank(), dist.get_world_size(), shard)


def local_device() -> str | None:
    """The device of this process among those of its machine, where torchrun gave it a number and there are several."""
    rank = os.environ.get("LOCAL_RANK")
    return f"cuda:{rank}" if rank is not None and torch.cuda.is_available() else None


def share(items: Sequence[Item], world: World) -> list[Item]:
    """Every `size`-th item, from `rank` on: rows are sorted by their families' length, so the shares are alike."""
    return list(items[world.rank :: world.size])


def passes(items: Sequence[Item], world: World) -> list[tuple[Item, bool]]:
    """This process's items, each marked true.

    With a sharded base all processes get equally many: what is missing is filled up by the last item, marked false,
    whose pass the others need and whose result counts nothing.
    """
    own = [(item, True) for item in share(items, world)]
    missing = -(-len(items) // world.size) - len(own) if world.sharded else 0
    return own + [(item, False) for item in items[-1:]] * missing


def add_gradients(parameters: Iterable[nn.Parameter], world: World) -> None:
    """Replace each parameter's gradient by the sum over all processes (a missing one counts as zero).

    Where no process has any, there is none afterwards, and an optimiser leaves all as it is.
    """
    if world.size == 1:
        return
    parameters = list(parameters)
    if not any_of(any(p.grad is not None for p in parameters), world, parameters[0].device):
        return
    flat = torch.cat([(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in parameters])
    dist.all_reduce(flat)
    for parameter, grad in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = grad.view_as(parameter)


def add_metrics(metrics: dict[str, float], world: World, device: torch.device) -> dict[str, float]:
    """Metrics summed over all processes, which must have the same names in the same order."""
    if world.size == 1:
        return metrics
    values = torch.tensor(list(metrics.values()), dtype=torch.float64, device=device)
    dist.all_reduce(values)
    return dict(zip(metrics, values.tolist(), strict=True))


def gather_rows(own: Tensor, places: Tensor, count: int, world: World) -> Tensor:
    """All `[count, D]` rows, of which this process computed `own` at `places`; only they carry a gradient here.

    If every process takes the same function of the result, the sum of their gradients is that function's gradient.
    """
    everything = own.new_zeros(count, own.shape[1]).index_copy(0, places, own)
    if world.size == 1:
        return everything
    others = everything.detach().clone()
    dist.all_reduce(others)
    return others.index_copy(0, places, own)


def merge_known(values: Tensor, world: World) -> Tensor:
    """Values of which each process knows some and has NaN for the rest; what nobody knows stays NaN."""
    if world.size == 1:
        return values
    known = values.nan_to_num(-torch.inf)
    dist.all_reduce(known, dist.ReduceOp.MAX)
    return known.masked_fill(known == -torch.inf, torch.nan)


def broadcast_number(value: float, world: World, device: torch.device) -> float:
    """The first process's number, for all."""
    return broadcast_numbers([value], world, device)[0]


def broadcast_numbers(values: Sequence[float], world: World, device: torch.device) -> list[float]:
    """The first process's numbers, for all; each brings as many."""
    if world.size == 1:
        return list(values)
    box = torch.tensor(values, dtype=torch.float64, device=device)
    dist.broadcast(box, 0)
    return box.tolist()


def any_of(flag: bool, world: World, device: torch.device) -> bool:
    """Whether the flag is up in any process."""
    if world.size == 1:
        return flag
    box = torch.tensor([int(flag)], device=device)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return bool(box.item())


def any_sharing(flag: bool, world: World, device: torch.device) -> bool:
    """Whether the flag is up here or, with a sharded base, in any process: none of them can run the model alone."""
    return any_of(flag, world, device) if world.sharded else flag


def wait_for_all(world: World) -> None:
    """Go on when every process has come this far."""
    if world.size > 1:
        dist.barrier()
