r"""Conjugate gradients for a batch of systems `M x = b`, each with its own step lengths and its own stop.

`M` is symmetric positive definite and acts on each row of the batch on its own (Hestenes & Stiefel 1952,
doi:10.6028/jres.049.044; preconditioned as in Golub & Van Loan, 4th ed., algorithm 11.5.1). A row that has reached its
residual is frozen, so its result does not depend on what else is in the batch.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sciLDM.errors import ConfigError, ShapeMismatch

__all__ = ["CGResult", "conjugate_gradient"]


@final
@dataclass(frozen=True)
class CGResult:
    """What conjugate gradients reached.

    Attributes:
        x: The solution, shaped as `b`.
        iterations: Applications of `M` that changed each row.
        residual: `|b - M x| / |b|` of each row, as updated on the way; 0 where `b` is 0.
    """

    x: Float[Tensor, "batch *shape"]
    iterations: Int[Tensor, "batch"]
    residual: Float[Tensor, "batch"]


def conjugate_gradient(
    apply: Callable[[Tensor], Tensor],
    b: Float[Tensor, "batch *shape"],
    *,
    x0: Float[Tensor, "batch *shape"] | None = None,
    tolerance: float | Float[Tensor, "batch"] = 1e-3,
    max_iterations: int = 50,
    precondition: Callable[[Tensor], Tensor] | None = None,
) -> CGResult:
    """Solve `M x = b` row by row until `|b - M x| <= tolerance |b|`.

    A row also stops, with the best it has, where `p^T M p` is not positive: rounding has used up its digits, or `M` is
    not positive definite. A row whose `b` is zero gives zero.

    Args:
        apply: `x -> M x` on a batch; linear, and rows must not mix.
        b: Right-hand sides.
        x0: Where to start; zero when None.
        tolerance: Relative residual to stop at, one number or one for each row.
        max_iterations: At most so many applications of `M`, not counting one for `x0`.
        precondition: `r -> P r` with `P` symmetric positive definite and close to the inverse of `M`.

    Raises:
        ConfigError: A negative tolerance or number of iterations.
        ShapeMismatch: `x0` or `apply(x)` is not shaped as `b`.
    """
    stop = _threshold(b, tolerance, max_iterations)
    # Solved for b scaled to 1: squares of small physical quantities must not underflow in float32.
    scale = b.abs().reshape(len(b), math.prod(b.shape[1:])).amax(dim=1)
    empty = scale == 0
    unit = _column(torch.where(empty, 1.0, scale), b)
    b = b / unit
    x = (
        torch.zeros_like(b)
        if x0 is None
        else torch.where(_column(empty, b), 0.0, _shaped(x0, b, "x0") / unit)
    )
    r = b if x0 is None else b - _shaped(apply(x), b, "apply(x)")
    z = r if precondition is None else _shaped(precondition(r), b, "precondition(r)")
    p, rho = z, _dot(r, z)
    target, norm = _dot(b, b).sqrt(), _dot(r, r).sqrt()
    active = ~empty & (norm > stop * target)
    iterations = torch.zeros(len(b), dtype=torch.int64, device=b.device)
    for _ in range(max_iterations):
        if not bool(active.any()):
            break
        q = _shaped(apply(p), b, "apply(x)")
        curvature = _dot(p, q)
        step = rho / curvature
        active = active & (curvature > 0) & torch.isfinite(step)
        moving = _column(active, b)
        # `where` and not a product with 0: whatever a frozen row's direction holds, it must not reach the result.
        x = torch.where(moving, x + _column(step, b) * p, x)
        r = torch.where(moving, r - _column(step, b) * q, r)
        z = r if precondition is None else _shaped(precondition(r), b, "precondition(r)")
        last, rho = rho, _dot(r, z)
        p = torch.where(moving, z + _column(rho / last, b) * p, p)
        iterations = iterations + active
        norm = _dot(r, r).sqrt()
        active = active & (norm > stop * target)
    return CGResult(x * unit, iterations, torch.where(empty, 0.0, norm / target))


def _threshold(b: Tensor, tolerance: float | Tensor, max_iterations: int) -> Tensor:
    stop = torch.as_tensor(tolerance).to(b)
    if bool((stop < 0).any()) or max_iterations < 0:
        raise ConfigError(
            f"conjugate gradients: expected a tolerance and a number of iterations of at least 0, got "
            f"{tolerance!r:.60} and {max_iterations}"
        )
    if stop.ndim and stop.shape != (len(b),):
        raise ShapeMismatch(f"tolerance: expected one number or {len(b)}, got {tuple(stop.shape)}")
    return stop.expand(len(b))


def _shaped(value: Tensor, b: Tensor, name: str) -> Tensor:
    if value.shape != b.shape:
        raise ShapeMismatch(
            f"conjugate gradients: {name} has shape {tuple(value.shape)}, the right-hand side {tuple(b.shape)}; "
            "M must map a batch to a batch of the same shape"
        )
    return value


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).reshape(len(a), math.prod(a.shape[1:])).sum(dim=1)


def _column(row: Tensor, like: Tensor) -> Tensor:
    return row.reshape(-1, *(1,) * (like.ndim - 1))
