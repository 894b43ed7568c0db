"""Finite K: DPO, Bradley–Terry, Plackett–Luce and InfoNCE are one family, in values, gradients and curvature."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import permutations

import torch
from torch import Tensor
from torch.autograd.functional import vhp

from sempa.losses import dpo_loss, infonce_loss, nll_per_token, plackett_luce_loss
from sempa.theory.statement import Claim, Measurement, compare, exceeds, statement, value_and_gradient

_ROUNDING = "64 ε × (2 max β(|log π| + |log π_ref|) + K + 1), times β for each derivative"


@dataclass(frozen=True)
class Candidates:
    """Sentence log-probabilities of K + 1 responses to each of `batch` prompts, the preferred one first.

    `policy`, `reference`, `lengths` are `[batch, K + 1]` float64: nats, nats, tokens; `beta` the inverse temperature.
    """

    policy: Tensor
    reference: Tensor
    lengths: Tensor
    beta: float

    def rewards(self, policy: Tensor) -> Tensor:
        """The implicit rewards r_j = β log π(y_j|x)/π_ref(y_j|x) under a policy, `[batch, K + 1]` nats."""
        return self.beta * (policy - self.reference)

    def condition(self) -> float:
        """How many roundings a loss may be off by: twice the largest β(|log π| + |log π_ref|), plus K + 1.

        Each place of a ranking moves by at most twice what a reward moves, and its sum rounds at most K + 1 times.
        """
        size = self.beta * (self.policy.detach().abs() + self.reference.abs())
        return 2 * float(size.max()) + size.shape[1]


def draw_candidates(generator: torch.Generator, batch: int, negatives: int) -> Candidates:
    """Responses of 4 to 40 tokens at 1 to 4 nats a token; the policy has moved some nats away from the reference."""
    shape = (batch, negatives + 1)
    lengths = 4 + (36 * torch.rand(shape, generator=generator, dtype=torch.float64)).floor()
    reference = -lengths * (1 + 3 * torch.rand(shape, generator=generator, dtype=torch.float64))
    moved = 8 * torch.randn(shape, generator=generator, dtype=torch.float64)
    beta = 0.02 + 0.48 * float(torch.rand((), generator=generator, dtype=torch.float64))
    return Candidates(reference + moved, reference, lengths, beta)


def all_sizes(generator: torch.Generator, trials: int) -> Iterator[Candidates]:
    """`trials` prompts for each of five K."""
    for negatives in (1, 2, 3, 7, 15):
        yield draw_candidates(generator, trials, negatives)


def _derivatives(loss: Claim, drawn: Candidates, direction: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Values `[batch]`, gradient `[batch, K + 1]` and Hessian-vector product of a per-prompt loss in the policy."""
    values, gradient = value_and_gradient(partial(loss, drawn), drawn.policy)
    _, product = vhp(lambda policy: loss(drawn, policy).sum(), drawn.policy, direction)
    return values, gradient, product


def _same_loss(
    first: Claim, second: Claim, drawn: Candidates, generator: torch.Generator, condition: float
) -> Iterator[Measurement]:
    """Compare two losses of candidates and a policy: values, gradients, Hessian-vector products."""
    direction = torch.randn(drawn.policy.shape, generator=generator, dtype=torch.float64)
    scales = (1.0, drawn.beta, drawn.beta**2 * 4 * float(direction.abs().max()))
    derivatives = (_derivatives(loss, drawn, direction) for loss in (first, second))
    for found, expected, scale in zip(*derivatives, scales, strict=True):
        yield compare(found, expected, condition * scale)


def pair_loss(drawn: Candidates, policy: Tensor, rejected: int = 1) -> Tensor:
    """DPO's loss of the preferred response against one other, `[batch]`."""
    reference = drawn.reference
    return dpo_loss(policy[:, 0], policy[:, rejected], reference[:, 0], reference[:, rejected], drawn.beta)[0]


def top1_loss(drawn: Candidates, policy: Tensor, rewards: Claim = Candidates.rewards) -> Tensor:
    """The Plackett–Luce loss of the best candidate alone, `[batch]`."""
    return plackett_luce_loss(rewards(drawn, policy), top=1)


def ranking_loss(drawn: Candidates, policy: Tensor, rewards: Claim = Candidates.rewards) -> Tensor:
    """The Plackett–Luce loss of the whole order, `[batch]`."""
    return plackett_luce_loss(rewards(drawn, policy))


def _quotient_loss(drawn: Candidates, policy: Tensor, rewards: Claim) -> Tensor:
    """−log [e^{r₀}/(e^{r₀} + e^{r₁})], as Bradley and Terry wrote it; the rewards here are far from overflow."""
    powers = rewards(drawn, policy).exp()
    return -torch.log(powers[:, 0] / powers.sum(1))


@statement(
    name="bradley-terry",
    equation="K = 1:  −log σ(r₀ − r₁) = −log [e^{r₀}/(e^{r₀} + e^{r₁})],  r = β log π/π_ref",
    tolerance=_ROUNDING,
    claim=Candidates.rewards,
    controls={
        "reference left out": lambda drawn, policy: drawn.beta * policy,
        "log-probabilities averaged over tokens": lambda drawn, policy: drawn.rewards(policy) / drawn.lengths,
        "τ = β": lambda drawn, policy: drawn.rewards(policy) / drawn.beta**2,
    },
)
def bradley_terry(rewards: Claim, generator: torch.Generator, trials: int) -> Iterator[Measurement]:
    drawn = draw_candidates(generator, trials, 1)
    for loss in (top1_loss, ranking_loss, _quotient_loss):
        yield from _same_loss(partial(loss, rewards=rewards), pair_loss, drawn, generator, drawn.condition())


def _pairwise(drawn: Candidates, policy: Tensor) -> Tensor:
    """`[batch, K]` DPO losses of the preferred response against each other one."""
    return torch.stack([pair_loss(drawn, policy, k) for k in range(1, policy.shape[1])], 1)


@statement(
    name="top1-is-infonce",
    equation="any K:  −log [e^{r₀}/Σ_j e^{r_j}] = InfoNCE(s_j = log π/π_ref, τ = 1/β)",
    tolerance=_ROUNDING,
    claim=lambda drawn, policy: infonce_loss(policy - drawn.reference, 1 / drawn.beta),
    controls={
        "τ = β": lambda drawn, policy: infonce_loss(policy - drawn.reference, drawn.beta),
        "reference left out": lambda drawn, policy: infonce_loss(policy, 1 / drawn.beta),
        "log-probabilities averaged over tokens": lambda drawn, policy: infonce_loss(
            (policy - drawn.reference) / drawn.lengths, 1 / drawn.beta
        ),
        "sum of K pairwise DPO losses": lambda drawn, policy: _pairwise(drawn, policy).sum(1),
    },
)
def top1_is_infonce(claim: Claim, generator: torch.Generator, trials: int) -> Iterator[Measurement]:
    for drawn in all_sizes(generator, trials):
        yield from _same_loss(claim, top1_loss, drawn, generator, drawn.condition())


def _stages(scores: Tensor, temperature: float) -> Tensor:
    return sum(infonce_loss(scores[:, k:], temperature) for k in range(scores.shape[1]))


@statement(
    name="ranking-is-shrinking-infonce",
    equation="−log P(y₀ ≻ y₁ ≻ … ≻ y_K) = Σ_k InfoNCE over {y_k, …, y_K}",
    tolerance=_ROUNDING + ", and K + 1 places",
    claim=lambda drawn, policy: _stages(policy - drawn.reference, 1 / drawn.beta),
    controls={
        "candidates not taken away": lambda drawn, policy: -drawn.rewards(policy).log_softmax(1).sum(1),
        "mean over the places": lambda drawn, policy: _stages(drawn.rewards(policy), 1.0) / policy.shape[1],
        "worst first": lambda drawn, policy: _stages(-drawn.rewards(policy).flip(1), 1.0),
    },
)
def ranking_is_shrinking_infonce(claim: Claim, generator: torch.Generator, trials: int) -> Iterator[Measurement]:
    for drawn in all_sizes(generator, trials):
        yield from _same_loss(claim, ranking_loss, drawn, generator, drawn.condition() * drawn.policy.shape[1])


@statement(
    name="orders-sum-to-one",
    equation="Σ over all (K + 1)! orders of P(order) = 1;  Σ over those led by y₀ = e^{r₀}/Σ_j e^{r_j}",
    tolerance=_ROUNDING,
    claim=lambda rewards: torch.exp(-plackett_luce_loss(rewards)),
    controls={
        "candidates not taken away": lambda rewards: rewards.softmax(1).prod(1),
        "sum of pairwise losses": lambda rewards: torch.exp(
            -torch.nn.functional.softplus(rewards[:, None] - rewards[:, :, None]).triu(1).sum((1, 2))
        ),
    },
)
def orders_sum_to_one(likelihood: Claim, generator: torch.Generator, trials: int) -> Iterator[Measurement]:
    for negatives in (1, 2, 3, 5):
        drawn = draw_candidates(generator, max(1, trials // 8), negatives)
        rewards = drawn.rewards(drawn.policy)
        likelihoods = {order: likelihood(rewards[:, order]) for order in permutations(range(negatives + 1))}
        total = sum(likelihoods.values())
        yield compare(total, torch.ones_like(total), drawn.condition())
        # The orders that begin with the best candidate make up the top-1 probability.
        first = sum(probability for order, probability in likelihoods.items() if order[0] == 0)
        yield compare(first, torch.exp(-plackett_luce_loss(rewards, top=1)), drawn.condition())


@statement(
    name="prompt-terms-cancel",
    equation="ℓ(r + c(x)) = ℓ(r) for any c(x), such as β log Z(x);  Σ_j ∂ℓ/∂r_j = 0",
    tolerance="64 ε × (2 max β(|log π| + |log π_ref|) + 2 max |c| + 2 max length + K + 1)",
    claim=lambda drawn, policy, term: (term, 0.0),
    controls={
        "a term that depends on y: 0.001 per token": lambda drawn, policy, term: ((term + 0.001 * drawn.lengths, 0.0)),
        "each candidate under a prompt of its own": lambda drawn, policy, term: (
            (term + 0.01 * torch.arange(policy.shape[1]), 0.0)
        ),
        "an anchor of 0.01 NLL per token": lambda drawn, policy, term: (
            (term, 0.01 * nll_per_token(policy[:, 0], drawn.lengths[:, 0]))
        ),
    },
)
def prompt_terms_cancel(offset: Claim, generator: torch.Generator, trials: int) -> Iterator[Measurement]:
    for drawn in all_sizes(generator, trials):
        prompt_term = 200 * torch.randn(trials, 1, generator=generator, dtype=torch.float64)
        size = drawn.condition() + 2 * float(prompt_term.abs().max()) + 2 * float(drawn.lengths.max())
        # A ranking of K + 1 has K stages, each with its own difference.
        for loss, stages in ((top1_loss, 1), (ranking_loss, drawn.policy.shape[1])):

            def moved(drawn: Candidates, policy: Tensor, loss: Claim = loss, term: Tensor = prompt_term) -> Tensor:
                extra, added = offset(drawn, policy, term)
                return loss(drawn, policy, lambda *both: Candidates.rewards(*both) + extra) + added

            yield from _same_loss(moved, loss, drawn, generator, size * stages)
            # The direction along which all rewards rise together is flat.
            _, gradient = value_and_gradient(partial(moved, drawn), drawn.policy)
            yield compare(gradient.sum(1), torch.zeros(trials, dtype=torch.float64), size * stages * drawn.beta)


def softmax_weights(rewards: Tensor) -> Tensor:
    weights = rewards.softmax(1)
    weights[:, 0] -= 1
    return weights


def _even_weights(rewards: Tensor) -> Tensor:
    weights = softmax_weights(rewards)
    weights[:, 1:] = -weights[:, :1] / (rewards.shape[1] - 1)
    return weights


@statement(
    name="gradient-is-softmax",
    equation="∂ℓ/∂r_j = e^{r_j}/Σ_i e^{r_i} − 1[j = 0];  K = 1: −σ(−(r₀ − r₁))",
    tolerance=_ROUNDING,
    claim=softmax_weights,
    controls={
        "all negatives pushed alike": _even_weights,
        "weights of a temperature 1 % off": lambda rewards: softmax_weights(1.01 * rewards),
        "sign": lambda rewards: -softmax_weights(rewards),
    },
)
def gradient_is_softmax(weights: Claim, generator: torch.Generator, trials: int) -> Iterator[Measurement]:
    for drawn in all_sizes(generator, trials):
        rewards = drawn.rewards(drawn.policy)
        _, gradient = value_and_gradient(lambda r: plackett_luce_loss(r, top=1), rewards)
        yield compare(gradient, weights(rewards), drawn.condition())
        if rewards.shape[1] == 2:
            _, gradient = value_and_gradient(partial(pair_loss, drawn), drawn.policy)
            yield compare(gradient[:, 0] / drawn.beta, -torch.sigmoid(rewards[:, 1] - rewards[:, 0]), drawn.condition())
            yield compare(gradient / drawn.beta, weights(rewards), drawn.condition())


@statement(
    name="pairs-bracket-top1",
    equation="max_k DPO(y₀, y_k) ≤ −log [e^{r₀}/Σ_j e^{r_j}] ≤ Σ_k DPO(y₀, y_k)",
    tolerance="64 ε × (K + 1)(2 max β(|log π| + |log π_ref|) + K + 1)",
    claim=lambda pairwise: (pairwise.amax(1), pairwise.sum(1)),
    controls={
        "the mean of the pairs as upper bound": lambda pairwise: (pairwise.amax(1), pairwise.mean(1)),
        "the sum of the pairs as lower bound": lambda pairwise: (pairwise.sum(1), pairwise.sum(1)),
    },
)
def pairs_bracket_top1(bounds: Claim, generator: torch.Generator, trials: int) -> Iterator[Measurement]:
    for drawn in all_sizes(generator, trials):
        top1 = plackett_luce_loss(drawn.rewards(drawn.policy), top=1)
        lower, upper = bounds(_pairwise(drawn, drawn.policy))
        yield exceeds(lower, top1, drawn.condition())
        yield exceeds(top1, upper, drawn.condition() * drawn.policy.shape[1])
