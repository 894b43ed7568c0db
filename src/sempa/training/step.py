"""One optimiser step: log-probabilities of policy and reference -> losses -> gradient -> AdamW.

preference   rank the responses to a paraphrase prompt, measured against the frozen base (DPO, the paper's objective)
contrast     tell a sentence's paraphrase from the batch's other texts by their embeddings
retention    stay close to the base on samples of its own text
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from sempa.batching.batches import Batch
from sempa.batching.packing import PreferenceRow, SentenceRow
from sempa.config import Config
from sempa.errors import SempaError
from sempa.losses import (
    all_pairs_infonce_loss,
    ches_score,
    conservative_dpo_loss,
    dpo_loss,
    ipo_loss,
    nll_per_token,
    plackett_luce_loss,
)
from sempa.model.forward import row_states
from sempa.model.layers import attention_sum, noisy_embeddings, state_width
from sempa.model.logprobs import kl_from_base, response_token_logprobs, sequence_logprobs, sum_by_response
from sempa.model.lora import adapter_disabled, adapter_dropout, lora_parameters
from sempa.model.threads import parallel_map
from sempa.training.base_samples import BaseSample
from sempa.training.processes import gather_rows, process_count, process_rank, sum_gradients, sum_metrics

Metrics = dict[str, float]
Loss = Callable[[], tuple[Tensor, Metrics]]

MAX_GRAD_NORM = 1.0
# The fraction of the steps in which the learning rate rises.
WARMUP = 0.05
# Conservative DPO: the fraction of labels taken to be flipped.
LABEL_SMOOTHING = 0.1


def train_step(
    config: Config,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    samples: Sequence[BaseSample],
    step: int,
    total: int,
) -> Metrics:
    """Update the adapter once, in `step` (from 0) of `total`; returns its metrics, under TRL's names where TRL has one.

    Raises `SempaError` when the loss or its gradient is not finite; the adapter is as before the step then.
    """
    # Rows are sorted by length, so that all processes get similar ones.
    own = slice(process_rank(), None, process_count())
    losses = [partial(preference_loss, config, model, row, batch.ranked) for row in batch.preference_rows[own]]
    if batch.sentence_rows:
        losses.append(partial(contrast_loss, config, model, batch.sentence_rows[own], batch.text_ids))
    if samples:
        losses.append(partial(retention_loss, config, model, samples[step % len(samples)]))
    # Noise and dropout follow from the step, so that a resumed run draws the same.
    torch.manual_seed((config.seed * 1_000_003 + step) * 3_000 + process_rank())
    parameters = list(lora_parameters(model).values())
    # At the beginning: a step that failed or was interrupted has left a part of its gradient.
    optimizer.zero_grad()
    try:
        with adapter_dropout(model):
            metrics = backward(model, losses, parameters, in_order=config.lora_dropout > 0)
    except ValueError as error:  # the losses refuse NaN
        raise _diverged(config, batch, step, str(error)) from error
    metrics = sum_metrics(metrics)
    sum_gradients(parameters)
    norm = torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM).item()
    if not (math.isfinite(metrics["loss"]) and math.isfinite(norm)):
        found = f"the loss is {metrics['loss']} and the gradient norm {norm}, expected finite numbers"
        raise _diverged(config, batch, step, found)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(config, step, total)
    optimizer.step()
    return {**metrics, "learning_rate": optimizer.param_groups[0]["lr"], "grad_norm": norm}


def make_optimizer(config: Config, model: PreTrainedModel) -> torch.optim.AdamW:
    """AdamW on the adapter's parameters."""
    options = {"lr": config.learning_rate, "betas": (0.9, config.beta2), "weight_decay": config.weight_decay}
    return torch.optim.AdamW(lora_parameters(model).values(), **options)


def backward(model: PreTrainedModel, losses: Sequence[Loss], parameters: Sequence[Tensor], in_order: bool) -> Metrics:
    """Add the gradient of every loss to the parameters' `.grad`; returns the sum of the losses' metrics.

    Losses may run side by side (`parallel_map`); `in_order` if several draw random numbers (noise: the contrast alone).
    """

    def gradient(loss: Loss) -> tuple[Sequence[Tensor], Metrics]:
        value, metrics = loss()
        return torch.autograd.grad(value, parameters, materialize_grads=True) if value.requires_grad else (), metrics

    total: Counter[str] = Counter(loss=0.0)
    for gradients, metrics in map(gradient, losses) if in_order else parallel_map(model, gradient, losses):
        total.update(metrics)
        # In the losses' order, whichever was ready first: equal runs give equal bits.
        for parameter, grad in zip(parameters, gradients):
            parameter.grad = grad if parameter.grad is None else parameter.grad.add_(grad)
    return dict(total)


def preference_loss(config: Config, model: PreTrainedModel, row: PreferenceRow, ranked: int) -> tuple[Tensor, Metrics]:
    """Rank each example's responses, best first: one packed row's part of the mean over the batch's `ranked` examples.

    DPO and its relatives (SemPA § 3.2), times `config.preference`, plus `config.anchor` times the NLL per token of the
    chosen sentence. Losses of pairs compare the best response with the worst. Log-probabilities are in nats.
    """
    # `sequence_logprobs` step by step: CHES needs the states, the anchor the tokens.
    hidden = row_states(model, row.packed)  # [length, D]
    logprobs = response_token_logprobs(model, hidden, row)  # [M]
    policy = sum_by_response(logprobs, row)  # [n, responses]
    with torch.no_grad(), adapter_disabled(model):
        reference = sequence_logprobs(model, row)  # the same pass of the frozen base
    pairs = policy[:, 0], policy[:, -1], reference[:, 0], reference[:, -1]
    rewards = config.beta * (policy - reference)
    match config.objective:
        case "dpo":
            losses, *_ = dpo_loss(*pairs, config.beta)
        case "conservative-dpo":
            losses, *_ = conservative_dpo_loss(*pairs, config.beta, LABEL_SMOOTHING)
        case "ipo":
            losses, *_ = ipo_loss(*pairs, config.beta)
        case "plackett-luce":
            losses = plackett_luce_loss(rewards)
        case "plackett-luce-top1":
            losses = plackett_luce_loss(rewards, top=1)
        case "none":
            losses = torch.zeros_like(policy[:, 0])
    # Without the end of turn: the answers are one sentence each, and would teach the model to stop there.
    answer = row.answer.to(logprobs)
    nll = nll_per_token(sum_by_response(logprobs * answer, row)[:, 0], sum_by_response(answer, row)[:, 0])
    loss = (config.preference * losses + config.anchor * nll).sum() / ranked
    return loss, _preference_metrics(loss, rewards, policy, nll, hidden, row, ranked)


def contrast_loss(
    config: Config, model: PreTrainedModel, rows: Sequence[SentenceRow], text_ids: Tensor
) -> tuple[Tensor, Metrics]:
    """InfoNCE on one-word embeddings: a sentence finds its entailment among the batch's texts.

    After Jiang et al. 2023 (arXiv 2307.16645), § 3.3, in both directions as in GTE (arXiv 2308.03281). A row's
    `members` number the batch's texts: all sentences, then all chosen, then all rejected responses; equal texts share a
    number in `text_ids` `[3, size]`. Each process embeds its own `rows`, and all compare the whole batch.
    """
    summed = config.readout == "attention-sum"
    with noisy_embeddings(model, config.noise):
        if summed:
            embedded = [attention_sum(model, row.packed, row.ends) for row in rows]
        else:
            embedded = [row_states(model, row.packed)[row.ends.to(model.device)] for row in rows]
    members = [member for row in rows for member in row.members]
    empty = torch.empty(0, state_width(model, summed), device=model.device)
    embeddings = gather_rows(empty, embedded, members, text_ids.numel())
    sentences, chosen, rejected = embeddings.view(*text_ids.shape, -1)  # [size, D] each
    text_ids = text_ids.flatten().to(model.device)
    losses = all_pairs_infonce_loss(sentences, chosen, rejected, config.temperature, text_ids)
    loss = config.contrast * losses.mean()
    with torch.no_grad():
        cosines = F.normalize(sentences.float(), dim=1) @ F.normalize(chosen.float(), dim=1).T
        entailments = text_ids[len(cosines) : 2 * len(cosines)]
        correct = (entailments[cosines.argmax(1)] == entailments).cpu()
    metrics = {"loss": loss, "contrast_loss": losses.mean(), "contrast_accuracy": correct.double().mean()}
    # Every process has the metrics of the whole batch; their sum should count it once.
    return loss, {name: value.item() / process_count() for name, value in metrics.items()}


def retention_loss(config: Config, model: PreTrainedModel, sample: BaseSample) -> tuple[Tensor, Metrics]:
    """KL(base ‖ policy) of the next token, mean over a packed row of the base's samples, in nats per token."""
    divergence = kl_from_base(model, row_states(model, sample.packed), sample.hidden).mean()
    loss = config.retention * divergence
    return loss, {"loss": loss.item(), "neutral_kl": divergence.item()}


def learning_rate(config: Config, step: int, total: int) -> float:
    """Linear warm-up over the first 5 % of the steps, then half a cosine to zero; `step` counts from 0."""
    warm = round(WARMUP * total)
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    return config.learning_rate * (1 + math.cos(math.pi * (step - warm) / (total - warm))) / 2


def _preference_metrics(
    loss: Tensor, rewards: Tensor, policy: Tensor, nll: Tensor, hidden: Tensor, row: PreferenceRow, ranked: int
) -> Metrics:
    """A row's part of the batch's means, and of the loss; `ches` indicates likelihood displacement."""
    ches = ches_score(hidden[row.source.to(hidden.device)], row.owner, row.lengths, length_normalised=True)[:, -1]
    values = {
        "rewards/chosen": rewards[:, 0],
        "rewards/rejected": rewards[:, -1],
        "rewards/accuracies": rewards[:, 0] > rewards[:, -1],
        "rewards/margins": rewards[:, 0] - rewards[:, -1],
        "logps/chosen": policy[:, 0],
        "logps/rejected": policy[:, -1],
        "nll_loss": nll,
        "ches": ches,
    }
    # One transfer for all of them: each waits for the device.
    parts = torch.stack([value.detach().float() for value in values.values()]).cpu().double().sum(1) / ranked
    return {"loss": loss.item(), **dict(zip(values, parts.tolist(), strict=True))}


def _diverged(config: Config, batch: Batch, step: int, found: str) -> SempaError:
    lines = sorted(preference.line for preference in batch.preferences)
    return SempaError(
        f"step {step + 1}: {found}; checkpoints are intact: lower learning_rate ({config.learning_rate:g}) or fix the "
        f"data; the batch holds lines {', '.join(map(str, lines))} of {config.triplets}"
    )
