"""Observed values together with how they came about."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sciLDM.errors import DataError, ShapeMismatch
from sciLDM.operators.base import Operator
from sciLDM.operators.noise import Noise

__all__ = ["Observation"]


@dataclass(frozen=True)
class Observation:
    """`values = operator(x) + noise`; NaN marks a value that is missing.

    Attributes:
        values: One row a case, in the operator's units.
        operator: Shared by all cases.
        noise: Error model; None when it must be estimated.

    Raises:
        ShapeMismatch: `values` are not a batch of the operator's observations.
        DataError: Infinite values, or a case without any observation.
    """

    values: Float[Tensor, "case *observation"]
    operator: Operator
    noise: Noise | None = None

    def __post_init__(self) -> None:
        if tuple(self.values.shape[1:]) != self.operator.out_shape:
            raise ShapeMismatch(
                f"observed values have shape {tuple(self.values.shape[1:])}, {type(self.operator).__name__} gives "
                f"{self.operator.out_shape}; was it built for another grid?"
            )
        if bool(self.values.isinf().any()):
            raise DataError("observed values are infinite; mark missing ones by NaN")
        if bool((~self.present).flatten(1).all(dim=1).any()):
            raise DataError("a case has no observed value: all are NaN; sample without observations instead")

    @property
    def present(self) -> Bool[Tensor, "case *observation"]:
        """Where there is a value."""
        return ~torch.isnan(self.values)
