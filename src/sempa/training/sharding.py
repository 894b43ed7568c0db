"""A base too large for one device: each process keeps its share of every decoder block and gathers a block to run it.

Blocks alone are shared out (FSDP2: Zhao et al. 2023, arXiv 2304.11277): embeddings, final norm and head stay whole in
every process, because losses and samplers use the head's weight by itself; so does the adapter, whose gradients are
added as without sharding, and which a checkpoint holds whole.
"""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from sempa.model.base import hidden_states
from sempa.model.layers import blocks
from sempa.model.lora import lora_parameters


def shard_base(model: PreTrainedModel, device: str | None = None) -> None:
    """Share out the decoder blocks of a model with an adapter, and bring the rest to `device` (by default CUDA's).

    Every process calls it, with the same model on the CPU; block by block it comes to the device, so that no more than
    one whole block is there at a time. From then on each pass is one of all processes together. Raises `SempaError`
    for an architecture whose decoder blocks are not found.
    """
    target = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if target.type == "cuda":
        torch.cuda.set_device(target)
    mesh = init_device_mesh(target.type, (dist.get_world_size(),))
    adapter = set(lora_parameters(model).values())
    for block in blocks(model):
        fully_shard(block, mesh=mesh, ignored_params=adapter)
    whole = {parameter for parameter in model.base_model.parameters() if not isinstance(parameter, DTensor)}
    # The root shares out nothing; it lets the next block be gathered while one is running.
    fully_shard(model.base_model, mesh=mesh, ignored_params=whole)
    model.to(target)
    # The tensors that gathered blocks live in are made in the first pass, and training cannot use any that were made in
    # inference mode, as an evaluation would.
    with torch.no_grad():
        hidden_states(model, torch.zeros(1, 1, dtype=torch.int64, device=target))
