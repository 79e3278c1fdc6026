r"""Reconstructions without a learned prior, to print beside ours: `zero_filled`, `cgls`, `sirt`.

All act on a whole `Observation`, row by row: a row's result does not depend on the others. The noise's standard
deviation weighs the values; without a noise model they count alike. Missing values have weight 0. Total variation is in
`sciLDM.evaluate.classical_tv`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sciLDM.errors import ConfigError
from sciLDM.operators import LinearOperator, Observation
from sciLDM.rng import NoiseSource

__all__ = ["Reconstruction", "WhitenedProblem", "cgls", "sirt", "whiten", "zero_filled"]


@final
@dataclass(frozen=True)
class Reconstruction:
    """What a classical method reached.

    Attributes:
        x: One field a case, in the data's units.
        iterations: Iterations that changed each row.
        change: The quantity it stops on, relative, at the end.
    """

    x: Float[Tensor, "case *field"]
    iterations: Int[Tensor, "case"]
    change: Float[Tensor, "case"]


@final
@dataclass(frozen=True)
class WhitenedProblem:
    """`|K x - b|^2` with `K = W A`, `b = W y` and `W = 1/std`, zero where there is no value.

    Attributes:
        apply: `K`.
        adjoint: `K^T`.
        b: Weighed values.
        weights: `W`.
        start: A field of zeros.
    """

    apply: Callable[[Tensor], Tensor]
    adjoint: Callable[[Tensor], Tensor]
    b: Float[Tensor, "case *observation"]
    weights: Float[Tensor, "case *observation"]
    start: Float[Tensor, "case *field"]

    def norm(self, *, iterations: int = 40) -> Float[Tensor, "case"]:
        """`|K|` for each row."""
        return _power_iteration(self.apply, self.adjoint, self.start, iterations)


def whiten(observation: Observation) -> WhitenedProblem:
    """The least-squares problem of an observation. Zero noise is replaced by 1e-4 of the values' spread.

    Raises:
        ConfigError: The operator is not linear.
    """
    operator = observation.operator
    if not isinstance(operator, LinearOperator):
        raise ConfigError(
            f"classical reconstructions need a LinearOperator, got {type(operator).__name__}; linearise it first"
        )
    y = observation.values.nan_to_num(nan=0.0)
    weights = observation.present.to(y)
    if observation.noise is not None:
        spread = torch.stack([row[~row.isnan()].std(correction=0) for row in observation.values])
        floor = _column(1e-4 * spread.clamp(min=torch.finfo(y.dtype).tiny), y)
        weights = weights / torch.maximum(observation.noise.std(y), floor)
    start = torch.zeros(len(y), *operator.in_shape, dtype=y.dtype, device=y.device)
    return WhitenedProblem(
        lambda x: weights * operator(x),
        lambda r: operator.adjoint(weights * r),
        weights * y,
        weights,
        start,
    )


@torch.no_grad()
def zero_filled(observation: Observation, *, scaled: bool = False) -> Float[Tensor, "case *field"]:
    """`A^T y` with zeros for missing values: the zero-filled image of k-space, the unfiltered back-projection of rays.

    Args:
        observation: Of a linear operator.
        scaled: Multiply by the number for each row that fits the values best; 1 where `A A^T = I`.
    """
    problem = whiten(Observation(observation.values, observation.operator))
    x = problem.adjoint(problem.b)
    if not scaled:
        return x
    fit = problem.apply(x)
    return x * _column(_dot(fit, problem.b) / _dot(fit, fit).clamp(min=torch.finfo(x.dtype).tiny), x)


@torch.no_grad()
def cgls(
    observation: Observation,
    *,
    iterations: int = 100,
    tolerance: float = 1e-5,
    discrepancy: float | None = None,
) -> Reconstruction:
    """Least squares by conjugate gradients on the normal equations, without forming them.

    minimise `|W (A x - y)|^2` from `x = 0` (Björck 1996, algorithm 7.4.1); the limit has the least norm.
    With noisy values stop early: few iterations, or `discrepancy`.

    Args:
        observation: Of a linear operator.
        iterations: At most so many.
        tolerance: A row stops once `|K^T r| <= tolerance |K^T b|`.
        discrepancy: A row also stops once the mean of `(W r)^2` over its values is at most this; 1 is Morozov's
            principle, and needs a noise model.
    """
    problem = whiten(observation)
    x, r = problem.start, problem.b
    s = problem.adjoint(r)
    p, gamma = s, _dot(s, s)
    first = gamma
    count = (problem.weights > 0).flatten(1).sum(dim=1)
    steps = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    for _ in range(iterations):
        active = gamma > tolerance**2 * first
        if discrepancy is not None:
            active = active & (_dot(r, r) > discrepancy * count)
        if not bool(active.any()):
            break
        q = problem.apply(p)
        step = torch.where(active, gamma / _dot(q, q), 0.0)
        x, r = x + _column(step, x) * p, r - _column(step, r) * q
        s = torch.where(_column(active, s), problem.adjoint(r), s)
        last, gamma = gamma, _dot(s, s)
        p = torch.where(_column(active, p), s + _column(gamma / last, p) * p, p)
        steps = steps + active
    return Reconstruction(x, steps, (gamma / first.clamp(min=torch.finfo(x.dtype).tiny)).sqrt())


@torch.no_grad()
def sirt(
    observation: Observation,
    *,
    iterations: int = 100,
    relaxation: float = 1.0,
    bounds: tuple[float, float] | None = None,
) -> Reconstruction:
    """Simultaneous iterative reconstruction, for operators with weights of at least zero.

    `x <- x + relaxation C A^T R (y - A x)`, `R` and `C` the inverse sums over rows and columns of `A`
    (Gregor & Benson 2008, doi:10.1109/TMI.2008.923696). `|y - A x|_R` falls in every iteration.

    Args:
        observation: Of a projection, mean or mask; noise is not used.
        iterations: How many; few leave it smooth.
        relaxation: Between 0 and 2.
        bounds: Least and greatest value of the field, imposed in every iteration.

    Raises:
        ConfigError: The relaxation is out of range, or the operator has negative weights.
    """
    if not 0 < relaxation < 2:
        raise ConfigError(f"relaxation: expected a number between 0 and 2, got {relaxation}")
    problem = whiten(Observation(observation.values, observation.operator))
    rows = problem.apply(torch.ones_like(problem.start))
    columns = problem.adjoint(problem.weights)
    if bool((rows < 0).any()) or bool((columns < 0).any()):
        raise ConfigError(
            f"SIRT needs an operator with weights of at least 0, and {type(observation.operator).__name__} has "
            "negative ones; use cgls"
        )
    row_weight, column_weight = _inverse(rows), relaxation * _inverse(columns)
    x, r = problem.start, problem.b
    norm = _dot(r, row_weight * r).clamp(min=torch.finfo(r.dtype).tiny)
    for _ in range(iterations):
        x = x + column_weight * problem.adjoint(row_weight * r)
        if bounds is not None:
            x = x.clamp(*bounds)
        r = problem.b - problem.apply(x)
    steps = torch.full((len(x),), iterations, device=x.device)
    return Reconstruction(x, steps, (_dot(r, row_weight * r) / norm).sqrt())


def _power_iteration(
    apply: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor], start: Tensor, iterations: int
) -> Tensor:
    # The same start for every row, so that a row's norm does not depend on its place in the batch.
    v = (
        NoiseSource(0)
        .normal([0], tuple(start.shape[1:]), device=start.device, dtype=start.dtype)
        .expand_as(start)
    )
    norm = start.new_zeros(len(start))
    with torch.no_grad():
        for _ in range(iterations):
            v = v / _column(_dot(v, v).sqrt().clamp(min=torch.finfo(v.dtype).tiny), v)
            v = adjoint(apply(v))
            norm = _dot(v, v).sqrt()
    return norm.sqrt()


def _inverse(sums: Tensor) -> Tensor:
    """1/sum; 0 for rays that miss the grid and voxels that no ray meets."""
    seen = sums > 1e-6 * sums.flatten(1).amax(dim=1).reshape(-1, *(1,) * (sums.ndim - 1))
    return torch.where(seen, 1 / torch.where(seen, sums, 1.0), 0.0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).flatten(1).sum(dim=1)


def _column(row: Tensor, like: Tensor) -> Tensor:
    return row.reshape(-1, *(1,) * (like.ndim - 1))
