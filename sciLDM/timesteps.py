"""Where on the noise axis to train: maps from uniform numbers to times.

A sampler draws nothing itself. It takes `u` in (0, 1), one number a sample, best stratified over the batch
(`u_i = (i + uniform) / batch`, permuted), which lowers the variance of the loss (Kingma et al. 2021, arXiv:2107.00630).
All of them increase in `u`: small `u` means little noise.
"""

from abc import ABC, abstractmethod
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import ConfigError
from sciLDM.schedules import Schedule

__all__ = [
    "LogUniformTime",
    "LogitNormalTime",
    "NormalLmbdaTime",
    "ProgressiveTime",
    "TimeSampler",
    "UniformTime",
]

Batch = Float[Tensor, "batch"]


class TimeSampler(ABC):
    """A distribution of training times, given by its quantile function."""

    @abstractmethod
    def __call__(self, u: Batch, schedule: Schedule, progress: float = 1.0) -> Batch:
        """Times inside `schedule.t_range`.

        Args:
            u: Uniform numbers in (0, 1).
            schedule: The schedule trained under.
            progress: Fraction of the training done, in [0, 1]; only `ProgressiveTime` looks at it.
        """


@final
class UniformTime(TimeSampler):
    """Uniform in `t` over the schedule's range."""

    def __call__(self, u: Batch, schedule: Schedule, progress: float = 1.0) -> Batch:
        t_min, t_max = schedule.t_range
        return (t_min + (t_max - t_min) * u).clamp(t_min, t_max)


@final
class LogitNormalTime(TimeSampler):
    """`logit(t) ~ N(mean, std^2)` (Esser et al. 2024, arXiv:2403.03206): most effort at intermediate times.

    Args:
        mean: Location; positive moves the effort to high noise.
        std: Spread.
    """

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        _check_std("LogitNormalTime", std)
        self.mean, self.std = mean, std

    def __call__(self, u: Batch, schedule: Schedule, progress: float = 1.0) -> Batch:
        return torch.sigmoid(self.mean + self.std * _normal_quantile(u)).clamp(*schedule.t_range)


@final
class NormalLmbdaTime(TimeSampler):
    """`lmbda ~ N(mean, std^2)`: EDM's log-normal noise level (arXiv:2206.00364, Table 1), for any schedule.

    Args:
        mean: Mean of `lmbda`; larger means less noise.
        std: Standard deviation of `lmbda`.
    """

    def __init__(self, mean: float = 1.2, std: float = 1.2) -> None:
        _check_std("NormalLmbdaTime", std)
        self.mean, self.std = mean, std

    def __call__(self, u: Batch, schedule: Schedule, progress: float = 1.0) -> Batch:
        return schedule.t_of_lmbda(self.mean - self.std * _normal_quantile(u)).clamp(*schedule.t_range)


@final
class LogUniformTime(TimeSampler):
    """Uniform in `lmbda`, the same effort for every octave of noise.

    Args:
        lmbda_min: Noisiest level; the schedule's own end when None.
        lmbda_max: Cleanest level; the schedule's own end when None.
    """

    def __init__(self, lmbda_min: float | None = None, lmbda_max: float | None = None) -> None:
        if lmbda_min is not None and lmbda_max is not None and lmbda_min >= lmbda_max:
            raise ConfigError(f"LogUniformTime needs lmbda_min < lmbda_max, got {lmbda_min} and {lmbda_max}")
        self.lmbda_min, self.lmbda_max = lmbda_min, lmbda_max

    def __call__(self, u: Batch, schedule: Schedule, progress: float = 1.0) -> Batch:
        ends = schedule.lmbda(torch.tensor(schedule.t_range, dtype=torch.float64))
        cleanest = float(ends[0]) if self.lmbda_max is None else min(self.lmbda_max, float(ends[0]))
        noisiest = float(ends[1]) if self.lmbda_min is None else max(self.lmbda_min, float(ends[1]))
        return schedule.t_of_lmbda(cleanest + (noisiest - cleanest) * u).clamp(*schedule.t_range)


@final
class ProgressiveTime(TimeSampler):
    """Start with the least noisy part of `base` and widen to all of it: easy levels first, none forgotten.

    At progress `p` the quantile `u f` of `base` is used, `f` growing linearly from `start` at 0 to 1 at `until`.

    Args:
        base: The distribution reached in the end.
        start: Fraction of `base`, from the low-noise side, used at first; in (0, 1].
        until: Progress at which all of `base` is in use; in (0, 1].
    """

    def __init__(self, base: TimeSampler, start: float = 0.25, until: float = 0.5) -> None:
        if not (0 < start <= 1 and 0 < until <= 1):
            raise ConfigError(f"ProgressiveTime needs start and until in (0, 1], got {start} and {until}")
        self.base, self.start, self.until = base, start, until

    def __call__(self, u: Batch, schedule: Schedule, progress: float = 1.0) -> Batch:
        fraction = self.start + (1 - self.start) * min(max(progress, 0.0) / self.until, 1.0)
        return self.base(u * fraction, schedule, progress)


def _normal_quantile(u: Tensor) -> Tensor:
    # ndtri of exactly 0 or 1 is infinite, and float32 stratification can round up to 1.
    edge = torch.finfo(u.dtype).eps / 2
    return torch.special.ndtri(u.clamp(edge, 1 - edge))


def _check_std(name: str, std: float) -> None:
    if std <= 0:
        raise ConfigError(f"{name} needs std > 0, got {std}")
