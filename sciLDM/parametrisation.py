r"""What a network predicts, as rows of one 2x2 table.

Every prediction is linear in data and noise, `y = a x + b eps`, and so is the state, `x_t = alpha x + sigma eps`.
Given `x_t`, any prediction therefore determines any other by solving

    [alpha sigma] [ x ]   [x_t]
    [  a     b  ] [eps] = [ y ]      =>   x = (b x_t - sigma y) / (alpha b - sigma a).

| prediction | a | b |
|---|---|---|
| `X0` | 1 | 0 |
| `Eps` | 0 | 1 |
| `V` | -sigma / n | alpha / n, with n^2 = alpha^2 + sigma^2 (Salimans & Ho 2022, arXiv:2202.00512) |
| `Score` | 0 | -1 / sigma |
| `Velocity` | d alpha / dt | d sigma / dt |

Where `alpha(1) = 0` or `sigma(0) = 0` would divide by zero, `lmbda` is held inside +-`LMBDA_LIMIT`.
"""

from abc import ABC, abstractmethod
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.schedules import LMBDA_LIMIT, Schedule

__all__ = ["X0", "Eps", "Parametrisation", "Score", "V", "Velocity", "convert", "expand", "safe_scales"]

_FLOOR = 2.718281828459045**-LMBDA_LIMIT

Batch = Float[Tensor, "batch"]
Sample = Float[Tensor, "batch *shape"]


class Parametrisation(ABC):
    """One row of the table. Write `coefficients`; conversions and network preconditioning follow."""

    @abstractmethod
    def coefficients(self, schedule: Schedule, t: Batch) -> tuple[Batch, Batch]:
        """`(a, b)` such that the prediction is `a x + b eps`; finite at `t = 0` and `t = 1`."""

    def to_x0(self, y: Sample, x_t: Sample, t: Batch, schedule: Schedule) -> Sample:
        """Clean estimate that the prediction `y` stands for."""
        (alpha, sigma), (a, b) = safe_scales(schedule, t), self.coefficients(schedule, t)
        det = alpha * b - sigma * a
        return expand(b / det, x_t) * x_t - expand(sigma / det, x_t) * y

    def from_x0(self, x0: Sample, x_t: Sample, t: Batch, schedule: Schedule) -> Sample:
        """Prediction that stands for the clean estimate `x0`; the inverse of `to_x0`."""
        (alpha, sigma), (a, b) = safe_scales(schedule, t), self.coefficients(schedule, t)
        # eps = (x_t - alpha x0) / sigma, substituted into y = a x0 + b eps.
        return expand(b / sigma, x_t) * x_t + expand((a * sigma - b * alpha) / sigma, x_t) * x0

    def network(self, schedule: Schedule, t: Batch) -> tuple[Batch, Batch, Batch, Batch]:
        """Preconditioning `(c_in, c_skip, c_out, c_noise)`: `x0_hat = c_skip x_t + c_out F(c_in x_t, c_noise)`.

        For data of unit variance the input of `F` and the target of `F` (the prediction divided by its own standard
        deviation) both have unit variance. For `V` this is EDM's choice (arXiv:2206.00364, Table 1) carried over to
        any `alpha`, up to the sign of `F`. `c_noise = lmbda / 4`, bounded, makes the network a function of the noise
        level alone, so that it can be reused under another schedule.
        """
        (alpha, sigma), (a, b) = safe_scales(schedule, t), self.coefficients(schedule, t)
        det = alpha * b - sigma * a
        c_in = torch.rsqrt(alpha**2 + sigma**2)
        return c_in, b / det, -sigma * torch.hypot(a, b) / det, (alpha.log() - sigma.log()) / 4


@final
class X0(Parametrisation):
    """The clean data: `y = x`."""

    def coefficients(self, schedule: Schedule, t: Batch) -> tuple[Batch, Batch]:
        return torch.ones_like(t), torch.zeros_like(t)


@final
class Eps(Parametrisation):
    """The noise: `y = eps`. Ill-conditioned at high noise, where `x = (x_t - sigma y) / alpha`."""

    def coefficients(self, schedule: Schedule, t: Batch) -> tuple[Batch, Batch]:
        return torch.zeros_like(t), torch.ones_like(t)


@final
class V(Parametrisation):
    """`y = (alpha eps - sigma x) / sqrt(alpha^2 + sigma^2)`: well conditioned at every noise level; the default."""

    def coefficients(self, schedule: Schedule, t: Batch) -> tuple[Batch, Batch]:
        alpha, sigma = safe_scales(schedule, t)
        norm = torch.hypot(alpha, sigma)
        return -sigma / norm, alpha / norm


@final
class Score(Parametrisation):
    """`y = grad log p(x_t) = -eps / sigma`. A network is asked for `sigma y`, whose scale does not explode."""

    def coefficients(self, schedule: Schedule, t: Batch) -> tuple[Batch, Batch]:
        _, sigma = safe_scales(schedule, t)
        return torch.zeros_like(t), -1 / sigma


@final
class Velocity(Parametrisation):
    """`y = dx_t / dt = alpha' x + sigma' eps`: what flow matching regresses."""

    def coefficients(self, schedule: Schedule, t: Batch) -> tuple[Batch, Batch]:
        # VP's sigma' is infinite at t = 0; inside t_range all derivatives are finite.
        return schedule.derivatives(t.clamp(*schedule.t_range))


def convert(
    y: Sample, x_t: Sample, t: Batch, schedule: Schedule, source: Parametrisation, target: Parametrisation
) -> Sample:
    """Turn a prediction `y` of kind `source` at `x_t` into the prediction of kind `target`."""
    return target.from_x0(source.to_x0(y, x_t, t, schedule), x_t, t, schedule)


def safe_scales(
    schedule: Schedule, t: Float[Tensor, "*any"]
) -> tuple[Float[Tensor, "*any"], Float[Tensor, "*any"]]:
    """`(alpha, sigma)` with the vanishing one raised so that `|lmbda| <= LMBDA_LIMIT`: safe to divide by."""
    alpha, sigma = schedule(t)
    return torch.maximum(alpha, _FLOOR * sigma), torch.maximum(sigma, _FLOOR * alpha)


def expand(coefficient: Batch, x: Sample) -> Float[Tensor, "batch *ones"]:
    """Give a per-sample coefficient the rank and type of `x`, so that it multiplies sample by sample."""
    return coefficient.to(x.dtype).reshape(-1, *([1] * (x.ndim - 1)))
