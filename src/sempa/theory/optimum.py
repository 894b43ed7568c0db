"""A finite response set: the minimiser of the population loss, and when it is unique."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import combinations, pairwise

import torch
from torch import Tensor

from sempa.losses import plackett_luce_loss
from sempa.theory.statement import UNIT, Claim, Measurement, compare, exceeds, rounding, statement

_RESPONSES = 6
_DRAWS = 4
_PAIRS = tuple(combinations(range(_RESPONSES), 2))


def population_loss(logits: Tensor, reference: Tensor, reward: Tensor, beta: float, sets: Sequence) -> Tensor:
    """E over candidate `sets` and over which member wins under softmax(r*), of the Plackett–Luce top-1 loss; a scalar.

    `logits` `[n]` parametrise the policy log π = log softmax(logits); `reference` `[n]` log π_ref; `reward` `[n]` r*.
    """
    implicit = beta * (logits.log_softmax(0) - reference)
    index = torch.tensor(sets)
    wins = reward[index].softmax(1)
    first = torch.tensor([[k, *(j for j in range(index.shape[1]) if j != k)] for k in range(index.shape[1])])
    # [sets, winner, K + 1] with the winner in front.
    scores = implicit[index][:, first]
    losses = plackett_luce_loss(scores.flatten(0, 1), top=1).view_as(wins)
    return (wins * losses).sum(1).mean()


def minimise(loss: Claim, start: Tensor) -> tuple[Tensor, float, float]:
    """Newton's method with halved steps: the logits found, the gradient's norm there, the smallest curvature.

    Directions of zero curvature (all logits rising together; more when comparisons leave the responses apart) are
    left as they are. The curvature is the smallest eigenvalue of the Hessian on the logits that sum to zero.
    """
    logits = start.clone()
    for _ in range(60):
        hessian = torch.func.hessian(loss)(logits)
        step = torch.linalg.pinv(hessian, rtol=1e-9, hermitian=True) @ torch.func.grad(loss)(logits)
        # Far from the optimum the curvature nearly vanishes; no step is longer than 4.
        step *= min(1.0, 4 / float(step.norm().clamp_min(1e-300)))
        before, size = loss(logits), 1.0
        while loss(logits - size * step) > before and size > UNIT:
            size /= 2
        logits = logits - size * step
        if float(step.norm()) < 1e-14:
            break
    gradient = torch.func.grad(loss)(logits)
    curvature = torch.linalg.eigvalsh(torch.func.hessian(loss)(logits))[1]
    return logits, float(gradient.norm()), float(curvature)


def _problem(generator: torch.Generator) -> tuple[Tensor, Tensor, float]:
    draw = torch.randn(2, _RESPONSES, generator=generator, dtype=torch.float64)
    beta = 0.3 + 0.5 * float(torch.rand((), generator=generator, dtype=torch.float64))
    return draw[0].log_softmax(0), draw[1], beta


def _start(generator: torch.Generator) -> Tensor:
    return 2 * torch.randn(_RESPONSES, generator=generator, dtype=torch.float64)


def _distance(gradient: float, curvature: float) -> float:
    """How far a point may lie from the minimum: twice the gradient left, its rounding included, over the curvature."""
    return 2 * (gradient + rounding(1)) / max(curvature, rounding(1))


@statement(
    name="population-optimum",
    equation="argmin_π E[ℓ] = π_ref e^{r*/β} / Z  on a finite response set, for pairs and for sets of three",
    tolerance="2 (‖gradient left‖ + 64 ε) / smallest curvature of the loss at the point found",
    claim=lambda reference, reward, beta: reference + reward / beta,
    controls={
        "β left out": lambda reference, reward, beta: reference + reward,
        "reference left out": lambda reference, reward, beta: reward / beta,
        "reward 0.1 % off": lambda reference, reward, beta: reference + 1.001 * reward / beta,
    },
)
def population_optimum(optimum: Claim, generator: torch.Generator, trials: int) -> Iterator[Measurement]:
    for size in (2, 3):
        sets = tuple(combinations(range(_RESPONSES), size))
        for _ in range(_DRAWS):
            reference, reward, beta = _problem(generator)
            loss = partial(population_loss, reference=reference, reward=reward, beta=beta, sets=sets)
            logits, gradient, curvature = minimise(loss, _start(generator))
            error = (logits.log_softmax(0) - optimum(reference, reward, beta).log_softmax(0)).abs().max()
            yield Measurement(float(error), _distance(gradient, curvature))


@statement(
    name="optimum-is-unique",
    equation="no other π minimises E[ℓ], if the comparisons connect all responses (here each with the next)",
    tolerance="2 (‖gradient left‖ + 64 ε) / smallest curvature with all comparisons; 64 ε for the losses around it",
    claim=lambda: tuple(pairwise(range(_RESPONSES))),
    controls={
        "comparisons inside two halves only": lambda: ((0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5)),
        "one response never compared": lambda: tuple(combinations(range(_RESPONSES - 1), 2)),
    },
)
def optimum_is_unique(sets: Claim, generator: torch.Generator, trials: int) -> Iterator[Measurement]:
    for _ in range(_DRAWS):
        reference, reward, beta = _problem(generator)
        loss = partial(population_loss, reference=reference, reward=reward, beta=beta, sets=sets())
        ends = [minimise(loss, _start(generator)) for _ in range(3)]
        # The tolerance with all comparisons, so that a flat valley does not widen its own tolerance.
        hessian = torch.func.hessian(partial(loss, sets=_PAIRS))(ends[0][0])
        full = _distance(max(end[1] for end in ends), float(torch.linalg.eigvalsh(hessian)[1]))
        for other in ends[1:]:
            yield Measurement(float((ends[0][0].softmax(0) - other[0].softmax(0)).abs().max()), full)
        optimum = reward / beta + reference
        away = torch.randn(8, _RESPONSES, generator=generator, dtype=torch.float64)
        losses = torch.stack([loss(optimum + shift) for shift in away])
        yield exceeds(loss(optimum).expand(8), losses, 1.0)


@statement(
    name="regularised-reward",
    equation="β log Z − (E_π[r*] − β KL(π‖π_ref)) = β KL(π‖π*),  r* = β log π*/π_ref + β log Z",
    tolerance="64 ε × Σ_y (|r*| + β(|log π| + |log π_ref| + |log π*|))",
    claim=lambda policy, best, beta: beta * _kl(policy, best),
    controls={
        "KL the other way round": lambda policy, best, beta: beta * _kl(best, policy),
        "β left out": lambda policy, best, beta: _kl(policy, best),
    },
)
def regularised_reward(divergence: Claim, generator: torch.Generator, trials: int) -> Iterator[Measurement]:
    for _ in range(trials):
        reference, reward, beta = _problem(generator)
        policy = _start(generator).log_softmax(0)
        log_z = (reference + reward / beta).logsumexp(0)
        best = reference + reward / beta - log_z
        value = (policy.exp() * reward).sum() - beta * (policy.exp() * (policy - reference)).sum()
        condition = float((reward.abs() + beta * (policy.abs() + reference.abs() + best.abs())).sum())
        yield compare(beta * log_z - value, divergence(policy, best, beta), condition)
        # The reward and the optimum's implicit reward differ by β log Z(x), a term of the prompt alone.
        yield compare(reward - beta * (best - reference), (beta * log_z).expand_as(reward), condition)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.exp() * (p - q)).sum()
