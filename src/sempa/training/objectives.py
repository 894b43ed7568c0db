"""The terms of the training objective: packed rows to run, and what their hidden states give, a loss and metrics.

preference   rank the responses of a paraphrase prompt (+ NLL anchor, + regularisers of the prompts' own states)
contrast     tell a sentence's paraphrase from the batch's other sentences by their one-word embeddings
retention    stay close to the base model on neutral text
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from sempa.batching.packing import PreferenceRow, SentenceRow
from sempa.config import Config
from sempa.kernels import TokenDirections, token_kl
from sempa.losses import (
    all_pairs_infonce_loss,
    ches_score,
    conservative_dpo_loss,
    dpo_loss,
    embedding_infonce_loss,
    ipo_loss,
    isotropy_loss,
    nll_per_token,
    plackett_luce_loss,
    spod_loss,
    uniformity_loss,
)
from sempa.model.lm_head import head_parts, scale_for_head
from sempa.model.logprobs import sum_by_response, target_logprobs
from sempa.training.base_samples import NeutralText
from sempa.training.processes import World, gather_rows, passes
from sempa.training.terms import Term


def preference_losses(config: Config, policy: Tensor, reference: Tensor) -> Tensor:
    """The configured preference loss of sentence log-probabilities `[n, responses]`, best first: `[n]`.

    With more than two responses the losses of pairs compare the best with the worst.
    """
    pairs = policy[:, 0], policy[:, -1], reference[:, 0], reference[:, -1]
    rewards = config.beta * (policy - reference)
    match config.objective:
        case "dpo":
            return dpo_loss(*pairs, config.beta)[0]
        case "conservative-dpo":
            return conservative_dpo_loss(*pairs, config.beta, config.label_smoothing)[0]
        case "ipo" | "online-ipo" | "ipo-md":
            return ipo_loss(*pairs, config.beta)[0]
        case "plackett-luce":
            return plackett_luce_loss(rewards)
        case "plackett-luce-top1":
            return plackett_luce_loss(rewards, top=1)
        case "none":
            return torch.zeros_like(policy[:, 0])
    raise ValueError(f"unknown objective {config.objective!r}")


def preference_terms(
    config: Config,
    model: PreTrainedModel,
    reference: Callable[[PreferenceRow], Tensor],
    rows: Sequence[PreferenceRow],
    world: World,
    seed: int,
) -> list[Term]:
    """Preference loss and anchor, averaged over the batch, under TRL's names; log-probabilities are in nats.

    `reference` gives a row's log π_ref(y|x), `[examples, responses]`. With several processes each has the terms of its
    share of the rows, and the metrics are shares of the sum too.
    """
    size = sum(len(row.examples) for row in rows)

    def renewed(row: PreferenceRow, states: Tensor) -> Tensor:
        return sum_by_response(target_logprobs(model, states, row), row)

    return [
        Term(
            [(seed + number, row.row)],
            partial(_preference, config, model, row, counted / size),
            partial(reference, row),
            partial(renewed, row),
        )
        for (number, row), counted in passes(list(enumerate(rows)), world)
    ]


def _preference(
    config: Config,
    model: PreTrainedModel,
    row: PreferenceRow,
    weight: float,
    states: list[Tensor],
    known: Tensor,
) -> tuple[Tensor, dict[str, float]]:
    (hidden,) = states
    logprobs = target_logprobs(model, hidden, row)
    policy = sum_by_response(logprobs, row)
    # Without the end of turn: the answers are one sentence each, and would teach the model to stop there.
    answer = row.answer.to(logprobs)
    nll = nll_per_token(*(sum_by_response(values, row)[:, 0] for values in (logprobs * answer, answer)))
    losses = config.preference * preference_losses(config, policy, known) + config.anchor * nll
    loss = losses.sum() + _regularisers(config, hidden[row.prompt_ends.to(hidden.device)])
    rewards = config.beta * (policy.detach() - known)
    margins = rewards[:, 0] - rewards[:, -1]
    values = (
        *(loss, rewards[:, 0], rewards[:, -1], margins > 0, margins, policy[:, 0], policy[:, -1], nll),
        _displacement(hidden.detach(), row),
    )
    sums = [weight * value.detach().cpu().double().sum().item() for value in values]
    return weight * loss, dict(zip(PREFERENCE_METRICS, sums, strict=True))


PREFERENCE_METRICS = (
    *("loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "rewards/margins"),
    *("logps/chosen", "logps/rejected", "nll_loss", "ches"),
)


def _regularisers(config: Config, states: Tensor) -> Tensor:
    """Uniformity and isotropy of the states that end a row's distinct prompts, weighted by how many they are.

    A prompt that comes twice has one state, which nothing can spread; fewer than two or three have nothing to measure.
    """
    loss = states.new_zeros((), dtype=torch.float32)
    if config.uniformity and len(states) > 1:
        loss = loss + config.uniformity * len(states) * uniformity_loss(states)
    if config.isotropy and len(states) > 2:
        loss = loss + config.isotropy * len(states) * isotropy_loss(states)
    return loss


def _displacement(hidden: Tensor, row: PreferenceRow) -> Tensor:
    """The length-normalised CHES of chosen and rejected: how much the push against one falls on the other."""
    device = hidden.device
    states, owner, lengths = hidden[row.source.to(device)], row.owner.to(device), row.lengths.to(device)
    return ches_score(states, owner, lengths, length_normalised=True)[:, -1]


def contrast_term(
    config: Config,
    model: PreTrainedModel,
    rows: Sequence[SentenceRow],
    texts: Tensor,
    tokens: TokenDirections | None,
    world: World,
    seed: int,
) -> Term:
    """InfoNCE on the one-word embeddings of sentences and their responses; with `tokens` a sparse code's loss.

    Either may be there without the other; without contrast `texts` holds the sentences alone. The rows' members count
    all sentences first, then all their best responses, and so on: member `k · size + i` is text k of example i. `texts`
    `[kinds, size]` has equal numbers where two of them are the same text.
    """
    own = passes(list(enumerate(rows)), world)
    packed = [(row, counted) for (_, row), counted in own]
    finish = partial(_contrast, config, model, packed, texts, tokens, world)
    return Term([(seed + number, row.row) for (number, row), _ in own], finish)


def _contrast(
    config: Config,
    model: PreTrainedModel,
    rows: Sequence[tuple[SentenceRow, bool]],
    texts: Tensor,
    tokens: TokenDirections | None,
    world: World,
    states: list[Tensor],
    _before: None,
) -> tuple[Tensor, dict[str, float]]:
    parts, places, (kinds, size) = [], [], texts.shape
    idle: list[Tensor] = []
    for (row, counted), hidden in zip(rows, states, strict=True):
        ends = hidden[row.ends.to(model.device)]
        if counted:
            parts.append(ends)
            places += row.members
        else:
            idle.append(ends)
    width = model.get_output_embeddings().weight.shape[1]
    own = torch.cat(parts) if parts else torch.zeros(0, width, dtype=model.dtype, device=model.device)
    gathered = gather_rows(own, torch.tensor(places, dtype=torch.int64, device=model.device), kinds * size, world)
    sentences, *responses = gathered.view(-1, size, width)
    loss, metrics = gathered.new_zeros((), dtype=torch.float32), {}
    if config.contrast:
        chosen, rejected = responses[0], responses[-1]
        if config.contrast_candidates == "all":
            compared = texts[[0, 1, -1]].flatten().to(model.device)
            losses = all_pairs_infonce_loss(sentences, chosen, rejected, config.temperature, compared)
        else:
            losses = embedding_infonce_loss(sentences, chosen, rejected, config.temperature)
        loss = loss + config.contrast * losses.mean()
        metrics["contrast_loss"] = losses.mean().item()
        with torch.no_grad():
            nearest = F.normalize(sentences.float(), dim=1) @ F.normalize(chosen.float(), dim=1).T
            found = nearest.argmax(1).cpu() == torch.arange(size)
            metrics["contrast_accuracy"] = found.double().mean().item()
    if tokens is not None:
        reconstruction, rest = spod_loss(sentences, tokens, config.sparse_tokens)
        sparse = (reconstruction + rest).mean()
        loss = loss + config.sparse * sparse
        metrics["sparse_loss"] = sparse.item()
    # Every process has seen the whole batch: their shares add up to it once.
    shares = {name: value / world.size for name, value in {"loss": loss.item(), **metrics}.items()}
    # The backward pass of an idle row is one that the other processes need, too.
    return loss + sum(0.0 * ends.float().sum() for ends in idle), shares


def retention_term(
    config: Config, model: PreTrainedModel, neutral: NeutralText, step: int, world: World, seed: int
) -> Term:
    """KL(base ‖ policy) per token of a row of neutral text, in nats.

    The last process runs it; with a sharded base all do, each for its share of the gradient.
    """
    if world.rank != world.size - 1 and not world.sharded:
        return Term([], lambda _states, _before: (torch.zeros(()), {"loss": 0.0, "neutral_kl": 0.0}))
    finish = partial(_retention, config, model, world)
    return Term([(seed, neutral.row(step))], finish, partial(neutral.states, step), lambda states: states)


def _retention(
    config: Config, model: PreTrainedModel, world: World, states: list[Tensor], before: Tensor
) -> tuple[Tensor, dict[str, float]]:
    after, before = (scale_for_head(model, hidden) for hidden in (*states, before))
    divergence = token_kl(after, before, **head_parts(model)).mean() / (world.size if world.sharded else 1)
    loss = config.retention * divergence
    return loss, {"loss": loss.item(), "neutral_kl": divergence.item()}
