r"""The last step of every reconstruction: put back what was measured and the autoencoder could not hold.

The truth is taken as `x + e` with `e ~ N(0, C)` the autoencoder's error, so that given the data

    x* = x + C A^T (A C A^T + R)^-1 (y - A x).

With `B = R^(-1/2) A` this is `(B C B^T + I) u = R^(-1/2) (y - A x)`, `x* = x + C B^T u`, solved by conjugate gradients
in observation space until the data are met to a small fraction of their noise. A missing value is a row of zeros in
`B`. A nonlinear operator is linearised about `x`, then about the result (Gauss-Newton).
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sciLDM.errors import ConfigError
from sciLDM.operators import LinearOperator, Operator, linearise
from sciLDM.operators.solve import conjugate_gradient
from sciLDM.posterior.error_model import ErrorCovariance
from sciLDM.rng import NoiseSource

__all__ = ["Corrected", "Correction", "correct", "observed_variance"]

PROBES = 4
"""Probes of the preconditioner; it may be rough."""
_SHRINKAGE, _SINGLE, _FEWEST_DIGITS = 8, 1e-5, 1e-5


@final
@dataclass(frozen=True)
class Correction:
    """How the data step is solved.

    Args:
        tolerance: What may be left of the equation, root mean square, in standard deviations of the noise; a sample
            moves by at most that many of its own deviations, times the root of the number of values. Where float32
            does not hold as many digits (next to no noise), 1e-5 of the right-hand side.
        max_iterations: Applications of the operator and its adjoint for each linearisation.
        linearisations: Gauss-Newton steps for operators that are not linear.
        correlated: Take errors as smooth over the measured distance instead of independent from point to point.
            Better for what lies between the measured points, worse (too wide) for operators that average.

    Raises:
        ConfigError: Out of range.
    """

    tolerance: float = 3e-3
    max_iterations: int = 100
    linearisations: int = 3
    correlated: bool = False

    def __post_init__(self) -> None:
        if not self.tolerance > 0 or self.max_iterations < 1 or self.linearisations < 1:
            raise ConfigError(f"correction: expected a positive tolerance and counts from 1, got {self}")


@final
@dataclass(frozen=True)
class Corrected:
    """A corrected field and how far the solver came.

    Attributes:
        x: The field.
        iterations: Of conjugate gradients, over all linearisations.
        residual: What was left of the equation, in standard deviations of the noise (root mean square).
    """

    x: Float[Tensor, "batch *field"]
    iterations: Int[Tensor, "batch"]
    residual: Float[Tensor, "batch"]


def correct(
    x: Float[Tensor, "batch *field"],
    operator: Operator,
    values: Float[Tensor, "batch *observation"],
    weights: Float[Tensor, "batch *observation"],
    covariance: ErrorCovariance,
    *,
    settings: Correction | None = None,
    variance: Float[Tensor, "batch *observation"] | None = None,
) -> Corrected:
    """`x + C A^T (A C A^T + R)^-1 (y - A x)`, row by row.

    Args:
        x: Decoded fields, in the data's units.
        operator: `A`.
        values: `y`, 0 where missing.
        weights: `1 / std` of the observation errors, 0 where missing.
        covariance: `C`, in the data's units.
        settings: Tolerance and iterations.
        variance: `observed_variance` for the preconditioner, where it is known already.
    """
    settings = settings or Correction()
    steps = 1 if isinstance(operator, LinearOperator) else settings.linearisations
    count = (weights > 0).flatten(1).sum(dim=1).clamp(min=1).to(x)
    if variance is None:
        variance = observed_variance(operator, x, covariance, probes=PROBES)
    diagonal = 1 + variance * weights.square()
    here, iterations = x, torch.zeros(len(x), dtype=torch.int64, device=x.device)
    residual = torch.zeros_like(count)
    for _ in range(steps):
        y_here, forward, adjoint = linearise(operator, here)
        # Gauss-Newton: the residual at `x` as the operator linearised at `here` sees it.
        difference = weights * (values - y_here + forward(here - x) if here is not x else values - y_here)
        size = difference.flatten(1).norm(dim=1)
        wanted = settings.tolerance * (count.sqrt() / size.clamp(min=1e-30)).clamp(max=1.0)
        wanted = wanted.clamp(min=_FEWEST_DIGITS)
        solved = conjugate_gradient(
            lambda u, f=forward, a=adjoint: u + weights * f(covariance(a(weights * u))),
            difference,
            tolerance=wanted,
            max_iterations=settings.max_iterations,
            precondition=lambda r: r / diagonal,
        )
        here = x + covariance(adjoint(weights * solved.x))
        iterations = iterations + solved.iterations
        residual = solved.residual * size / count.sqrt()
    return Corrected(here, iterations, residual)


def observed_variance(
    operator: Operator, x: Float[Tensor, "batch *field"], covariance: ErrorCovariance, *, probes: int = 16
) -> Float[Tensor, "batch *observation"]:
    """Diagonal of `A C A^T`: variance that the autoencoder's error gives each observed value.

    Exact where an observed value depends on one grid point (masks, and errors independent from point to point).
    Elsewhere it is estimated from random signs (Hutchinson 1990), drawn towards the mean over all such values since
    few probes scatter. The probes are the same for every row, so that rows do not depend on their batch.
    """
    _, forward, _ = linearise(operator, x)
    noise, shape = NoiseSource(0).fork("probes"), tuple(x.shape[1:])

    def image(probe: Tensor) -> Tensor:
        return forward(covariance.draw(probe.expand_as(x)))

    squares = torch.zeros(())
    for k in range(probes):
        signs = noise.normal([k], shape, device=x.device, dtype=x.dtype).sign()
        squares = squares.to(x) + image(signs).square()
    # Cauchy-Schwarz: with magnitudes m that differ everywhere, (A m)^2 = (A 1)(A m^2) where one point is seen alone.
    m = 0.5 + noise.uniform([0], shape, stream="magnitudes", device=x.device, dtype=x.dtype)
    one, first, second = (image(p) for p in (torch.ones_like(m), m, m.square()))
    alone = (first.square() - one * second).abs() <= _SINGLE * first.square()
    estimate = squares / probes
    others = (~alone).to(x)
    total = others.flatten(1).sum(dim=1).clamp(min=1)
    mean = ((estimate * others).flatten(1).sum(dim=1) / total).view(-1, *[1] * (estimate.ndim - 1))
    shrunk = (probes * estimate + _SHRINKAGE * mean) / (probes + _SHRINKAGE)
    return torch.where(alone, one.square(), shrunk)
