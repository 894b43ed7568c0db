"""A statement of the theory, the check that measures it, and the wrong variants that the same check must reject."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

# Half the distance between 1 and the next float64: what one rounding costs, relatively.
UNIT = torch.finfo(torch.float64).eps / 2
# Two computations of one quantity, each some roundings deep, may differ by this many units times the condition.
ROUNDINGS = 64.0

Claim = Callable
"""The part of a statement that may be wrong, as a function; its arguments are the check's own."""


@dataclass(frozen=True)
class Measurement:
    """One quantity compared: the largest absolute error found and the largest that the statement allows."""

    error: float
    tolerance: float

    @property
    def holds(self) -> bool:
        """True when the error is within the tolerance; a NaN never is."""
        return self.error <= self.tolerance

    @property
    def ratio(self) -> float:
        """Error in units of the tolerance; infinite for a NaN."""
        return self.error / self.tolerance if math.isfinite(self.error) and self.tolerance > 0 else math.inf


@dataclass(frozen=True)
class Statement:
    """A claim, slightly wrong variants of it (`controls`), and one check for them all."""

    name: str
    equation: str
    tolerance: str
    claim: Claim
    controls: Mapping[str, Claim]
    check: Callable[[Claim, torch.Generator, int], Iterable[Measurement]]


def statement(**parts: object) -> Callable[[Callable], Statement]:
    """Decorate a check: it becomes the statement that has these other parts."""
    return lambda check: Statement(check=check, **parts)


@dataclass(frozen=True)
class Verdict:
    """What the check found: the measurement nearest to failing, and which controls it rejected."""

    statement: Statement
    worst: Measurement
    measurements: int
    controls_rejected: Mapping[str, bool]

    @property
    def has_power(self) -> bool:
        """True when the check rejected every control."""
        return all(self.controls_rejected.values())

    @property
    def passed(self) -> bool:
        """True when the statement holds and every control was rejected."""
        return self.worst.holds and self.has_power

    def as_dict(self) -> dict[str, object]:
        """The verdict for a JSON file."""
        return {
            "name": self.statement.name,
            "equation": self.statement.equation,
            "tolerance_from": self.statement.tolerance,
            "measurements": self.measurements,
            "max_error": self.worst.error,
            "tolerance": self.worst.tolerance,
            "passed": self.passed,
            "control_rejected": self.has_power,
            "controls": dict(self.controls_rejected),
        }


def verify(statement: Statement, seed: int, trials: int) -> Verdict:
    """Check a statement and its controls on the same random draws."""

    def measure(claim: Claim) -> list[Measurement]:
        return list(statement.check(claim, torch.Generator().manual_seed(seed), trials))

    measurements = measure(statement.claim)
    rejected = {what: not all(m.holds for m in measure(wrong)) for what, wrong in statement.controls.items()}
    return Verdict(statement, max(measurements, key=lambda m: m.ratio), len(measurements), rejected)


def value_and_gradient(function: Claim, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A function's values at a point, and the gradient of their sum there."""
    at = at.clone().requires_grad_()
    values = function(at)
    (gradient,) = torch.autograd.grad(values.sum(), at)
    return values.detach(), gradient


def rounding(condition: float) -> float:
    """The tolerance of a quantity that amplifies its inputs' roundings `condition` times: ROUNDINGS · ε · condition."""
    return ROUNDINGS * UNIT * condition


def compare(found: torch.Tensor, expected: torch.Tensor, condition: float) -> Measurement:
    """Largest absolute difference, against the roundings of a quantity of this condition number."""
    return Measurement(float((found.detach() - expected.detach()).abs().max()), rounding(condition))


def exceeds(smaller: torch.Tensor, larger: torch.Tensor, condition: float) -> Measurement:
    """How far `smaller ≤ larger` is violated, against the roundings of a quantity of this condition number."""
    # A NaN stays a NaN.
    excess = (smaller - larger).detach().clamp_min(0).max()
    return Measurement(float(excess), rounding(condition))
