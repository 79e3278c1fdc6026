r"""Euler and Heun on the probability-flow ODE `dy / dtheta = v(y, theta)`, with EDM's churn (arXiv:2206.00364, Alg. 2).

EDM steps in `(x_t / alpha, sigma / alpha)`, which is singular where `alpha = 0`. The angle `theta` is its bounded form:
the same order, finite for every schedule, and exact for latents of unit variance, which neither EDM's variables nor
DDIM's are.
"""

import math
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import ConfigError
from sciLDM.samplers.base import Level, Run, Sampler, level_at
from sciLDM.samplers.grids import LogSNRGrid, TimeGrid

__all__ = ["Euler", "Heun"]

_GRID = LogSNRGrid()
_ALWAYS = (0.0, math.inf)
_MOST = math.sqrt(2) - 1  # a churn may at most double the noise's variance


@final
class Euler(Sampler):
    """Euler's method; one call a step, first order.

    Args:
        steps: Number of denoiser calls.
        grid: Placement of the calls; even in log-SNR when None.
        churn: EDM's `S_churn`: noise put back per step, to correct earlier errors; 0 is deterministic.
        churn_range: `sigma / alpha` between which churn acts.
        temperature: Standard deviation of every noise drawn.
    """

    documented_steps: ClassVar[int] = 256

    def __init__(
        self,
        *,
        steps: int = 256,
        grid: TimeGrid | None = None,
        churn: float = 0.0,
        churn_range: tuple[float, float] = _ALWAYS,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(steps=steps, grid=grid or _GRID, temperature=temperature)
        _check_churn(churn)
        self.churn, self.churn_range = churn, churn_range

    def integrate(self, run: Run, y: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        for i, now, then in run.steps:
            y, now = _churned(run, y, now, i, self.churn, self.churn_range)
            y, x0 = run.begin(i, y, now)
            y = y + (then.theta - now.theta) * run.velocity(y, now, x0)
            run.report(i + 1, x0)
        return run.finish(y)


@final
class Heun(Sampler):
    """Heun's method: Euler, then the trapezoid; two calls a step (`2 steps - 1` in all), second order.

    Args:
        steps: Number of noise levels.
        grid: Placement of the levels.
        churn: EDM's `S_churn`: noise put back per step, to correct earlier errors; 0 is deterministic.
        churn_range: `sigma / alpha` between which churn acts.
        temperature: Standard deviation of every noise drawn.
    """

    documented_steps: ClassVar[int] = 32

    def __init__(
        self,
        *,
        steps: int = 32,
        grid: TimeGrid | None = None,
        churn: float = 0.0,
        churn_range: tuple[float, float] = _ALWAYS,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(steps=steps, grid=grid or _GRID, temperature=temperature)
        _check_churn(churn)
        self.churn, self.churn_range = churn, churn_range

    def integrate(self, run: Run, y: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        for i, now, then in run.steps:
            y, now = _churned(run, y, now, i, self.churn, self.churn_range)
            y, x0 = run.begin(i, y, now)
            first = run.velocity(y, now, x0)
            guess = y + (then.theta - now.theta) * first
            second = run.velocity(guess, then, run.denoise(guess, then))
            y = y + (then.theta - now.theta) / 2 * (first + second)
            run.report(i + 1, x0)
        return run.finish(y)


def _churned(
    run: Run, y: Tensor, now: Level, i: int, churn: float, churn_range: tuple[float, float]
) -> tuple[Tensor, Level]:
    """Raise the noise by the factor `1 + gamma` (Alg. 2, lines 4-6); nothing at pure noise or past `t = 1`."""
    ratio = now.s / now.a if now.a > 0 else math.inf
    gamma = min(churn / len(run.levels), _MOST)
    if gamma == 0 or not churn_range[0] <= ratio <= churn_range[1]:
        return y, now
    schedule = run.denoiser.schedule
    noisier = -math.log(ratio * (1 + gamma))
    t = float(schedule.t_of_lmbda(torch.tensor(noisier, dtype=torch.float64)))
    raised = level_at(schedule, t)
    if now.t >= t or raised.a == 0:
        return y, now
    added = math.sqrt((raised.s / raised.a) ** 2 - ratio**2)
    return raised.a * (y / now.a + added * run.noise(f"churn {i}")), raised


def _check_churn(churn: float) -> None:
    if churn < 0:
        raise ConfigError(f"churn must not be negative, got {churn}; 0 turns it off")
