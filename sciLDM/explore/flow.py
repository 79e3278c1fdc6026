r"""The probability-flow ODE as a map between latents and noise, in both directions ("DDIM inversion").

In normalised coordinates (`sciLDM.samplers.base`) and with `lmbda` as time,

    dy / dlmbda = a (x0_hat - a y)

(Song et al. 2021, arXiv:2010.02502 and 2011.13456), by the classical Runge-Kutta method of fourth order, the same steps
back and forth. Self-conditioning is off: with a memory the map would depend on the way it was reached.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.denoiser import Denoiser
from sciLDM.errors import ConfigError
from sciLDM.samplers.base import level_at
from sciLDM.schedules import Schedule

__all__ = ["ProbabilityFlow"]


@final
@dataclass(frozen=True)
class ProbabilityFlow:
    """Latents to noise and back.

    Attributes:
        steps: Runge-Kutta steps, four calls of the denoiser each.
        lmbda_min: Where latents count as noise.
        lmbda_max: Where they count as clean. Both are cut to the schedule's own range.

    Raises:
        ConfigError: No step, or an empty range.
    """

    steps: int = 24
    lmbda_min: float = -5.0
    lmbda_max: float = 5.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.lmbda_min >= self.lmbda_max:
            raise ConfigError(
                f"ProbabilityFlow needs steps >= 1 and lmbda_min < lmbda_max, got {self.steps}, {self.lmbda_min} and "
                f"{self.lmbda_max}"
            )

    @torch.no_grad()
    def to_noise(self, denoiser: Denoiser, z: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """The noise that the flow turns into `z`: normal, if `z` is as the model's samples are."""
        low, high = self._range(denoiser.schedule)
        return self._integrate(denoiser, z, high, low)

    @torch.no_grad()
    def to_latents(
        self, denoiser: Denoiser, y: Float[Tensor, "batch *shape"]
    ) -> Float[Tensor, "batch *shape"]:
        """Inverse of `to_noise`, up to the error of the method."""
        low, high = self._range(denoiser.schedule)
        return self._integrate(denoiser, y, low, high)

    def _integrate(self, denoiser: Denoiser, y: Tensor, start: float, end: float) -> Tensor:
        h = (end - start) / self.steps
        for i in range(self.steps):
            lmbda = start + i * h
            k1 = _slope(denoiser, y, lmbda)
            k2 = _slope(denoiser, y + h / 2 * k1, lmbda + h / 2)
            k3 = _slope(denoiser, y + h / 2 * k2, lmbda + h / 2)
            k4 = _slope(denoiser, y + h * k3, lmbda + h)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        return y

    def _range(self, schedule: Schedule) -> tuple[float, float]:
        ends = schedule.lmbda(torch.tensor([1.0, 0.0], dtype=torch.float64))
        return max(self.lmbda_min, float(ends[0])), min(self.lmbda_max, float(ends[1]))


def _slope(denoiser: Denoiser, y: Tensor, lmbda: float) -> Tensor:
    t = float(denoiser.schedule.t_of_lmbda(torch.tensor(lmbda, dtype=torch.float64)))
    level = level_at(denoiser.schedule, t)
    x0 = denoiser(level.norm * y, torch.full((len(y),), t, dtype=y.dtype, device=y.device))
    return level.a * (x0 - level.a * y)
