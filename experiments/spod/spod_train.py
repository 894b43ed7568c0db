"""Train for sparse codes (SPOD): the package's step with losses of the embedding's sparsity and spread beside its own.

    python experiments/spod/spod_train.py experiments/smollm2_nli.yaml triplets=snli_dev_triplets.csv output=runs/spod

The adapter of the last step is saved as `output/adapter`.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from sempa import SempaError
from sempa.batching.batches import Batch, load_dataset, make_batch, rounded_up, steps_per_epoch
from sempa.batching.packing import pack_sentence_rows
from sempa.batching.prompts import Preference, encode_one_word
from sempa.cli import Parser
from sempa.config import Config, load_config
from sempa.io.files import check_output
from sempa.io.streams import exit_code
from sempa.kernels import TokenDirections, token_directions
from sempa.losses import isotropy_loss, spod_loss, uniformity_loss
from sempa.model.adapter_files import save_adapter
from sempa.model.base import BaseModel, load_base
from sempa.model.forward import row_states
from sempa.model.lora import adapter_dropout, add_lora, lora_parameters
from sempa.model.resolve import portable_name
from sempa.training.base_samples import BaseSample, base_samples
from sempa.training.step import (
    MAX_GRAD_NORM,
    Metrics,
    backward,
    contrast_loss,
    learning_rate,
    make_optimizer,
    preference_loss,
    retention_loss,
)


@dataclass(frozen=True)
class Weights:
    """Weights of the additional losses: sparse codes of `tokens` tokens, uniformity and isotropy."""

    sparse: float = 0.1
    tokens: int = 64
    uniformity: float = 0.0
    isotropy: float = 0.0


def train_spod(config: Config, weights: Weights, base: BaseModel, preferences: list[Preference]) -> list[Metrics]:
    """Train the adapter that `base.model` holds, without checkpoints; returns every step's metrics.

    Raises `SempaError` for codes of more tokens than the vocabulary has.
    """
    model = base.model
    head = model.get_output_embeddings().weight
    if not 1 <= weights.tokens <= len(head):
        raise SempaError(f"tokens: found {weights.tokens}, expected 1 to the vocabulary's {len(head):,}")
    optimizer = make_optimizer(config, model)
    total = rounded_up(config.epochs, steps_per_epoch(config, preferences))
    samples = base_samples(base) if config.retention else []
    directions = token_directions(head)
    torch.manual_seed(config.seed)
    steps = []
    for step in range(total):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, total)
        sample = samples[step % len(samples)] if samples else None
        batch = make_batch(config, preferences, step)
        steps.append(spod_step(config, weights, base, optimizer, directions, batch, sample))
    return steps


def spod_step(
    config: Config,
    weights: Weights,
    base: BaseModel,
    optimizer: torch.optim.Optimizer,
    directions: TokenDirections,
    batch: Batch,
    sample: BaseSample | None,
) -> Metrics:
    """`sempa.training.step.train_step` with two losses more: `sparse_loss` and `spread_loss`."""
    model = base.model
    losses = [partial(preference_loss, config, model, row, batch.ranked) for row in batch.preference_rows]
    if batch.sentence_rows:
        losses.append(partial(contrast_loss, config, model, batch.sentence_rows, batch.text_ids))
    if sample is not None:
        losses.append(partial(retention_loss, config, model, sample))
    if weights.sparse:
        prompts = encode_one_word(base.tokenizer, [preference.sentence for preference in batch.preferences])
        losses.append(partial(sparse_loss, config, weights, base, prompts, directions))
    if weights.uniformity or weights.isotropy:
        losses.append(partial(spread_loss, config, weights, base, [p.prompt for p in batch.preferences]))
    parameters = list(lora_parameters(model).values())
    optimizer.zero_grad()
    try:
        with adapter_dropout(model):
            metrics = backward(model, losses, parameters, in_order=config.lora_dropout > 0)
    except ValueError as error:  # the losses refuse NaN
        raise SempaError(f"{error}; lower learning_rate ({config.learning_rate:g})") from error
    norm = torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM)
    if not norm.isfinite():
        raise SempaError(f"the gradient norm is {norm}; lower learning_rate ({config.learning_rate:g})")
    optimizer.step()
    return metrics


def sparse_loss(
    config: Config,
    weights: Weights,
    base: BaseModel,
    prompts: Sequence[Sequence[int]],
    directions: TokenDirections,
) -> tuple[Tensor, Metrics]:
    """SPOD of the sentences' one-word embeddings: reconstruction error of their codes plus what the codes leave out."""
    reconstruction, rest = spod_loss(last_states(config, base, prompts), directions, weights.tokens)
    loss = weights.sparse * (reconstruction + rest).mean()
    return loss, {"loss": loss.item(), "sparse_loss": loss.item() / weights.sparse}


def spread_loss(
    config: Config, weights: Weights, base: BaseModel, prompts: Sequence[Sequence[int]]
) -> tuple[Tensor, Metrics]:
    """Uniformity (Wang & Isola 2020) and isotropy (Rudman & Eickhoff 2023) of the states that end the prompts.

    Equal prompts count once: nothing could move them apart. Both losses need three states or more.
    """
    states = last_states(config, base, list({tuple(prompt): prompt for prompt in prompts}.values()))
    loss = torch.zeros((), device=states.device)
    if len(states) > 2:
        loss = weights.uniformity * uniformity_loss(states) + weights.isotropy * isotropy_loss(states)
    return loss, {"loss": loss.item(), "spread_loss": loss.item()}


def last_states(config: Config, base: BaseModel, prompts: Sequence[Sequence[int]]) -> Tensor:
    """The last layer's state at the last token of each prompt, `[n, D]`, packed order."""
    rows = pack_sentence_rows(prompts, config.row_tokens)
    return torch.cat([row_states(base.model, row.packed)[row.ends.to(base.model.device)] for row in rows])


def main(argv: Sequence[str] | None = None) -> None:
    """Train and save."""
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml", help="flat YAML file of settings")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the file's")
    parser.add_argument("--sparse", type=float, default=0.1, help="weight of the codes' loss (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="of each code (default %(default)s)")
    parser.add_argument("--uniformity", type=float, default=0.0, help="its weight (default %(default)s)")
    parser.add_argument("--isotropy", type=float, default=0.0, help="its weight (default %(default)s)")
    arguments = parser.parse_intermixed_args(argv)
    weights = Weights(arguments.sparse, arguments.tokens, arguments.uniformity, arguments.isotropy)
    config = load_config(arguments.config, arguments.overrides)
    adapter = Path(config.output) / "adapter"
    if adapter.exists():
        raise SempaError(f"{adapter}: exists already; give another output=…")
    check_output(adapter, folder=True)
    base = load_base(config.model, config.dtype, config.device or None)
    dataset = load_dataset(config, base.tokenizer)
    add_lora(base.model, config.lora_rank, config.lora_alpha, config.lora_dropout, config.seed)
    for number, metrics in enumerate(train_spod(config, weights, base, dataset.train), 1):
        print(f"step {number}", *(f"{name} {value:.4f}" for name, value in metrics.items()))
    save_adapter(base.model, adapter, portable_name(config.model), config.readout)


if __name__ == "__main__":
    sys.exit(exit_code("spod_train.py", main))
