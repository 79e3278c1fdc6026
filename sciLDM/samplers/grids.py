"""Time grids: at which noise levels a sampler calls the denoiser.

A grid of `steps` points starts at `t = 1` exactly and ends at its last call; the jump from there to the clean state is
the sampler's, and is never a point of the grid (`alpha(1) = 0` and `sigma(0) = 0` need no special case that way).
"""

from abc import ABC, abstractmethod
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import ConfigError
from sciLDM.schedules import Schedule

__all__ = ["KarrasGrid", "LogSNRGrid", "TimeGrid", "UniformGrid"]


class TimeGrid(ABC):
    """A rule for placing the calls of the denoiser."""

    @abstractmethod
    def __call__(self, schedule: Schedule, steps: int) -> Float[Tensor, "steps"]:
        """Times from 1 downwards, strictly decreasing, in float64."""


@final
class UniformGrid(TimeGrid):
    """Evenly spaced in `t`. Ends at `t = 0` where the schedule has noise left there (EDM, VE), else one step before."""

    def __call__(self, schedule: Schedule, steps: int) -> Float[Tensor, "steps"]:
        noise_left = float(schedule.sigma(torch.zeros((), dtype=torch.float64))) > 0
        intervals = max(steps - 1, 1) if noise_left else steps
        return 1 - torch.arange(steps, dtype=torch.float64) / intervals


@final
class LogSNRGrid(TimeGrid):
    """Evenly spaced in `lmbda`: every octave of noise gets the same number of steps.

    Args:
        lmbda_min: Noisiest level below `t = 1`, cut to the schedule's own range.
        lmbda_max: Level of the last call, cut to the schedule's own range.
    """

    def __init__(self, lmbda_min: float = -5.0, lmbda_max: float = 5.0) -> None:
        _check_range("LogSNRGrid", lmbda_min, lmbda_max)
        self.lmbda_min, self.lmbda_max = lmbda_min, lmbda_max

    def __call__(self, schedule: Schedule, steps: int) -> Float[Tensor, "steps"]:
        low, high = _own_range(schedule, self.lmbda_min, self.lmbda_max)
        return _times(schedule, torch.linspace(low, high, steps, dtype=torch.float64))


@final
class KarrasGrid(TimeGrid):
    """`(sigma / alpha)^(1/rho)` evenly spaced (Karras et al. 2022, arXiv:2206.00364, Eq. 5), for any schedule.

    Args:
        rho: 7 puts most steps at low noise; 1 would be even in `sigma / alpha`.
        lmbda_min: Noisiest level below `t = 1`, cut to the schedule's own range.
        lmbda_max: Level of the last call, cut to the schedule's own range.
    """

    def __init__(self, rho: float = 7.0, lmbda_min: float = -5.0, lmbda_max: float = 5.0) -> None:
        _check_range("KarrasGrid", lmbda_min, lmbda_max)
        if rho <= 0:
            raise ConfigError(f"KarrasGrid needs rho > 0, got {rho}")
        self.rho, self.lmbda_min, self.lmbda_max = rho, lmbda_min, lmbda_max

    def __call__(self, schedule: Schedule, steps: int) -> Float[Tensor, "steps"]:
        low, high = _own_range(schedule, self.lmbda_min, self.lmbda_max)
        ends = torch.exp(-torch.tensor([low, high], dtype=torch.float64) / self.rho)
        ladder = torch.lerp(ends[0], ends[1], torch.linspace(0, 1, steps, dtype=torch.float64))
        return _times(schedule, -self.rho * ladder.log())


def _own_range(schedule: Schedule, lmbda_min: float, lmbda_max: float) -> tuple[float, float]:
    ends = schedule.lmbda(torch.tensor([1.0, 0.0], dtype=torch.float64))
    low, high = max(lmbda_min, float(ends[0])), min(lmbda_max, float(ends[1]))
    if low >= high:
        raise ConfigError(
            f"the grid's lmbda range ({lmbda_min}, {lmbda_max}) misses the schedule's ({ends[0]:.2f}, {ends[1]:.2f}); "
            "widen the grid"
        )
    return low, high


def _times(schedule: Schedule, lmbda: Tensor) -> Tensor:
    times = schedule.t_of_lmbda(lmbda)
    # The first call is at pure noise, where the start is drawn, even if lmbda(1) is infinite.
    times[0] = 1.0
    return times


def _check_range(name: str, lmbda_min: float, lmbda_max: float) -> None:
    if lmbda_min >= lmbda_max:
        raise ConfigError(f"{name} needs lmbda_min < lmbda_max, got {lmbda_min} and {lmbda_max}")
