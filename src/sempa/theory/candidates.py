"""Random prompts with K + 1 candidate responses each: what the statements about finite K are checked on."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


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
    uniform = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    lengths = 4 + (36 * next(uniform)).floor()
    reference = -lengths * (1 + 3 * next(uniform))
    moved = 8 * torch.randn(shape, generator=generator, dtype=torch.float64)
    beta = 0.02 + 0.48 * float(torch.rand((), generator=generator, dtype=torch.float64))
    return Candidates(reference + moved, reference, lengths, beta)


def all_sizes(generator: torch.Generator, trials: int) -> Iterator[Candidates]:
    """`trials` prompts for each of five K."""
    for negatives in (1, 2, 3, 7, 15):
        yield draw_candidates(generator, trials, negatives)
