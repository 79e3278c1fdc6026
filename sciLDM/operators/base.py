r"""What an observation operator is: `y = A(x) + noise`, with `x` a field in the data's own units.

`A` acts on each sample of a batch on its own. Observations are real numbers; a complex one is stored with a last axis of
2 (`torch.view_as_real`), so that inner products, noise and chi-square need no second definition.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sciLDM.errors import ShapeMismatch

__all__ = ["LinearOperator", "Operator", "linearise"]

Linearised = tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]


class Operator(nn.Module, ABC):
    """A differentiable map from fields to observations; constants are buffers, so `.to(device)` moves it.

    Args:
        in_shape: Shape of one field, `(channel, *shape)`.
        out_shape: Shape of one observation.
    """

    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]

    def __init__(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.in_shape, self.out_shape = tuple(in_shape), tuple(out_shape)

    @abstractmethod
    def forward(self, x: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch *observation"]:
        """`A(x)`, without noise."""

    @property
    def family(self) -> str:
        """What calibration is filed under: operators of one family have errors of one kind."""
        return type(self).__name__


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
    y, pullback = torch.func.vjp(operator, x)
    return y, lambda v: torch.func.jvp(operator, (x,), (v,))[1], lambda w: pullback(w)[0]


def check_fields(operator: Operator, x: Tensor) -> None:
    """Raises `ShapeMismatch` unless `x` is a batch of the operator's fields."""
    if tuple(x.shape[1:]) != operator.in_shape:
        raise ShapeMismatch(
            f"{type(operator).__name__} acts on fields of shape {operator.in_shape} (channel, *grid), got "
            f"{tuple(x.shape[1:])}; build it for this grid"
        )
