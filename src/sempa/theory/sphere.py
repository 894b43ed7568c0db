"""Many negatives on the sphere: InfoNCE tends to alignment plus uniformity (Wang and Isola 2020, Theorem 1)."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from scipy.special import gammaln, ive, roots_jacobi
from torch import Tensor

from sempa.theory.log_sum import expected_infonce
from sempa.theory.statement import Claim, Measurement, compare, exceeds, rounding, statement

# The least K at which the limit is read off; its double and its fourfold follow.
_FAR = 1024
_POINTS = 12
_GRID = 48
_ROUNDING = "64 ε × (2/τ + log K + 30), the size of the integrals' terms"


@dataclass(frozen=True)
class Setting:
    """Positives and negatives as seen from an anchor on the sphere, in weighted rows.

    `positive` `[rows]` cosines of the positives; `cosines` `[rows, outcomes]` with `probabilities` those of a negative;
    `weights` `[rows]`; `temperature` τ.
    """

    positive: Tensor
    cosines: Tensor
    probabilities: Tensor
    weights: Tensor
    temperature: float

    def excess(self, negatives: int) -> float:
        """E ℓ − log K in nats, for K negatives."""
        scores = (x / self.temperature for x in (self.positive, self.cosines))
        return float(expected_infonce(*scores, self.probabilities, self.weights, negatives)) - math.log(negatives)

    def alignment(self) -> Tensor:
        """−E[x · y⁺]/τ."""
        return -(self.weights * self.positive).sum() / self.temperature

    def uniformity(self) -> Tensor:
        """E_x log E_y e^{x · y/τ}."""
        return (self.weights * self._potential().log()).sum()

    def next_order(self) -> Tensor:
        """c in E ℓ − log K = alignment + uniformity + c/K + O(K⁻²): E[e^{s₀}/μ − Var(e^{s})/(2μ²)], μ = E e^{s}."""
        mean = self._potential()
        second = (self.probabilities * (2 * self.cosines / self.temperature).exp()).sum(1)
        own = (self.positive / self.temperature).exp() / mean
        return (self.weights * (own - (second / mean**2 - 1) / 2)).sum()

    def condition(self, negatives: int) -> float:
        """Size of the terms that `excess` adds up."""
        return 2 / self.temperature + math.log(negatives) + 30

    def _potential(self) -> Tensor:
        return (self.probabilities * (self.cosines / self.temperature).exp()).sum(1)


def uniform_sphere(dimension: int, temperature: float, positive: float) -> Setting:
    """Negatives uniform on the sphere in `dimension` ≥ 3, positives at a fixed cosine, by Gauss–Jacobi quadrature.

    The cosine t to a uniform point has density ∝ (1 − t²)^{(d − 3)/2}; every anchor sees the same.
    """
    nodes, weights = roots_jacobi(96, (dimension - 3) / 2, (dimension - 3) / 2)
    cosines, probabilities = (torch.from_numpy(x)[None] for x in (nodes, weights / weights.sum()))
    one = torch.ones(1, dtype=torch.float64)
    return Setting(positive * one, cosines, probabilities, one, temperature)


def log_potential(dimension: int, temperature: float) -> float:
    """log E_y e^{x · y/τ} for y uniform on the sphere: log[Γ(d/2) (2τ)^{d/2 − 1} I_{d/2 − 1}(1/τ)]."""
    order, largest = dimension / 2 - 1, 1 / temperature
    log_power, log_bessel = order * math.log(2 * temperature), math.log(ive(order, largest))
    return float(gammaln(dimension / 2) + log_power + log_bessel + largest)


def scattered_points(generator: torch.Generator, temperature: float) -> Setting:
    """Points on the sphere with unequal weights; nearer points are drawn as positives more often."""
    points = torch.randn(_POINTS, 3, generator=generator, dtype=torch.float64)
    points /= points.norm(dim=1, keepdim=True)
    weights = torch.rand(_POINTS, generator=generator, dtype=torch.float64).softmax(0)
    cosines = points @ points.T
    joint = weights[:, None] * (4 * cosines).softmax(1)
    seen, drawn = cosines.repeat_interleave(_POINTS, 0), weights.expand(_POINTS**2, -1)
    return Setting(cosines.flatten(), seen, drawn, joint.flatten(), temperature)


def _settings(generator: torch.Generator) -> Iterator[Setting]:
    yield uniform_sphere(3, 0.5, 0.8)
    yield uniform_sphere(16, 0.25, 0.7)
    yield scattered_points(generator, 0.5)


@statement(
    name="alignment-uniformity",
    equation="K → ∞:  E ℓ − log K → −E[x·y⁺]/τ + E_x log E_y e^{x·y/τ}  (alignment + uniformity)",
    tolerance="what Richardson's extrapolation still moves by from K = 2,048 to 4,096, + 3 × " + _ROUNDING,
    claim=lambda setting: setting.alignment() + setting.uniformity(),
    controls={
        "mean similarity in place of log-mean-exp": lambda setting: (
            setting.alignment()
            + (setting.weights * (setting.probabilities * setting.cosines).sum(1)).sum() / setting.temperature
        ),
        "τ left out of the uniformity": lambda setting: (
            setting.alignment() + replace(setting, temperature=1.0).uniformity()
        ),
        "alignment counted twice": lambda setting: 2 * setting.alignment() + setting.uniformity(),
        "limit 0.1 % off": lambda setting: 1.001 * (setting.alignment() + setting.uniformity()),
    },
)
def alignment_uniformity(limit: Claim, generator: torch.Generator, trials: int) -> Iterator[Measurement]:
    for setting in _settings(generator):
        # Twice the value at 2K minus that at K: the 1/K term drops out, a K⁻² term is left.
        values = [setting.excess(k) for k in (_FAR, 2 * _FAR, 4 * _FAR)]
        before, after = (2 * more - fewer for fewer, more in pairwise(values))
        # Each extrapolation weighs rounded values by 2 and 1.
        tolerance = abs(after - before) + 3 * rounding(setting.condition(4 * _FAR))
        yield Measurement(abs(after - float(limit(setting))), tolerance)
    for dimension, temperature in ((3, 0.5), (16, 0.25), (64, 0.1)):
        setting = uniform_sphere(dimension, temperature, 1.0)
        found = torch.tensor(log_potential(dimension, temperature), dtype=torch.float64)
        yield compare(found, limit(setting) - setting.alignment(), setting.condition(1))


@statement(
    name="alignment-uniformity-rate",
    equation="E ℓ − log K − limit = c/K + O(K⁻²),  c = E[e^{s₀}/μ − Var(e^s)/(2μ²)]: faster than O(K^{−1/2})",
    tolerance="the fraction that c/K misses falls ≥ 3× from K = 1,024 to 4,096 (a 1/K law: 4×)",
    claim=lambda setting, negatives: setting.next_order() / negatives,
    controls={
        "rate K^{−1/2}": lambda setting, negatives: setting.next_order() / math.sqrt(_FAR * negatives),
        "c 1 % off": lambda setting, negatives: 1.01 * setting.next_order() / negatives,
    },
)
def alignment_uniformity_rate(deviation: Claim, generator: torch.Generator, trials: int) -> Iterator[Measurement]:
    for setting in _settings(generator):
        limit, missed = float(setting.alignment() + setting.uniformity()), []
        for negatives in (_FAR, 4 * _FAR):
            actual = setting.excess(negatives) - limit
            missed.append(abs(actual - float(deviation(setting, negatives))) / abs(actual))
        # A law of K^{−1/2} would fall twofold.
        yield Measurement(missed[1], missed[0] / 3)


@statement(
    name="uniform-is-most-uniform",
    equation="E_x log E_y e^{x·y/τ} is smallest for the uniform distribution (on a circle of 48 places)",
    tolerance="64 ε × (1/τ + 1)",
    claim=lambda places: places >= 0,
    controls={
        "two opposite points": lambda places: places % (_GRID // 2) == 0,
        "every other place": lambda places: places % 2 == 0,
        "one half of the circle": lambda places: places < _GRID // 2,
    },
)
def uniform_is_most_uniform(best: Claim, generator: torch.Generator, trials: int) -> Iterator[Measurement]:
    angles = torch.arange(_GRID, dtype=torch.float64) * (2 * math.pi / _GRID)
    cosines = torch.cos(angles[:, None] - angles)

    def uniformity(weights: Tensor, temperature: float) -> Tensor:
        return Setting(weights, cosines, weights.expand(_GRID, -1), weights, temperature).uniformity()

    taken = best(torch.arange(_GRID)).double()
    for temperature in (0.1, 0.5, 2.0):
        lowest = uniformity(taken / taken.sum(), temperature)
        for spread in torch.logspace(-6, 0.6, max(8, trials)):
            weights = (spread * torch.randn(_GRID, generator=generator, dtype=torch.float64)).softmax(0)
            yield exceeds(lowest, uniformity(weights, temperature), 1 / temperature + 1)
