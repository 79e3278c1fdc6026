"""Noise schedules: `x_t = alpha(t) x + sigma(t) eps` with `t` in [0, 1], 0 clean and 1 noise.

`lmbda(t) = log(alpha / sigma)` (half the log signal-to-noise ratio) decreases strictly. Everything else in sciLDM is
written in `alpha`, `sigma` and `lmbda`, so a schedule can be exchanged after training.

References:
    Kingma et al. 2021 (arXiv:2107.00630); Song et al. 2021 (2011.13456) for VP and VE; Nichol & Dhariwal 2021
    (2102.09672) for the cosine; Liu et al. 2023 (2209.03003) for rectified flow; Karras et al. 2022 (2206.00364);
    Hoogeboom et al. 2023 (2301.11093) for the shift.
"""

import math
from abc import ABC, abstractmethod
from functools import cached_property
from typing import final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import ConfigError

__all__ = [
    "LMBDA_LIMIT",
    "CosineSchedule",
    "EDMSchedule",
    "RectifiedSchedule",
    "Schedule",
    "VESchedule",
    "VPSchedule",
    "bisect_lmbda",
]

LMBDA_LIMIT = 10.0
"""Where a formula would divide by `alpha(1) = 0` or `sigma(0) = 0`, `lmbda` is held inside +-LMBDA_LIMIT."""

_LMBDA_RANGE = 7.0  # noise below 0.1 % of the signal, or signal below 0.1 % of the noise, teaches nothing


class Schedule(ABC):
    """Signal and noise scale at time `t`. Write `alpha`, `sigma`, `t_of_lmbda`; the rest follows."""

    @abstractmethod
    def alpha(self, t: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """Scale of the signal."""

    @abstractmethod
    def sigma(self, t: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """Scale of the noise; increases strictly in `t`."""

    @abstractmethod
    def t_of_lmbda(self, lmbda: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """Inverse of `lmbda(t)`, held inside [0, 1]. `bisect_lmbda` serves where no formula exists."""

    def __call__(self, t: Float[Tensor, "*any"]) -> tuple[Float[Tensor, "*any"], Float[Tensor, "*any"]]:
        """`(alpha, sigma)` at `t`."""
        return self.alpha(t), self.sigma(t)

    def derivatives(self, t: Float[Tensor, "*any"]) -> tuple[Float[Tensor, "*any"], Float[Tensor, "*any"]]:
        """`(d alpha / dt, d sigma / dt)`, exact. VP's `d sigma / dt` is infinite at `t = 0`."""
        # Without auxiliary output jvp returns (values, tangents), which its annotation leaves open.
        return torch.func.jvp(self, (t,), (torch.ones_like(t),))[1]

    def lmbda(self, t: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        """`log(alpha / sigma)`; infinite where the scale of the signal or of the noise is exactly 0."""
        alpha, sigma = self(t)
        return alpha.log() - sigma.log()

    @cached_property
    def t_range(self) -> tuple[float, float]:
        """`(t_min, t_max)` inside which `|lmbda| <= 7`: the times worth training on."""
        ends = self.t_of_lmbda(torch.tensor([_LMBDA_RANGE, -_LMBDA_RANGE], dtype=torch.float64))
        return float(ends[0]), float(ends[1])


def bisect_lmbda(schedule: Schedule, lmbda: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Invert `schedule.lmbda` by 60 bisections in float64, for schedules without a closed inverse."""
    target = lmbda.to(torch.float64)
    low, high = torch.zeros_like(target), torch.ones_like(target)
    for _ in range(60):
        middle = (low + high) / 2
        cleaner = schedule.lmbda(middle) > target  # too clean at `middle`: the answer lies later
        low, high = torch.where(cleaner, middle, low), torch.where(cleaner, high, middle)
    return ((low + high) / 2).to(lmbda.dtype)


@final
class VPSchedule(Schedule):
    """Variance preserving: `alpha^2 + sigma^2 = 1`, `-2 log alpha = beta_min t + (beta_max - beta_min) t^2 / 2`.

    Args:
        beta_min: Rate of noise at `t = 0`.
        beta_max: Rate of noise at `t = 1`.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        if not 0 < beta_min < beta_max:
            raise ConfigError(f"VPSchedule needs 0 < beta_min < beta_max, got {beta_min} and {beta_max}")
        self.beta_min, self.beta_max = beta_min, beta_max

    def _integral(self, t: Tensor) -> Tensor:
        return t * (self.beta_min + 0.5 * (self.beta_max - self.beta_min) * t)

    def alpha(self, t: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        return torch.exp(-0.5 * self._integral(t))

    def sigma(self, t: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        return torch.sqrt(-torch.expm1(-self._integral(t)))

    def t_of_lmbda(self, lmbda: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        integral = F.softplus(-2 * lmbda, threshold=40.0)  # alpha^2 = sigmoid(2 lmbda)
        slope = self.beta_max - self.beta_min
        # The root of the quadratic in the form that loses no digits for small `integral`.
        t = 2 * integral / (self.beta_min + torch.sqrt(self.beta_min**2 + 2 * slope * integral))
        return t.clamp(0.0, 1.0)


@final
class CosineSchedule(Schedule):
    """`sigma / alpha = exp(-shift) tan(pi t / 2)` with `alpha^2 + sigma^2 = 1`; `alpha(1) = sigma(0) = 0` exactly.

    Args:
        shift: Added to `lmbda` at every time: negative means more noise, as larger grids need.
    """

    def __init__(self, *, shift: float = 0.0) -> None:
        self.shift = shift

    def _sides(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # sin(pi (1 - t) / 2) rather than cos(pi t / 2), which is not 0 at t = 1 in floating point.
        signal, noise = torch.sin(math.pi / 2 * (1 - t)), math.exp(-self.shift) * torch.sin(math.pi / 2 * t)
        return signal, noise, torch.hypot(signal, noise)

    def alpha(self, t: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        signal, _, norm = self._sides(t)
        return signal / norm

    def sigma(self, t: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        _, noise, norm = self._sides(t)
        return noise / norm

    def t_of_lmbda(self, lmbda: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        return (2 / math.pi * torch.atan(torch.exp(self.shift - lmbda))).clamp(0.0, 1.0)


@final
class RectifiedSchedule(Schedule):
    """Straight lines from data to noise: `alpha = 1 - t`, `sigma = t` (rectified flow, flow matching).

    Args:
        shift: Added to `lmbda`, keeping `alpha + sigma = 1`: negative means more noise, as larger grids need.
    """

    def __init__(self, *, shift: float = 0.0) -> None:
        self.shift = shift

    def _sides(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        signal, noise = 1 - t, math.exp(-self.shift) * t
        return signal, noise, signal + noise

    def alpha(self, t: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        signal, _, norm = self._sides(t)
        return signal / norm

    def sigma(self, t: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        _, noise, norm = self._sides(t)
        return noise / norm

    def t_of_lmbda(self, lmbda: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        return torch.sigmoid(self.shift - lmbda)


@final
class EDMSchedule(Schedule):
    """Variance exploding with Karras spacing: `alpha = 1`, `sigma^(1/rho)` linear in `t` (2206.00364, Eq. 5).

    Args:
        sigma_min: Noise at `t = 0`, in units of the latent's standard deviation. Not 0: samplers end with a denoising.
        sigma_max: Noise at `t = 1`.
        rho: 7 puts most steps at low noise.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> None:
        _check_sigmas("EDMSchedule", sigma_min, sigma_max)
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho
        self._low, self._high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)

    def alpha(self, t: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        return torch.ones_like(t)

    def sigma(self, t: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        return (self._low + t * (self._high - self._low)) ** self.rho

    def t_of_lmbda(self, lmbda: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        return ((torch.exp(-lmbda / self.rho) - self._low) / (self._high - self._low)).clamp(0.0, 1.0)


@final
class VESchedule(Schedule):
    """Variance exploding, geometric: `alpha = 1`, `sigma = sigma_min (sigma_max / sigma_min)^t`.

    Args:
        sigma_min: Noise at `t = 0`, in units of the latent's standard deviation. Not 0: samplers end with a denoising.
        sigma_max: Noise at `t = 1`.
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        _check_sigmas("VESchedule", sigma_min, sigma_max)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self._low, self._log_ratio = math.log(sigma_min), math.log(sigma_max / sigma_min)

    def alpha(self, t: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        return torch.ones_like(t)

    def sigma(self, t: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        return torch.exp(self._low + t * self._log_ratio)

    def t_of_lmbda(self, lmbda: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        return ((-lmbda - self._low) / self._log_ratio).clamp(0.0, 1.0)


def _check_sigmas(name: str, sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max:
        raise ConfigError(f"{name} needs 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
