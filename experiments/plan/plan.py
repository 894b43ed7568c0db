"""What a training run will take: parameters, memory, FLOPs, tokens and hours on named GPUs, before it is started.

    python experiments/plan/plan.py CONFIG.yaml [key=value ...] [--efficiency 0.4 | --measure]

Parameters and saved activations are counted on a model without storage (PyTorch's meta device) with the blocks, the
adapter and the packed row of the real run. No weights are loaded.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from efficiency import describe_efficiency, measure_efficiency
from shapes import (
    PROMPT_TOKENS,
    RESPONSE_TOKENS,
    SHARED_TOKENS,
    empty_model,
    example_row,
    explain_failures,
    model_config,
)
from transformers import PreTrainedModel

from sempa import SempaError
from sempa.batching.batches import rounded_up
from sempa.cli import Parser
from sempa.config import CAPTIONS, RANKINGS, Config, load_config
from sempa.io.streams import exit_code
from sempa.model.forward import row_states
from sempa.model.lora import adapter_dropout, add_lora, block_linears, lora_parameters
from sempa.training.base_samples import ROW_TOKENS

# Dense bfloat16 FLOP/s and bytes of memory, from the makers' data sheets.
GPUS = {
    "RTX 4090": (165e12, 24e9),
    "A100 80GB": (312e12, 80e9),
    "H100 SXM": (989e12, 80e9),
    "H200": (989e12, 141e9),
}
# Rows of nli_for_simcse.csv, for a plan before the file is there.
_NLI_FILE, _NLI_ROWS = "nli_for_simcse.csv", 275_601
# The longest row that is run to count what it keeps; longer ones keep in proportion.
_MEASURED_TOKENS = 4096
# Of one of a triplet's one-word prompts.
_WORD_TOKENS = 16


@dataclass(frozen=True)
class Plan:
    """Figures of one run; bytes, FLOPs and tokens are of the whole run unless said otherwise.

    `tokens` go through the blocks forward and backward, `head_tokens` of them (responses, and retention's samples)
    through the head as well. `saved_bytes` are the activations that the largest loss keeps for its backward pass, and
    `bound` is the setting that lowers them. `weight_bytes` are the frozen base in its dtype, `adapter_bytes` LoRA
    weights, gradients and AdamW's two moments in float32.
    """

    parameters: int
    adapter_parameters: int
    triplets: int
    steps: int
    tokens: int
    head_tokens: int
    row_tokens: int
    flops: float
    weight_bytes: float
    adapter_bytes: float
    saved_bytes: float
    bound: str

    @property
    def memory(self) -> float:
        """Bytes that must fit at one time."""
        return self.weight_bytes + self.adapter_bytes + self.saved_bytes

    def hours(self, gpu: str, efficiency: float) -> float:
        """Hours on one GPU at a fraction `efficiency` of its dense bfloat16 peak."""
        return self.flops / (GPUS[gpu][0] * efficiency) / 3600


def make_plan(config: Config) -> Plan:
    """Count what a run of `config` takes: its preference, contrast and retention losses, in packed rows.

    FLOPs per token: 2 per weight for a forward pass, 2 for the gradient of its activations, 6 per adapter parameter.
    Preferences add the reference's forward pass, checkpointing one more of the policy. The head runs on response
    tokens and on retention's samples, with one product more for its gradient direction. The base's samples and
    evaluation are not counted.

    Losses run one after another, each with its own backward pass. In bfloat16 on a CPU they run side by side: their
    activations add up there.

    Raises `SempaError` for a model whose config cannot be had or that sempa cannot train, and for a missing file.
    """
    model = empty_model(model_config(config.model), torch.bfloat16, "meta")
    parameters = sum(p.numel() for p in model.parameters())
    blocks = sum(m.weight.numel() for m in block_linears(model).values())
    head = model.get_output_embeddings().weight.numel()
    with torch.device("meta"):
        add_lora(model, config.lora_rank, config.lora_alpha, config.lora_dropout)
    adapter = sum(p.numel() for p in lora_parameters(model).values())
    responses_each = 3 if config.objective in RANKINGS else 2
    answers = responses_each * RESPONSE_TOKENS
    # An answer's last token is predicted and never read.
    own = PROMPT_TOKENS + answers - responses_each
    triplets, rows = _triplets(config), max(1, config.row_tokens // own)
    per_triplet = own + SHARED_TOKENS / rows
    steps = rounded_up(config.epochs, math.ceil(triplets / config.batch_size))
    seen = config.epochs * triplets
    ranked = config.epochs * _ranked(config, triplets)
    # Sentence, best and worst response.
    words = 3 * _WORD_TOKENS if config.contrast else 0
    samples = steps * ROW_TOKENS if config.retention else 0
    preferences, responses = round(ranked * per_triplet), round(ranked * answers)
    tokens = preferences + round(seen * words) + samples
    flops = tokens * (4 * blocks + 6 * adapter) + preferences * 2 * blocks
    flops += tokens * 2 * (blocks + adapter) if config.checkpoint_activations else 0
    flops += 2 * head * 3 * (responses + samples)
    # The preference loss runs row by row; the contrast compares the whole batch.
    row = min(config.row_tokens, round(_ranked(config, config.batch_size) * per_triplet))
    kept = {"row_tokens": max(row, ROW_TOKENS if config.retention else 0), "batch_size": config.batch_size * words}
    bound = max(kept, key=kept.__getitem__)
    with explain_failures(config.model):
        saved = _saved_bytes(model, min(kept[bound], _MEASURED_TOKENS)) * kept[bound]
        if config.checkpoint_activations:
            # The input of every block, and all that one block keeps while it runs again.
            shape = model.config.get_text_config()
            inputs = shape.num_hidden_layers * shape.hidden_size * 2 * kept[bound]
            saved = inputs + saved / shape.num_hidden_layers
    bytes_per_weight = 4 if config.dtype == "float32" else 2
    return Plan(
        parameters=parameters,
        adapter_parameters=adapter,
        triplets=triplets,
        steps=steps,
        tokens=tokens,
        head_tokens=responses + samples,
        row_tokens=config.row_tokens,
        flops=flops,
        weight_bytes=parameters * bytes_per_weight,
        adapter_bytes=adapter * 16,
        saved_bytes=saved * bytes_per_weight / 2,
        bound=bound,
    )


def describe_plan(plan: Plan, efficiency: float) -> str:
    """The plan as lines of text."""
    trained = plan.adapter_parameters / 1e6
    lines = [
        f"parameters        {plan.parameters / 1e9:.3f} B, of which trained {trained:.2f} M (LoRA)",
        f"data              {plan.triplets:,} triplets as long as SNLI's, {plan.steps:,} steps, {plan.tokens:,} tokens "
        f"in rows of {plan.row_tokens:,}, {plan.head_tokens:,} of them through the head",
        f"arithmetic        {plan.flops / 1e15:.4g} PFLOP: policy forward and backward, reference forward",
        f"memory            {plan.memory / 1e9:.1f} GB = base {plan.weight_bytes / 1e9:.1f} + adapter "
        f"{plan.adapter_bytes / 1e9:.2f} + activations {plan.saved_bytes / 1e9:.1f}",
        f"time at {efficiency:.0%} of peak",
    ]
    for name, (_, memory) in GPUS.items():
        fits = "" if plan.memory < 0.9 * memory else f"   does not fit in {memory / 1e9:.0f} GB: lower {plan.bound}"
        lines.append(f"  {name:<16}{_duration(plan.hours(name, efficiency)):>10}{fits}")
    return "\n".join(lines)


def _duration(hours: float) -> str:
    """In the largest unit that leaves a whole number of them."""
    for unit, size in (("h", 1.0), ("min", 60.0)):
        if hours * size >= 1:
            return f"{hours * size:.3g} {unit}"
    return f"{hours * 3600:.3g} s"


def _ranked(config: Config, triplets: int) -> int:
    """How many of an epoch's triplets are ranked, batch by batch."""
    if not config.reads_responses:
        return 0
    whole, rest = divmod(triplets, config.batch_size)
    full, last = (rounded_up(config.preference_fraction, size) for size in (config.batch_size, rest))
    return whole * full + last


def _triplets(config: Config) -> int:
    if config.triplets == CAPTIONS:
        from sempa.data.triplets import caption_triplets

        return len(caption_triplets("train", config.triplet_limit or None))
    if Path(config.triplets).exists():
        from sempa.batching.batches import hold_out
        from sempa.data.triplets import read_triplets

        triplets, _ = read_triplets(Path(config.triplets), combinations=config.combinations)
        train = hold_out(triplets, config.held_out, config.seed)[0]
        train = train[: config.triplet_limit or None]
        return sum(bool(triplet.neutral) for triplet in train) if config.objective in RANKINGS else len(train)
    if Path(config.triplets).name == _NLI_FILE:
        # As `hold_out` does, never more than a fifth.
        return min(_NLI_ROWS - min(config.held_out, _NLI_ROWS // 5), config.triplet_limit or _NLI_ROWS)
    raise SempaError(f"triplets {config.triplets}: no such file; a plan counts its rows")


def _saved_bytes(model: PreTrainedModel, row_tokens: int) -> float:
    """Bytes a token that autograd keeps between forward and backward of a packed row in bfloat16."""
    row = example_row(row_tokens)
    weights = {p.untyped_storage()._cdata for p in model.parameters()}
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            seen[storage._cdata] = storage.nbytes()
        kept.append(tensor)
        return tensor

    kept: list[torch.Tensor] = []
    with adapter_dropout(model), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        row_states(model, row)
    return sum(seen.values()) / len(row.tokens)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the plan."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml", help="flat YAML file of settings")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the file's")
    parser.add_argument(
        "--efficiency",
        type=float,
        default=0.4,
        help="fraction of the GPU's dense bfloat16 peak that training reaches (default %(default)s)",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="measure the efficiency here: a packed row through two blocks of the model's width, random weights",
    )
    arguments = parser.parse_intermixed_args(argv)
    if not 0 < arguments.efficiency <= 1:
        raise SempaError(f"--efficiency: found {arguments.efficiency}, expected a fraction above 0, at most 1")
    config, efficiency = load_config(arguments.config, arguments.overrides), arguments.efficiency
    plan = make_plan(config)
    if arguments.measure:
        measured = measure_efficiency(config)
        efficiency = measured.fraction
        print(describe_efficiency(measured))
    print(describe_plan(plan, efficiency))


if __name__ == "__main__":
    sys.exit(exit_code("plan.py", main))
