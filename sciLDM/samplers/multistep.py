r"""DPM-Solver++(2M) and its SDE form (Lu et al. 2022, arXiv:2211.01095), for any schedule.

With `h = lmbda_s - lmbda_t`, `q = exp(-h)` and the data estimate `D` held over the step, the exact solution is

    y_s = (s_s / s_t) q^eta y_t + a_s (1 - q^(1 + eta)) D + s_s sqrt(1 - q^(2 eta)) z,

`eta = 0` for the ODE and 1 for the reverse SDE. Second order comes from extrapolating `D` to the middle of the step
from the last two estimates. A step out of `alpha = 0` has `q = 0` and needs no special case; the step after it has no
usable history (`h` before it is infinite) and falls back to first order by itself.
"""

import math
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import ConfigError
from sciLDM.samplers.base import Level, Run, Sampler
from sciLDM.samplers.grids import LogSNRGrid, TimeGrid

__all__ = ["DPMSolverPP2M", "DPMSolverPP2MSDE"]

_GRID = LogSNRGrid()


@final
class DPMSolverPP2M(Sampler):
    """DPM-Solver++(2M): deterministic, second order, one call a step. The default where calls are dear.

    Args:
        steps: Number of denoiser calls.
        grid: Placement of the calls; even in log-SNR when None.
        temperature: Standard deviation of the start.
    """

    documented_steps: ClassVar[int] = 32

    def __init__(self, *, steps: int = 32, grid: TimeGrid | None = None, temperature: float = 1.0) -> None:
        super().__init__(steps=steps, grid=grid or _GRID, temperature=temperature)

    def integrate(self, run: Run, y: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        return _multistep(run, y, 0.0)


@final
class DPMSolverPP2MSDE(Sampler):
    """DPM-Solver++(2M) with noise: forgets early errors, at the price of more steps.

    Args:
        steps: Number of denoiser calls.
        grid: Placement of the calls; even in log-SNR when None.
        eta: 0 is the ODE, 1 the reverse SDE.
        temperature: Standard deviation of every noise drawn.
    """

    documented_steps: ClassVar[int] = 64

    def __init__(
        self, *, steps: int = 64, grid: TimeGrid | None = None, eta: float = 1.0, temperature: float = 1.0
    ) -> None:
        super().__init__(steps=steps, grid=grid or _GRID, temperature=temperature)
        if eta < 0:
            raise ConfigError(f"eta must not be negative, got {eta}")
        self.eta = eta

    def integrate(self, run: Run, y: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        return _multistep(run, y, self.eta)


def _multistep(run: Run, y: Tensor, eta: float) -> Tensor:
    previous: Tensor | None = None
    h_before = math.inf
    for i, now, then in run.steps:
        y, x0 = run.begin(i, y, now)
        q = _shrinkage(now, then)
        h = -math.log(q) if q > 0 else math.inf
        data = x0
        if previous is not None and math.isfinite(h_before):
            data = x0 + h / (2 * h_before) * (x0 - previous)  # 2211.01095, Eq. 14 and Alg. 2
        y = (then.s / now.s) * q**eta * y + then.a * (1 - q ** (1 + eta)) * data
        if eta > 0:
            y = y + then.s * math.sqrt(1 - q ** (2 * eta)) * run.noise(f"step {i}")
        run.report(i + 1, x0)
        previous, h_before = x0, h
    return run.finish(y)


def _shrinkage(now: Level, then: Level) -> float:
    """`exp(-h)`, 0 when leaving pure noise."""
    return (now.a * then.s) / (now.s * then.a)
