"""Autoguidance: guide a model by a worse version of itself (Karras et al. 2024, arXiv:2406.02507)."""

from typing import final

from jaxtyping import Float
from torch import Tensor

from sciLDM.denoiser import Denoiser
from sciLDM.errors import ConfigError

__all__ = ["Autoguidance"]


@final
class Autoguidance(Denoiser):
    """`D = D_bad + scale (D_good - D_bad)`: corrects what the bad model gets wrong, without losing variety.

    Args:
        good: The model to sample from.
        bad: A smaller or less trained one, under the same conditions and the same schedule.
        scale: 1 is the good model alone; 1.5 to 3 is usual.

    Raises:
        ConfigError: The two are under different kinds of schedule.
    """

    def __init__(self, good: Denoiser, bad: Denoiser, scale: float = 2.0) -> None:
        if type(good.schedule) is not type(bad.schedule):
            raise ConfigError(
                f"both models must be under one schedule, got {type(good.schedule).__name__} and "
                f"{type(bad.schedule).__name__}; set bad's schedule to good's"
            )
        super().__init__(good.schedule)
        self.good, self.bad, self.scale = good, bad, scale

    def forward(
        self, x_t: Float[Tensor, "batch *shape"], t: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch *shape"]:
        """Guided `x0_hat`."""
        good = self.good(x_t, t)
        if self.scale == 1.0:
            return good
        bad = self.bad(x_t, t)
        return bad + self.scale * (good - bad)
