r"""The reverse SDE (Anderson 1982; Song et al. 2021, arXiv:2011.13456), by a stochastic Heun method.

With `tau = -log cos(theta)` the forward process is `dy = -y dtau + sqrt(2) dW`. Running back, with noise level `eta`,

    dy = (-eta y + (1 + eta) u) dtau + sqrt(2 eta) dW,    u = y + grad log p,    u dtau = -v dtheta,

has the right marginals for every `eta >= 0`. For latents of unit variance `u = 0` and what is left is an
Ornstein-Uhlenbeck process, which is integrated exactly; `u` is averaged over both ends of the step with the same
noise, which is second order in the mean and covariance since the noise is additive.
"""

import math
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import ConfigError
from sciLDM.samplers.base import Run, Sampler
from sciLDM.samplers.grids import LogSNRGrid, TimeGrid

__all__ = ["ReverseSDE"]

_GRID = LogSNRGrid()


@final
class ReverseSDE(Sampler):
    """Stochastic Heun on the reverse SDE; two calls a step (`2 steps - 1` in all).

    Args:
        steps: Number of noise levels.
        grid: Placement of the levels.
        eta: Noise level: 0 is the probability-flow ODE, 1 Anderson's reverse SDE, more adds Langevin mixing.
        temperature: Standard deviation of every noise drawn.
    """

    documented_steps: ClassVar[int] = 32

    def __init__(
        self, *, steps: int = 32, grid: TimeGrid | None = None, eta: float = 1.0, temperature: float = 1.0
    ) -> None:
        super().__init__(steps=steps, grid=grid or _GRID, temperature=temperature)
        if eta < 0:
            raise ConfigError(f"eta must not be negative, got {eta}")
        self.eta = eta

    def integrate(self, run: Run, y: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        for i, now, then in run.steps:
            keep = (now.a / then.a) ** self.eta
            noise = math.sqrt(1 - keep**2) * run.noise(f"step {i}") if self.eta > 0 else 0.0
            weight = (1 + self.eta) * (then.theta - now.theta)
            y, x0 = run.begin(i, y, now)
            pushed = keep * run.velocity(y, now, x0)
            base = keep * y + noise
            guess = base + weight * pushed
            second = run.velocity(guess, then, run.denoise(guess, then))
            y = base + weight / 2 * (pushed + second)
            run.report(i + 1, x0)
        return run.finish(y)
