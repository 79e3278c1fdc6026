r"""Operators from functions: any differentiable one, a linear one with its adjoint, or physics of another library."""

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.operators.base import LinearOperator, Operator, check_fields, check_observations
from sciLDM.operators.checks import dot_test
from sciLDM.rng import NoiseSource

__all__ = ["FunctionLinear", "FunctionOperator", "from_callables", "from_deepinv"]

Map = Callable[[Tensor], Tensor]


@final
class FunctionOperator(Operator):
    """Any differentiable function of the field, used through its Jacobian (`torch.func.jvp` and `vjp`).

    Args:
        function: `[batch, channel, *grid]` to `[batch, *observation]`, real, row by row.
        in_shape: `(channel, *grid)`.
        family: What calibration is filed under; give each function its own name.
        typical: One field of ordinary values, on which the function is tried; numbers between 0 and 1 when None.

    Raises:
        ConfigError: Complex numbers, or rows of a batch that influence each other.
        ShapeMismatch: No batch comes back.
    """

    def __init__(
        self,
        function: Map,
        in_shape: Sequence[int],
        *,
        family: str = "Function",
        typical: Float[Tensor, "channel *grid"] | None = None,
    ) -> None:
        x = _trial(tuple(in_shape)) if typical is None else _around(typical, tuple(in_shape))
        out_shape = _observation_shape(function, x)
        super().__init__(in_shape, out_shape, family=family)
        self.function = function

    def forward(self, x: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch *observation"]:
        check_fields(self, x)
        return self.function(x)


@final
class FunctionLinear(LinearOperator):
    r"""A linear function and its adjoint; `<A x, y> = <x, A^T y>` is tested here, once.

    Args:
        apply: `x -> A x`, row by row, without noise or offset.
        apply_adjoint: `y -> A^T y`; derived from `apply` by automatic differentiation when None, which is exact, and
            costs about two more applications.
        in_shape: `(channel, *grid)`.
        family: What calibration is filed under.
        tolerance: Largest relative error of the dot test.
        dtype: Precision that the functions work in.
        module: Where their constants live, so that `.to(device)` moves these too.

    Raises:
        ConfigError: The adjoint does not belong to the function, or the function is not linear.
        ShapeMismatch: Shapes that do not belong together.
    """

    def __init__(
        self,
        apply: Map,
        apply_adjoint: Map | None,
        in_shape: Sequence[int],
        *,
        family: str = "FunctionLinear",
        tolerance: float = 1e-4,
        dtype: torch.dtype = torch.float32,
        module: nn.Module | None = None,
    ) -> None:
        out_shape = _observation_shape(apply, _trial(tuple(in_shape)).to(_place(module), dtype))
        super().__init__(in_shape, out_shape, family=family)
        self.module = module
        self._apply_function, self._apply_adjoint = apply, apply_adjoint
        error = dot_test(self, dtype=dtype)
        if not error <= tolerance:
            raise ConfigError(_wrong_adjoint(family, error, tolerance, apply_adjoint is None))

    def forward(self, x: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch *observation"]:
        check_fields(self, x)
        return self._apply_function(x)

    def adjoint(self, y: Float[Tensor, "batch *observation"]) -> Float[Tensor, "batch *field"]:
        check_observations(self, y)
        if self._apply_adjoint is not None:
            return self._apply_adjoint(y)
        return torch.func.vjp(self._apply_function, y.new_zeros(len(y), *self.in_shape))[1](y)[0]


def from_callables(
    forward: Map,
    adjoint: Map | None,
    in_shape: Sequence[int],
    *,
    family: str = "FunctionLinear",
    tolerance: float = 1e-4,
    dtype: torch.dtype = torch.float32,
) -> FunctionLinear:
    """A linear operator from a pair of functions on batches; see `FunctionLinear`.

    Args:
        forward: `x -> A x`.
        adjoint: `y -> A^T y`, or None to differentiate `forward`.
        in_shape: `(channel, *grid)`.
        family: What calibration is filed under.
        tolerance: Largest relative error of the dot test.
        dtype: Precision that the functions work in.

    Raises:
        ConfigError: The adjoint does not belong to the function, or the function is not linear.
        ShapeMismatch: Shapes that do not belong together.
    """
    return FunctionLinear(forward, adjoint, in_shape, family=family, tolerance=tolerance, dtype=dtype)


def from_deepinv(
    physics: Any, in_shape: Sequence[int], *, tolerance: float = 1e-4
) -> FunctionLinear | FunctionOperator:
    """The operator of a `deepinv.physics.Physics` (https://deepinv.github.io), without its noise model.

    Linear when the physics has an `A_adjoint`, which must pass the dot test: some projections' do not unless they are
    built to differentiate their forward operator.

    Args:
        physics: An object with `A(x)`, and `A_adjoint(y)` when it is linear.
        in_shape: `(channel, *grid)`.
        tolerance: Largest relative error of the dot test.

    Raises:
        ConfigError: No such object, or a wrong adjoint.
        ShapeMismatch: The physics was built for another grid.
    """
    if not callable(getattr(physics, "A", None)):
        raise ConfigError(
            f"from_deepinv: expected a physics with a method A (and A_adjoint when it is linear), got "
            f"{type(physics).__name__}"
        )
    family = f"deepinv.{type(physics).__name__}"
    if not callable(getattr(physics, "A_adjoint", None)):
        return FunctionOperator(physics.A, in_shape, family=family)
    module = physics if isinstance(physics, nn.Module) else None
    return FunctionLinear(
        physics.A, physics.A_adjoint, in_shape, family=family, tolerance=tolerance, module=module
    )


def _trial(in_shape: tuple[int, ...]) -> Tensor:
    """Two different fields of numbers between 0 and 1."""
    return NoiseSource(0).uniform([0, 1], in_shape)


def _around(typical: Tensor, in_shape: tuple[int, ...]) -> Tensor:
    """Two fields that differ from a typical one by some hundredths of its spread, or of its size."""
    if tuple(typical.shape) != in_shape:
        raise ShapeMismatch(f"typical: expected one field of shape {in_shape}, got {tuple(typical.shape)}")
    spread, size = float(typical.std(correction=0)), float(typical.abs().mean())
    return typical + 0.05 * (spread or size or 1.0) * _trial(in_shape).to(typical)


def _observation_shape(function: Map, x: Tensor) -> tuple[int, ...]:
    """The shape of one observation, after a batch of two different rows was seen to be two batches of one."""
    with torch.no_grad():
        y = function(x)
        if not isinstance(y, Tensor) or y.ndim < 1 or len(y) != 2:
            got = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise ShapeMismatch(
                f"operator: expected a batch of 2 observations for 2 fields {tuple(x.shape[1:])}, got {got}"
            )
        if y.is_complex():
            raise ConfigError(
                "operator: the function gives complex numbers; observations are real, so end it with "
                "`torch.view_as_real`, and begin the adjoint with `torch.view_as_complex`"
            )
        alone = function(x[1:])
    size = float(y.nan_to_num(posinf=0.0, neginf=0.0).abs().max()) if y.numel() else 0.0
    if alone.shape != y[1:].shape or not torch.allclose(
        alone, y[1:], rtol=0, atol=1e-4 * size, equal_nan=True
    ):
        raise ConfigError(
            "operator: a field's observation depends on what else is in the batch; the function must act row by row"
        )
    return tuple(y.shape[1:])


def _place(module: nn.Module | None) -> torch.device:
    held = None if module is None else next(iter([*module.buffers(), *module.parameters()]), None)
    return torch.device("cpu") if held is None else held.device


def _wrong_adjoint(family: str, error: float, tolerance: float, derived: bool) -> str:
    if derived:
        return (
            f"{family}: expected a linear function, but <A x, y> and <x, A^T y> differ by {error:.2g} of their size "
            f"with A^T by differentiation; a constant offset belongs into the data, and a function that is not linear "
            "into FunctionOperator"
        )
    return (
        f"{family}: the adjoint does not belong to the function: expected <A x, y> and <x, A^T y> to agree to "
        f"{tolerance:.1g}, got {error:.2g}. A constant factor or a missing conjugate is the usual cause. "
        "from_callables(forward, None, ...) derives the adjoint by automatic differentiation; FunctionOperator takes "
        "functions that are not linear"
    )
