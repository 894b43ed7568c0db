"""InfoNCE and mutual information, on channels x → y where I(x; y) is known exactly."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sempa.theory.log_sum import expected_infonce
from sempa.theory.statement import Claim, Measurement, exceeds, statement

NEGATIVES = (1, 2, 4, 8, 16, 64, 256, 1024)
_CHANNELS = 3
_ROUNDING = "64 ε × (largest score + log K + 30), the size of the integrals' terms"
_FAR = 65536  # beyond χ², which is in the hundreds for the hardest negatives
_RATE = "64 ε × (largest score + log K + 30); what χ²/(2K) misses falls ≥ 3× from K = 2¹⁸ to 2²⁰, or 5× from 2¹⁶"


@dataclass(frozen=True)
class Channel:
    """A joint distribution `[n, m]` of prompts x and responses y, float64."""

    joint: Tensor

    @property
    def conditional(self) -> Tensor:
        """p(y|x), `[n, m]`."""
        return self.joint / self.joint.sum(1, keepdim=True)

    @property
    def marginal(self) -> Tensor:
        """p(y) for every x, `[n, m]`."""
        return self.joint.sum(0).expand_as(self.joint)

    def divergence(self, proposal: Tensor) -> Tensor:
        """E_x KL(p(y|x) ‖ q(y|x)) in nats; with q the marginal of y it is the mutual information I(x; y)."""
        return (self.joint * self.best_critic(proposal)).sum()

    def best_critic(self, proposal: Tensor) -> Tensor:
        """The log density ratio log p(y|x)/q(y|x), `[n, m]`: no other critic gives a larger bound."""
        return (self.conditional / proposal).log()

    def bound(self, critic: Tensor, proposal: Tensor, negatives: int) -> Tensor:
        """I_K = log(K + 1) − E InfoNCE with scores `critic` `[n, m]` and K negatives from `proposal` `[n, m]`."""
        rows = self.joint.shape[1]
        repeated = (x.repeat_interleave(rows, 0) for x in (critic, proposal))
        loss = expected_infonce(critic.flatten(), *repeated, self.joint.flatten(), negatives)
        return math.log(negatives + 1) - loss


def draw_channel(generator: torch.Generator) -> Channel:
    """A channel with 4 prompts and 5 responses that shares some 0.3 nats."""
    logits = 1.3 * torch.randn(4, 5, generator=generator, dtype=torch.float64)
    return Channel(logits.flatten().softmax(0).view_as(logits))


def hard_negatives(channel: Channel) -> Tensor:
    """A proposal that prefers what does not fit the prompt, q(y|x) ∝ p(y)²/p(y|x), as contradictions do."""
    return ((2 * channel.marginal.log()) - channel.conditional.log()).softmax(1)


def _critics(best: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
    noise = torch.randn(best.shape, generator=generator, dtype=torch.float64)
    return best, 0.5 * best, best + 0.3 * noise, noise


def _condition(critic: Tensor, negatives: int) -> float:
    return float(critic.abs().max()) + math.log(negatives + 1) + 30


@statement(
    name="information-bound",
    equation="I_K = log(K + 1) − E ℓ ≤ min(I(x; y), log(K + 1)),  negatives from the marginal of y, any critic",
    tolerance=_ROUNDING,
    claim=lambda channel: channel.marginal,
    controls={"hard negatives, q(y|x) ∝ p(y)²/p(y|x)": hard_negatives},
)
def information_bound(proposal: Claim, generator: torch.Generator, trials: int) -> Iterator[Measurement]:
    for _ in range(_CHANNELS):
        channel = draw_channel(generator)
        drawn_from = proposal(channel)
        best = channel.best_critic(drawn_from)
        for critic in _critics(best, generator):
            for negatives in NEGATIVES:
                value = channel.bound(critic, drawn_from, negatives)
                condition = _condition(critic, negatives)
                yield exceeds(value, channel.divergence(channel.marginal), condition)
                yield exceeds(value, torch.tensor(math.log(negatives + 1)), condition)
                yield exceeds(value, channel.bound(best, drawn_from, negatives), condition)


@statement(
    name="information-approached",
    equation="critic log p(y|x)/p(y):  I_K rises with K to I(x; y),  I − I_K = χ²/(2K) + O(K⁻²)",
    tolerance=_RATE,
    claim=lambda channel: channel.best_critic(channel.marginal),
    controls={
        "critic 2 % too flat": lambda channel: 0.98 * channel.best_critic(channel.marginal),
        "critic log p(y|x), the marginal forgotten": lambda channel: channel.conditional.log(),
        "critic log p(x, y)/p(y)²": lambda channel: (channel.joint / channel.marginal**2).log(),
    },
)
def information_approached(critic: Claim, generator: torch.Generator, trials: int) -> Iterator[Measurement]:
    for _ in range(_CHANNELS):
        channel = draw_channel(generator)
        scores, proposal = critic(channel), channel.marginal
        values = [channel.bound(scores, proposal, k) for k in NEGATIVES]
        for fewer, more, negatives in zip(values, values[1:], NEGATIVES[1:], strict=False):
            yield exceeds(fewer, more, _condition(scores, negatives))
        yield _falls(channel, scores, proposal, channel.divergence(proposal))


def _falls(channel: Channel, critic: Tensor, proposal: Tensor, limit: Tensor) -> Measurement:
    """limit − I_K = χ²/(2K) + O(K⁻²): whether the fraction that χ²/(2K) misses falls with K as 1/K does."""
    chi2, missed = (channel.joint * channel.conditional / proposal).sum() - 1, []
    for negatives in (_FAR, 4 * _FAR, 16 * _FAR):
        gap = limit - channel.bound(critic, proposal, negatives)
        missed.append(abs(float(gap / (chi2 / (2 * negatives))) - 1))
    # It may change its sign near one K, so two are asked; a K^{−1/2} law would give 4 and 2.
    return Measurement(missed[2], max(missed[0] / 5, missed[1] / 3))


@statement(
    name="information-ceiling",
    equation="noiseless channel, m equal symbols, best critic, I = log m:  log(K + 1) − K/m ≤ I_K ≤ log(K + 1)",
    tolerance=_ROUNDING,
    claim=lambda negatives: math.log(negatives + 1),
    controls={"log K": math.log, "log(K + 2)": lambda negatives: math.log(negatives + 2)},
)
def information_ceiling(ceiling: Claim, generator: torch.Generator, trials: int) -> Iterator[Measurement]:
    for symbols in (64, 4096):
        # Every prompt has one response of its own, so one prompt stands for all of them: I = log m.
        outcomes = torch.tensor([[1 / symbols, 1 - 1 / symbols]], dtype=torch.float64)
        # The ratio is m for the prompt's own response and 0 for any other.
        scores = torch.tensor([[math.log(symbols), -math.inf]], dtype=torch.float64)
        for negatives in NEGATIVES:
            loss = expected_infonce(scores[:, 0], scores, outcomes, torch.ones(1, dtype=torch.float64), negatives)
            value, highest = math.log(negatives + 1) - loss, torch.tensor(ceiling(negatives), dtype=torch.float64)
            condition = math.log(symbols) + math.log(negatives + 1) + 30
            yield exceeds(value, highest, condition)
            # log(K + 1) − I_K = E log(1 + B) ≤ E B, with B ~ Binomial(K, 1/m) chance hits of the own response.
            yield exceeds(highest - negatives / symbols, value, condition)


@statement(
    name="hard-negatives-bound-kl",
    equation="negatives from any q(y|x), any critic:  log(K + 1) − E ℓ ≤ E_x KL(p(y|x) ‖ q(y|x)), approached as K → ∞",
    tolerance=_RATE,
    claim=lambda channel, proposal: channel.divergence(proposal),
    controls={
        "bounded by I(x; y)": lambda channel, proposal: channel.divergence(channel.marginal),
        "KL the other way round": lambda channel, proposal: (
            channel.joint.sum(1, keepdim=True) * proposal * (proposal / channel.conditional).log()
        ).sum(),
    },
)
def hard_negatives_bound_kl(ceiling: Claim, generator: torch.Generator, trials: int) -> Iterator[Measurement]:
    for _ in range(_CHANNELS):
        channel = draw_channel(generator)
        at_random = torch.randn(channel.joint.shape, generator=generator, dtype=torch.float64).softmax(1)
        for proposal in (hard_negatives(channel), at_random):
            best, limit = channel.best_critic(proposal), ceiling(channel, proposal)
            for critic in _critics(best, generator):
                for negatives in NEGATIVES:
                    yield exceeds(channel.bound(critic, proposal, negatives), limit, _condition(critic, negatives))
            yield _falls(channel, best, proposal, limit)
