r"""What every operator is held to: its adjoint, its norm, and data drawn from it."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.operators.base import LinearOperator, Operator, check_fields
from sciLDM.operators.noise import Noise
from sciLDM.operators.observation import Observation
from sciLDM.rng import NoiseSource

__all__ = ["dot_test", "operator_norm", "simulate"]

_TURNS = 4


def dot_test(operator: LinearOperator, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> float:
    r"""Largest of `|<A x, y> - <x, A^T y>| / max(|A x| |y|, |x| |A^T y|)` over pairs of `x` and `y`.

    Rounding alone leaves about 1e-7 in float32 and 1e-16 in float64. Besides two random vectors, `y = A x` and
    `x = A^T y` are tried, and some turns later, where they are nearly singular vectors: with random ones only, a
    slightly wrong factor hides behind an inner product that is small by itself.

    Args:
        operator: Its buffers are cast to `dtype` as it does in use.
        seed: Of the random vectors.
        dtype: Precision of the test.
    """
    source, device = NoiseSource(seed), _device(operator)
    with torch.no_grad():
        x = source.normal([0], operator.in_shape, stream="field", dtype=dtype, device=device)
        y = source.normal([0], operator.out_shape, stream="observation", dtype=dtype, device=device)
        seen, back = operator(x), operator.adjoint(y)
        _check_result(operator, seen, (1, *operator.out_shape), "the operator")
        _check_result(operator, back, (1, *operator.in_shape), "its adjoint")
        errors = [_mismatch(x, seen, y, back), _mismatch(back, operator(back), y, back)]
        for _ in range(_TURNS):
            back = operator.adjoint(seen)
            errors.append(_mismatch(x, seen, seen, back))
            x = back / back.norm().clamp(min=1e-30)
            seen = operator(x)
        return max(errors)


def operator_norm(operator: LinearOperator, *, iterations: int = 50, seed: int = 0) -> float:
    r"""Largest singular value `|A|`, from below, by power iteration on `A^T A`.

    The error after `k` iterations falls as `(s_2 / s_1)^{2k}` with the two largest singular values; 50 give 1 % unless
    these agree to some per cent, in which case either will do.

    Args:
        operator: A linear one; for another use `linearise`.
        iterations: Applications of `A^T A`.
        seed: Of the starting vector.

    Raises:
        ConfigError: Fewer than one iteration.
    """
    if iterations < 1:
        raise ConfigError(f"operator_norm: expected at least one iteration, got {iterations}")
    source = NoiseSource(seed)
    norm = 0.0
    with torch.no_grad():
        x = source.normal([0], operator.in_shape, stream="power", device=_device(operator))
        for _ in range(iterations):
            x = x / torch.linalg.vector_norm(x)
            seen = operator(x)
            norm = float(torch.linalg.vector_norm(seen))
            x = operator.adjoint(seen)
            if not norm > 0:
                break
    return norm


def simulate(
    operator: Operator,
    x: Float[Tensor, "case *field"],
    noise: Noise,
    *,
    source: NoiseSource,
    ids: Sequence[int] | None = None,
    instrument: Operator | None = None,
) -> Observation:
    """Draw observations `y = A(x) + noise`; case `i` depends on `(source, ids[i])` alone.

    Data made by the operator that also inverts them look better than real ones can ("inverse crime", Colton & Kress).
    An `instrument` on a finer grid avoids it.

    Args:
        operator: What the observation is filed under.
        x: True fields, in the data's units; on the grid of `instrument` when there is one.
        noise: Error model; standard deviations are taken at `A(x)`.
        source: Of the errors.
        ids: Identifiers of the cases; 0, 1, ... when None.
        instrument: What makes the data; `operator` when None.

    Raises:
        ShapeMismatch: Fields of another grid, another number of ids than of cases, or an instrument whose observations
            are no observations of `operator`.
    """
    maker = operator if instrument is None else instrument
    if maker.out_shape != operator.out_shape:
        raise ShapeMismatch(
            f"simulate: the instrument gives observations of shape {maker.out_shape}, the operator "
            f"{operator.out_shape}; both must describe the same data"
        )
    check_fields(maker, x)
    ids = range(len(x)) if ids is None else ids
    if len(ids) != len(x):
        raise ShapeMismatch(f"simulate: {len(x)} cases, but {len(ids)} ids")
    with torch.no_grad():
        clean = maker(x)
        errors = source.normal(
            ids, operator.out_shape, stream="observe", device=clean.device, dtype=clean.dtype
        )
        return Observation(clean + noise.std(clean) * errors, operator, noise)


def _mismatch(x: Tensor, seen: Tensor, y: Tensor, back: Tensor) -> float:
    ahead, behind = float((seen * y).sum()), float((x * back).sum())
    size = max(float(seen.norm() * y.norm()), float(x.norm() * back.norm()))
    if not math.isfinite(size):
        return math.inf
    return abs(ahead - behind) / size if size > 0 else 0.0


def _check_result(operator: Operator, value: Tensor, shape: tuple[int, ...], what: str) -> None:
    if tuple(value.shape) != shape:
        raise ShapeMismatch(
            f"{type(operator).__name__}: {what} gives {tuple(value.shape)} for a batch of one, expected {shape}"
        )
    if value.is_complex():
        raise ConfigError(
            f"{type(operator).__name__}: {what} gives complex numbers; observations are real, so end with "
            "`torch.view_as_real`, and begin the adjoint with `torch.view_as_complex`"
        )


def _device(operator: Operator) -> torch.device:
    held = next(iter([*operator.buffers(), *operator.parameters()]), None)
    return torch.device("cpu") if held is None else held.device
