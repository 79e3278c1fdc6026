r"""Between Hounsfield units and attenuation: `mu = mu_water (1 + HU / 1000)`, air is 0.

A tomograph sees line integrals of `mu`; volumes are in HU. The map is affine, `A(mu) = s A(x) + s 1000 A(1)` with
`s = mu_water / 1000`, so its constant part is moved to the observations and what is left is linear.
"""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import ConfigError
from sciLDM.operators import LinearOperator

__all__ = ["MU_WATER_70_KEV", "Hounsfield", "to_attenuation", "to_hounsfield"]

MU_WATER_70_KEV = 0.01928
"""Linear attenuation of water at 70 keV, about the mean energy of a 120 kV spectrum [1/mm] (NIST XCOM)."""


def to_attenuation(hounsfield: Tensor, mu_water: float = MU_WATER_70_KEV) -> Tensor:
    """Linear attenuation [1/mm]; negative values, below air, are kept."""
    return mu_water * (1 + hounsfield / 1000)


def to_hounsfield(mu: Tensor, mu_water: float = MU_WATER_70_KEV) -> Tensor:
    """Hounsfield units of a linear attenuation [1/mm]."""
    return 1000 * (mu / mu_water - 1)


@final
class Hounsfield(LinearOperator):
    """What a projector observes of a volume in HU, less the line integrals of water.

    Args:
        projector: Acts on attenuation in 1/mm.
        mu_water: Attenuation of water at the scanner's energy [1/mm].

    Raises:
        ConfigError: An attenuation that is not positive.
    """

    def __init__(self, projector: LinearOperator, *, mu_water: float = MU_WATER_70_KEV) -> None:
        if not mu_water > 0:
            raise ConfigError(f"mu_water: expected a positive attenuation in 1/mm, got {mu_water}")
        super().__init__(projector.in_shape, projector.out_shape, family=projector.family)
        self.projector, self.mu_water = projector, mu_water

    def forward(self, x: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch *observation"]:
        return self.mu_water / 1000 * self.projector(x)

    def adjoint(self, y: Float[Tensor, "batch *observation"]) -> Float[Tensor, "batch *field"]:
        return self.mu_water / 1000 * self.projector.adjoint(y)

    @torch.no_grad()
    def water(self) -> Float[Tensor, "one *observation"]:
        """Line integrals through a field of water."""
        return self.mu_water * self.projector(torch.ones(1, *self.in_shape))

    def from_line_integrals(
        self, y: Float[Tensor, "batch *observation"]
    ) -> Float[Tensor, "batch *observation"]:
        """Measured `-log(counts / photons)` as observations of this operator."""
        return y - self.water().to(y)

    def to_line_integrals(
        self, y: Float[Tensor, "batch *observation"]
    ) -> Float[Tensor, "batch *observation"]:
        """The inverse of `from_line_integrals`, for simulation."""
        return y + self.water().to(y)
