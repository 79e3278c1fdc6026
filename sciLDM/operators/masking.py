"""Parts of a field seen directly: all of it, a mask, a choice of channels or times."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.operators._axes import field_axis
from sciLDM.operators.base import LinearOperator, check_fields, check_observations

__all__ = ["Identity", "Mask", "Select"]


@final
class Identity(LinearOperator):
    """The field itself, `A x = x`; gaps that differ from case to case are NaN in the observed values.

    Filed with `Mask`: a field with gaps and a list of the values that are left are the same observation.

    Args:
        in_shape: `(channel, *grid)`.
    """

    def __init__(self, in_shape: Sequence[int]) -> None:
        super().__init__(in_shape, in_shape, family="Mask")

    def forward(self, x: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch *field"]:
        check_fields(self, x)
        return x

    def adjoint(self, y: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch *field"]:
        check_observations(self, y)
        return y


@final
class Mask(LinearOperator):
    """The values at marked places, as one vector in row-major order: `(A x)_j = x[place_j]`.

    Args:
        mask: True where there is an observation; the shape of a field, or one that broadcasts to it.
        in_shape: `(channel, *grid)`; the mask's own shape when None.

    Raises:
        ConfigError: Nothing is observed.
        ShapeMismatch: The mask does not broadcast to the field.
    """

    def __init__(self, mask: Bool[Tensor, "*field"], in_shape: Sequence[int] | None = None) -> None:
        field = tuple(mask.shape if in_shape is None else in_shape)
        try:
            flat = mask.expand(field).flatten()
        except RuntimeError:
            raise ShapeMismatch(
                f"mask: shape {tuple(mask.shape)} does not broadcast to fields of shape {field} (channel, *grid)"
            ) from None
        if mask.dtype != torch.bool:
            raise ConfigError(f"mask: expected booleans, got {mask.dtype}; write `mask > 0`")
        if not bool(flat.any()):
            raise ConfigError(
                "mask: nothing is observed, all of it is False; True marks the values that are seen"
            )
        super().__init__(field, (int(flat.sum()),))
        self.index: Tensor
        self.register_buffer("index", flat.nonzero().squeeze(1), persistent=False)

    def forward(self, x: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch observed"]:
        check_fields(self, x)
        return x.flatten(1)[:, self.index]

    def adjoint(self, y: Float[Tensor, "batch observed"]) -> Float[Tensor, "batch *field"]:
        check_observations(self, y)
        return scatter(y, self.index, self.in_shape)


@final
class Select(LinearOperator):
    """Some entries along one axis: a choice of channels, times or levels.

    Args:
        in_shape: `(channel, *grid)`.
        entries: Which ones, in the order in which they are observed.
        axis: Along which axis of the field; 0 is the channel.

    Raises:
        ConfigError: No entries, repeated ones, or entries that the axis does not have.
    """

    def __init__(self, in_shape: Sequence[int], entries: Sequence[int], *, axis: int = 0) -> None:
        axis = field_axis(in_shape, axis, "Select")
        size, chosen = in_shape[axis], [int(entry) for entry in entries]
        if not chosen or len(set(chosen)) < len(chosen) or not all(0 <= entry < size for entry in chosen):
            raise ConfigError(
                f"Select: expected different entries between 0 and {size - 1} (axis {axis}), got {chosen}"
            )
        super().__init__(in_shape, (*in_shape[:axis], len(chosen), *in_shape[axis + 1 :]))
        self.axis = axis
        self.index: Tensor
        self.register_buffer("index", torch.tensor(chosen), persistent=False)

    def forward(self, x: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch *observation"]:
        check_fields(self, x)
        return x.index_select(self.axis + 1, self.index)

    def adjoint(self, y: Float[Tensor, "batch *observation"]) -> Float[Tensor, "batch *field"]:
        check_observations(self, y)
        return y.new_zeros(len(y), *self.in_shape).index_copy(self.axis + 1, self.index, y)


def scatter(y: Tensor, index: Tensor, shape: Sequence[int]) -> Tensor:
    """Put `y [..., observed]` at distinct flat places of zeros of `shape`, behind the leading axes of `y`."""
    lead = y.shape[:-1]
    flat = y.new_zeros(*lead, torch.Size(shape).numel())
    return flat.index_copy(-1, index, y).reshape(*lead, *shape)
