r"""Reconstruction with a total-variation prior, the classical baseline for sparse observations.

    minimise over x   1/2 |(A x - y) / std|^2 + weight TV(x),      TV(x) = sum over voxels of |grad x|

by the primal-dual method of Chambolle & Pock (2011, doi:10.1007/s10851-010-0251-1), one dual variable for the values
and one for the gradient, each with the step its own norm allows (Pock & Chambolle 2011). The primal step `tau` makes
the two terms of the method's bound, `|x|^2 / tau` and `|u|^2 / sigma`, alike for each row, from the sizes reached so
far (as the primal weight of Applegate et al. 2021, arXiv:2106.04756): units do not matter, and there is nothing to tune
but the weight. `tune_tv` picks that on validation cases.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.evaluate.classical import Reconstruction, WhitenedProblem, whiten
from sciLDM.operators import Observation

__all__ = ["TunedTV", "pdhg_tv", "total_variation", "tune_tv", "tv_objective"]

_MARGIN = 1.02  # the norm is estimated from below
_EXTENSIONS = 6
_REBALANCE = frozenset(25 * 2**k for k in range(10))


@final
@dataclass(frozen=True)
class TunedTV:
    """The weight chosen on validation cases.

    Attributes:
        weight: With the least error.
        errors: Root-mean-square error by weight, in the data's units.
    """

    weight: float
    errors: dict[float, float]


def total_variation(x: Float[Tensor, "case channel *grid"]) -> Float[Tensor, "case"]:
    """Isotropic: the sum of gradient lengths, by forward differences, over voxels and channels."""
    return _gradient(x).square().sum(dim=1).sqrt().flatten(1).sum(dim=1)


@torch.no_grad()
def tv_objective(
    observation: Observation, x: Float[Tensor, "case channel *grid"], weight: float | Float[Tensor, "case"]
) -> Float[Tensor, "case"]:
    """What `pdhg_tv` minimises, for each row."""
    problem = whiten(observation)
    r = problem.apply(x) - problem.b
    return 0.5 * r.square().flatten(1).sum(dim=1) + weight * total_variation(x)


@torch.no_grad()
def pdhg_tv(
    observation: Observation,
    weight: float | Float[Tensor, "case"],
    *,
    iterations: int = 2000,
    tolerance: float = 1e-3,
    bounds: tuple[float, float] | None = None,
    x0: Float[Tensor, "case channel *grid"] | None = None,
) -> Reconstruction:
    """Least squares with total variation.

    Args:
        observation: Of a linear operator on fields `(channel, *grid)` of any dimension.
        weight: Of the total variation, per unit of the data; one number or one for each row.
        iterations: At most so many.
        tolerance: A row stops once its primal and dual residual, relative to the terms they are differences of, are
            both below this.
        bounds: Least and greatest value of the field.
        x0: Where to start; zero when None.

    Raises:
        ConfigError: A negative weight, or an operator that is not linear.
    """
    problem = whiten(observation)
    limit = _over(_weight(weight, problem.b), problem.start).unsqueeze(1)
    tiny = torch.finfo(problem.b.dtype).tiny
    norms = ((_MARGIN * problem.norm()).square().clamp(min=tiny), 4.0 * (problem.start.ndim - 2))
    state = _State.at(problem, problem.start if x0 is None else x0.to(problem.start))
    tau = _first_step(problem, limit, norms)
    active = torch.ones_like(tau, dtype=torch.bool)
    steps, change = torch.zeros_like(active, dtype=torch.int64), torch.full_like(tau, math.inf)
    for k in range(iterations):
        if k in _REBALANCE:
            tau = _balanced(_norm(state.x), _norm(state.u), _norm(state.q), norms)
        sigma = (0.5 / (tau * norms[0]), 0.5 / (tau * norms[1]))
        new = _iterate(problem, state, tau, sigma, limit, bounds)
        residual = _residual(problem, state, new, tau, sigma)
        state = _State(*(torch.where(_over(active, a), b, a) for a, b in zip(state, new, strict=True)))
        steps, change = steps + active, torch.where(active, residual, change)
        active = active & (change > tolerance)
        if not bool(active.any()):
            break
    return Reconstruction(state.x, steps, change)


class _State(NamedTuple):
    """Field, its image and gradient; the dual of each, and those brought back to fields."""

    x: Tensor
    kx: Tensor
    gx: Tensor
    u: Tensor
    q: Tensor
    ktu: Tensor
    gtq: Tensor

    @staticmethod
    def at(problem: WhitenedProblem, x: Tensor) -> "_State":
        gx, zero = _gradient(x), torch.zeros_like(x)
        return _State(x, problem.apply(x), gx, torch.zeros_like(problem.b), torch.zeros_like(gx), zero, zero)


def _iterate(
    problem: WhitenedProblem,
    old: _State,
    tau: Tensor,
    sigma: tuple[Tensor, Tensor],
    limit: Tensor,
    bounds: tuple[float, float] | None,
) -> _State:
    """Algorithm 1 of Chambolle & Pock with theta = 1."""
    x = old.x - _over(tau, old.x) * (old.ktu + old.gtq)
    if bounds is not None:
        x = x.clamp(*bounds)
    kx, gx = problem.apply(x), _gradient(x)
    s = _over(sigma[0], old.u)
    u = (old.u + s * (2 * kx - old.kx - problem.b)) / (1 + s)
    q = _project(old.q + _over(sigma[1], old.q) * (2 * gx - old.gx), limit)
    return _State(x, kx, gx, u, q, problem.adjoint(u), _divergence(q))


def _first_step(problem: WhitenedProblem, limit: Tensor, norms: tuple[Tensor, float]) -> Tensor:
    """As if `x` were the scaled adjoint, the residual as large as its noise, and half the gradients at their limit."""
    back = problem.adjoint(problem.b)
    fit = _norm(problem.apply(back)).clamp(min=torch.finfo(back.dtype).tiny)
    count = (problem.weights > 0).flatten(1).sum(dim=1)
    residual = torch.minimum(count.sqrt(), _norm(problem.b))
    return _balanced(
        _norm(back) * (_norm(back) / fit).square(), residual, _norm(limit[:, 0].expand_as(back)) / 2, norms
    )


def _balanced(x: Tensor, u: Tensor, q: Tensor, norms: tuple[Tensor, float]) -> Tensor:
    """The step for fields and duals of these sizes; a quarter of what the bound asks for is the faster in practice."""
    dual = (2 * (norms[0] * u.square() + norms[1] * q.square())).sqrt()
    usable = (x > 0) & (dual > 0)
    return torch.where(usable, 0.25 * x / torch.where(usable, dual, 1.0), 1 / (norms[0] + norms[1]).sqrt())


def _residual(
    problem: WhitenedProblem, old: _State, new: _State, tau: Tensor, sigma: tuple[Tensor, Tensor]
) -> Tensor:
    """How far from a saddle point: primal and dual residual (Goldstein et al. 2015, arXiv:1305.0546, eq. 10).

    Each is a share of the terms that must cancel there; the larger counts.
    """
    tiny = torch.finfo(tau.dtype).tiny
    primal = _norm((old.x - new.x) / _over(tau, old.x) - (old.ktu + old.gtq - new.ktu - new.gtq))
    values = _norm((old.u - new.u) / _over(sigma[0], old.u) - (old.kx - new.kx))
    slopes = _norm((old.q - new.q) / _over(sigma[1], old.q) - (old.gx - new.gx))
    # The gradient's block in the units of the values': sigma is 1/norm^2 up to a common factor.
    dual = (values.square() + slopes.square() * (sigma[1] / sigma[0])).sqrt()
    primal = primal / torch.maximum(_norm(new.ktu), _norm(new.gtq)).clamp(min=tiny)
    return torch.maximum(primal, dual / torch.maximum(_norm(new.kx), _norm(problem.b)).clamp(min=tiny))


@torch.no_grad()
def tune_tv(
    observations: Sequence[Observation],
    truths: Sequence[Float[Tensor, "case channel *grid"]],
    weights: Sequence[float],
    *,
    iterations: int = 2000,
    tolerance: float = 1e-3,
    bounds: tuple[float, float] | None = None,
) -> TunedTV:
    """Tries all weights on validation cases; goes on at the ends while the best one is there.

    Args:
        observations: Validation observations; several when operators differ.
        truths: The fields behind each.
        weights: At least two, increasing, with a constant ratio.
        iterations: As for `pdhg_tv`, and so on.
        tolerance: As for `pdhg_tv`.
        bounds: As for `pdhg_tv`.

    Raises:
        ConfigError: Fewer than two weights, or not positive and increasing.
        ShapeMismatch: Truths that do not belong to the observations.
    """
    if len(weights) < 2 or weights[0] <= 0 or any(b <= a for a, b in pairwise(weights)):
        raise ConfigError(f"weights: expected at least two, positive and increasing, got {list(weights)}")
    if [len(o.values) for o in observations] != [len(t) for t in truths]:
        raise ShapeMismatch("tune_tv: each observation needs as many truths as it has rows")
    errors: dict[float, float] = {}

    def score(weight: float) -> float:
        if weight not in errors:
            total, count = 0.0, 0
            for observation, truth in zip(observations, truths, strict=True):
                run = pdhg_tv(observation, weight, iterations=iterations, tolerance=tolerance, bounds=bounds)
                total += float((run.x - truth).square().sum())
                count += truth.numel()
            errors[weight] = math.sqrt(total / count)
        return errors[weight]

    best = min(weights, key=score)
    for _ in range(_EXTENSIONS):
        tried = sorted(errors)
        if best == tried[0]:
            best = min((best, tried[0] ** 2 / tried[1]), key=score)
        elif best == tried[-1]:
            best = min((best, tried[-1] ** 2 / tried[-2]), key=score)
        else:
            break
    return TunedTV(best, dict(sorted(errors.items())))


def _weight(weight: float | Tensor, like: Tensor) -> Tensor:
    value = torch.as_tensor(weight).to(like).expand(len(like))
    if not bool((value >= 0).all()):
        raise ConfigError(f"weight of the total variation: expected at least 0, got {weight!r:.60}")
    return value


def _gradient(x: Tensor) -> Tensor:
    """Forward differences, zero at the far end: `[case, axis, channel, *grid]`."""
    grid = x.ndim - 2
    g = x.new_zeros(len(x), grid, *x.shape[1:])
    for k in range(grid):
        n = x.shape[k + 2]
        g[:, k].narrow(k + 2, 0, n - 1).copy_(x.narrow(k + 2, 1, n - 1) - x.narrow(k + 2, 0, n - 1))
    return g


def _divergence(q: Tensor) -> Tensor:
    """The adjoint of `_gradient`."""
    x = torch.zeros_like(q[:, 0])
    for k in range(q.shape[1]):
        n = x.shape[k + 2]
        inner = q[:, k].narrow(k + 2, 0, n - 1)
        x.narrow(k + 2, 1, n - 1).add_(inner)
        x.narrow(k + 2, 0, n - 1).sub_(inner)
    return x


def _project(q: Tensor, limit: Tensor) -> Tensor:
    """Every voxel's vector shortened to at most `limit`."""
    length = q.square().sum(dim=1, keepdim=True).sqrt()
    return q * (limit / torch.maximum(length, limit).clamp(min=torch.finfo(q.dtype).tiny))


def _norm(a: Tensor) -> Tensor:
    return a.flatten(1).norm(dim=1)


def _over(row: Tensor, like: Tensor) -> Tensor:
    return row.reshape(-1, *(1,) * (like.ndim - 1))
