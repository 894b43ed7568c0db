"""Plackett–Luce as noisy choice: the order of rewards that Gumbel noise has perturbed."""

import math
from collections.abc import Iterator
from itertools import permutations

import torch
from torch import Tensor

from sempa.losses import plackett_luce_loss
from sempa.theory.statement import Claim, Measurement, statement

# Some frequency is off by more than Hoeffding's bound with less than this probability.
_DOUBT = 1e-9
_SAMPLES = 1_000_000


def _gumbel(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    # −log E of an exponential E has the law of −log(−log u); E is never 0, whereas a uniform u may be.
    return -torch.empty(shape, dtype=torch.float64).exponential_(generator=generator).log()


@statement(
    name="gumbel-choice",
    equation="P(r₀ + g₀ > r₁ + g₁ > …) = Plackett–Luce(r) for independent standard Gumbel g_j; its arg-max: top-1",
    tolerance=f"Hoeffding's bound √(log(2m/δ)/2n) for m frequencies, n = {_SAMPLES:,} draws, δ = {_DOUBT:g}",
    claim=_gumbel,
    controls={
        # Gumbel's is π²/6.
        "normal noise of the same variance": lambda shape, generator: (
            math.pi / math.sqrt(6) * torch.randn(shape, generator=generator, dtype=torch.float64)
        ),
        "noise of scale 1.05": lambda shape, generator: 1.05 * _gumbel(shape, generator),
        "one noise for all candidates but the first": lambda shape, generator: torch.cat(
            [_gumbel((shape[0], 1), generator), _gumbel((shape[0], 1), generator).expand(-1, shape[1] - 1)], 1
        ),
    },
)
def gumbel_choice(noise: Claim, generator: torch.Generator, trials: int) -> Iterator[Measurement]:
    for rewards in ((1.5, 0.0, -0.5), (2.0, 1.0, 0.5, 0.0)):
        scores = torch.tensor(rewards, dtype=torch.float64)
        order = (scores + noise((_SAMPLES, len(rewards)), generator)).argsort(dim=1, descending=True)
        for places in (1, len(rewards)):
            heads = list(permutations(range(len(rewards)), places))
            seen = torch.stack([(order[:, :places] == torch.tensor(head)).all(1).double().mean() for head in heads])
            full = [(*head, *(j for j in range(len(rewards)) if j not in head)) for head in heads]
            expected = torch.exp(-plackett_luce_loss(scores[torch.tensor(full)], top=places))
            error = float((seen - expected).abs().max())
            yield Measurement(error, math.sqrt(math.log(2 * len(heads) / _DOUBT) / (2 * _SAMPLES)))
