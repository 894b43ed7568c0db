"""The finite-K statements once more, on a language model: true sentence log-probs, gradients of its LoRA adapter."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from sempa.batching.packing import pack_preferences
from sempa.batching.prompts import encode_responses
from sempa.data.triplets import caption_triplets
from sempa.model.base import BaseModel
from sempa.model.logprobs import sequence_logprobs
from sempa.model.lora import adapter_disabled, add_lora, lora_parameters
from sempa.theory import ranking
from sempa.theory.ranking import Candidates, pair_loss, ranking_loss, top1_loss
from sempa.theory.statement import ROUNDINGS, Claim, Measurement, Statement, compare, value_and_gradient

PROMPTS, _TRIPLETS = 2, 4
_GRADIENTS = (
    "values: 64 ε × condition in float64; adapter gradient: 64 ε₃₂ × Σ_j |∂ℓ/∂log π_j| ‖∂log π_j/∂adapter‖ in norm"
)


@dataclass(frozen=True)
class Scored:
    """One prompt's candidates with their log-probabilities still tied to the adapter that made them.

    `drawn` holds the same numbers in float64, detached; `logprobs` `[1, K + 1]` float32 carries the graph.
    """

    drawn: Candidates
    logprobs: Tensor
    adapter: tuple[nn.Parameter, ...]

    @cached_property
    def pulls(self) -> Tensor:
        """The norms of ∂ log π_j / ∂ adapter, `[K + 1]`."""
        unit = torch.eye(self.logprobs.shape[1], dtype=torch.float64)
        return torch.stack([self.adapter_gradient(row[None]).norm() for row in unit])

    def adapter_gradient(self, upstream: Tensor) -> Tensor:
        """The adapter's gradient for ∂ℓ/∂ log π = `upstream` `[1, K + 1]`, as one vector."""
        parts = torch.autograd.grad(self.logprobs, self.adapter, upstream.to(self.logprobs.dtype), retain_graph=True)
        return torch.cat([part.flatten() for part in parts]).double()


def score_candidates(base: BaseModel, seed: int) -> list[Scored]:
    """Score in-batch candidates of `PROMPTS` prompts under a LoRA policy that has left the reference.

    The model's own parameters stay as they are; it gets an adapter with random weights. Every prompt's candidates are
    its entailment, its contradiction, and those of the other triplets.
    """
    add_lora(base.model, rank=8, alpha=32, seed=seed)
    parameters = tuple(lora_parameters(base.model).values())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters[1::2]:
            parameter.copy_(0.01 * torch.randn(parameter.shape, generator=generator))
    triplets = caption_triplets("train", _TRIPLETS, seed)
    return [_score(base, triplets[place:] + triplets[:place], parameters) for place in range(PROMPTS)]


def _score(base: BaseModel, triplets: Sequence, parameters: tuple[nn.Parameter, ...]) -> Scored:
    answers = [text for triplet in triplets for text in (triplet.chosen, triplet.rejected)]
    preference = encode_responses(base.tokenizer, triplets[0].sentence, answers)
    (row,) = pack_preferences([preference], row_tokens=1)
    logprobs = sequence_logprobs(base.model, row)
    with torch.no_grad(), adapter_disabled(base.model):
        reference = sequence_logprobs(base.model, row)
    drawn = Candidates(logprobs.detach().double(), reference.double(), row.lengths.double(), beta=0.1)
    return Scored(drawn, logprobs, parameters)


def model_statements(scored: Sequence[Scored]) -> tuple[Statement, ...]:
    """The statements of finite K on these candidates, with the claims and controls of their abstract forms."""
    checks = (
        (ranking.bradley_terry, lambda rewards, *_: _same_loss(scored, partial(_pair_ranking, rewards), pair_loss)),
        (ranking.top1_is_infonce, lambda claim, *_: _same_loss(scored, claim, top1_loss)),
        (ranking.ranking_is_shrinking_infonce, lambda claim, *_: _same_loss(scored, claim, ranking_loss)),
        (ranking.gradient_is_softmax, lambda weights, *_: _same_weights(scored, weights)),
    )
    return tuple(replace(form, name=f"model-{form.name}", tolerance=_GRADIENTS, check=check) for form, check in checks)


def _same_loss(scored: Sequence[Scored], claimed: Claim, expected: Claim) -> Iterator[Measurement]:
    for prompt in scored:
        drawn = prompt.drawn
        value, upstream = value_and_gradient(partial(claimed, drawn), drawn.policy)
        exact, expected_upstream = value_and_gradient(partial(expected, drawn), drawn.policy)
        yield compare(value, exact, drawn.condition() * drawn.policy.shape[1])
        yield _same_gradient(prompt, upstream, expected_upstream)


def _pair_ranking(rewards: Claim, drawn: Candidates, policy: Tensor) -> Tensor:
    return ranking_loss(drawn, policy, lambda *both: rewards(*both)[:, :2])


def _same_weights(scored: Sequence[Scored], weights: Claim) -> Iterator[Measurement]:
    for prompt in scored:
        drawn = prompt.drawn
        _, upstream = value_and_gradient(partial(top1_loss, drawn), drawn.policy)
        yield _same_gradient(prompt, drawn.beta * weights(drawn.rewards(drawn.policy)), upstream)


def _same_gradient(prompt: Scored, found: Tensor, expected: Tensor) -> Measurement:
    """Compare the adapter's gradients that two gradients in the log-probabilities `[1, K + 1]` lead to."""
    condition = float((expected[0].abs() * prompt.pulls).sum())
    error = (prompt.adapter_gradient(found) - prompt.adapter_gradient(expected)).norm()
    return Measurement(float(error), ROUNDINGS * torch.finfo(torch.float32).eps / 2 * condition)
