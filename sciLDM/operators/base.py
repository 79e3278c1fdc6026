r"""What an observation operator is: `y = A(x) + noise`, with `x` a field in the data's own units.

`A` acts on each sample of a batch on its own. Observations are real numbers; a complex one is stored with a last axis
of 2 (`torch.view_as_real`), so that inner products, noise and chi-square need no second definition. Axes are counted in
one field `(channel, *grid)`: 0 is the channel, -1 the last axis of the grid.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sciLDM.errors import ConfigError, ShapeMismatch

__all__ = ["LinearOperator", "Operator", "linearise"]

Linearised = tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


class Operator(nn.Module, ABC):
    """A differentiable map from fields to observations; constants are buffers, so `.to(device)` moves it.

    Args:
        in_shape: Shape of one field, `(channel, *shape)`.
        out_shape: Shape of one observation.
        family: What calibration is filed under; the name of the class when None.
    """

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]

    def __init__(
        self, in_shape: Sequence[int], out_shape: Sequence[int], *, family: str | None = None
    ) -> None:
        super().__init__()
        self.in_shape, self.out_shape = tuple(map(int, in_shape)), tuple(map(int, out_shape))
        if not self.in_shape or min(self.in_shape) < 1 or min(self.out_shape, default=1) < 1:
            raise ConfigError(
                f"{type(self).__name__}: expected a field of shape (channel, *grid) and observations that are not "
                f"empty, got {self.in_shape} and {self.out_shape}; one channel is a leading 1"
            )
        self._family = family or type(self).__name__

    @abstractmethod
    def forward(self, x: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch *observation"]:
        """`A(x)`, without noise."""

    @property
    def family(self) -> str:
        """What calibration is filed under: operators of one family have errors of one kind."""
        return self._family


class LinearOperator(Operator, ABC):
    """A linear map with its adjoint: `<A x, y> = <x, A^T y>`."""

    @abstractmethod
    def adjoint(self, y: Float[Tensor, "batch *observation"]) -> Float[Tensor, "batch *field"]:
        """`A^T y`."""


def linearise(operator: Operator, x: Float[Tensor, "batch *field"]) -> Linearised:
    """`A(x)`, `v -> J v` and `w -> J^T w` with `J` the Jacobian at `x`; for a linear operator `A` and `A^T` themselves.

    Raises:
        ShapeMismatch: `x` is no batch of the operator's fields.
    """
    check_fields(operator, x)
    if isinstance(operator, LinearOperator):
        return operator(x), operator, operator.adjoint
    y, pullback = torch.func.vjp(operator, x)[:2]
    return y, lambda v: torch.func.jvp(operator, (x,), (v,))[1], lambda w: pullback(w)[0]


def check_fields(operator: Operator, x: Tensor) -> None:
    """Raises `ShapeMismatch` unless `x` is a batch of the operator's fields."""
    if tuple(x.shape[1:]) != operator.in_shape:
        raise ShapeMismatch(
            f"{type(operator).__name__} acts on fields of shape {operator.in_shape} (channel, *grid), got "
            f"{tuple(x.shape[1:])}; build it for this grid"
        )


def check_observations(operator: Operator, y: Tensor) -> None:
    """Raises `ShapeMismatch` unless `y` is a batch of the operator's observations."""
    if tuple(y.shape[1:]) != operator.out_shape:
        raise ShapeMismatch(
            f"{type(operator).__name__} gives observations of shape {operator.out_shape}, got {tuple(y.shape[1:])}"
        )
