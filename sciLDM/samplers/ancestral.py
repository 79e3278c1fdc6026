r"""DDPM (Ho et al. 2020, arXiv:2006.11239) and DDIM (Song et al. 2021, 2010.02502), for any schedule and grid.

With `r = a_t / a_s` the forward kernel is `y_t = r y_s + sqrt(1 - r^2) eps`, and its reverse given the data is

    y_s | y_t, x ~ N(r s_s^2 / s_t^2 y_t + c x, s_s^2 / s_t^2 (1 - r^2)),    c = a_s (1 - r^2) / s_t^2.

Putting `x0_hat` for `x` ignores that `x` is uncertain and makes samples too narrow (10 % at 64 even steps). Where the
data's spread is known, the missing term `c^2 Var(x | y_t)` is too: `DDPM` adds that of a Gaussian of `data_std`. This
is the "large" variance of Ho et al. for `data_std = 1` and the "small" one for 0.
"""

import math
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import ConfigError
from sciLDM.samplers.base import Level, Run, Sampler
from sciLDM.samplers.grids import LogSNRGrid, TimeGrid

__all__ = ["DDIM", "DDPM"]

_GRID = LogSNRGrid()


@final
class DDPM(Sampler):
    """Ancestral sampling. First order in the step, robust to an imperfect denoiser.

    Args:
        steps: Number of denoiser calls.
        grid: Placement of the calls; even in log-SNR when None.
        data_std: Spread assumed for the posterior of the clean latent; 1 for standardised latents.
        temperature: Standard deviation of every noise drawn.
    """

    documented_steps: ClassVar[int] = 256

    def __init__(
        self,
        *,
        steps: int = 256,
        grid: TimeGrid | None = None,
        data_std: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(steps=steps, grid=grid or _GRID, temperature=temperature)
        if data_std < 0:
            raise ConfigError(f"data_std must not be negative, got {data_std}")
        self.data_std = data_std

    def integrate(self, run: Run, y: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        for i, now, then in run.steps:
            y, x0 = run.begin(i, y, now)
            r = now.a / then.a
            c = then.a * _lost(now, then) / now.s**2
            unsure = (self.data_std * now.s) ** 2 / ((self.data_std * now.a) ** 2 + now.s**2)
            std = math.sqrt((then.s / now.s) ** 2 * _lost(now, then) + c**2 * unsure)
            y = r * (then.s / now.s) ** 2 * y + c * x0 + std * run.noise(f"step {i}")
            run.report(i + 1, x0)
        return run.finish(y)


@final
class DDIM(Sampler):
    """Deterministic for `eta = 0` (exponential Euler on the probability-flow ODE), ancestral for `eta = 1`.

    Args:
        steps: Number of denoiser calls.
        grid: Placement of the calls; even in log-SNR when None.
        eta: Share of the ancestral noise that is added at each step.
        temperature: Standard deviation of every noise drawn.
    """

    documented_steps: ClassVar[int] = 320

    def __init__(
        self, *, steps: int = 320, grid: TimeGrid | None = None, eta: float = 0.0, temperature: float = 1.0
    ) -> None:
        super().__init__(steps=steps, grid=grid or _GRID, temperature=temperature)
        if not 0 <= eta <= 1:
            raise ConfigError(f"DDIM needs eta in [0, 1], got {eta}")
        self.eta = eta

    def integrate(self, run: Run, y: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        for i, now, then in run.steps:
            y, x0 = run.begin(i, y, now)
            eps = (y - now.a * x0) / now.s
            fresh = self.eta * (then.s / now.s) * math.sqrt(_lost(now, then))  # 2010.02502, Eq. 16
            y = then.a * x0 + math.sqrt(max(then.s**2 - fresh**2, 0.0)) * eps
            if fresh > 0:
                y = y + fresh * run.noise(f"step {i}")
            run.report(i + 1, x0)
        return run.finish(y)


def _lost(now: Level, then: Level) -> float:
    """`1 - r^2`, the share of `y_s` that noise has replaced in `y_t`, without cancellation."""
    return (now.s - then.s) * (now.s + then.s) / then.a**2
