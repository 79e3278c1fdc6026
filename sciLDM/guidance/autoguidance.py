"""Autoguidance: guide a model by a worse version of itself (Karras et al. 2024, arXiv:2406.02507).

Where both models err alike, the worse one errs more: their difference points from what a weak model confuses to what
the data hold. Unlike classifier-free guidance this needs no conditions, and takes no variety where the two agree.
`good` may itself be guided (`ClassifierFree`): the scales then act one after the other.
"""

from typing import final

from jaxtyping import Float
from torch import Tensor

from sciLDM.denoiser import Denoiser
from sciLDM.errors import ConfigError
from sciLDM.parametrisation import expand

__all__ = ["Autoguidance"]


@final
class Autoguidance(Denoiser):
    """`D = D_bad + scale (D_good - D_bad)`.

    Each model keeps its own memory for self-conditioning, along the guided trajectory; `reset_self_conditioning`
    empties both.

    Args:
        good: The model to sample from.
        bad: A smaller or less trained one, under the same conditions and the same schedule.
        scale: 1 is the good model alone; 1.5 to 3 is usual.
        interval: Times between which guidance acts (Kynkaanniemi et al. 2024, 2404.07724); outside it `scale = 1`, and
            `bad` is not called where it holds for no sample.

    Raises:
        ConfigError: The two are under different kinds of schedule.
    """

    def __init__(
        self,
        good: Denoiser,
        bad: Denoiser,
        scale: float = 2.0,
        *,
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        if type(good.schedule) is not type(bad.schedule):
            raise ConfigError(
                f"both models must be under one schedule, got {type(good.schedule).__name__} and "
                f"{type(bad.schedule).__name__}; set bad's schedule to good's"
            )
        super().__init__(good.schedule)
        self.good, self.bad, self.scale, self.interval = good, bad, scale, interval

    def forward(
        self, x_t: Float[Tensor, "batch *shape"], t: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch *shape"]:
        """Guided `x0_hat`."""
        good = self.good(x_t, t)
        inside = (t >= self.interval[0]) & (t <= self.interval[1])
        if self.scale == 1.0 or not bool(inside.any()):
            return good
        return good + expand((self.scale - 1.0) * inside, x_t) * (good - self.bad(x_t, t))
