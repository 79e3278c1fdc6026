r"""Log-likelihood by the probability-flow ODE (Chen et al. 2018, arXiv:1806.07366; Song et al. 2021, 2011.13456).

In normalised coordinates (`sciLDM.samplers.base`) and with `lmbda` as time, the ODE and the change of density are

    dy / dlmbda = a (x0_hat - a y),        d log p / dlmbda = -a (div_y x0_hat - a dim),

integrated from almost clean to pure noise by the classical Runge-Kutta method of fourth order, four calls a step.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.denoiser import Denoiser
from sciLDM.errors import ConfigError
from sciLDM.rng import NoiseSource
from sciLDM.samplers.base import level_at

__all__ = ["log_likelihood"]

_LMBDA_RANGE = (
    7.0  # beyond it the density changes by less than 1e-5 nats per dimension for standardised latents
)


@final
@dataclass(frozen=True)
class _Flow:
    """Right-hand side of the ODE: `(dy / dlmbda, divergence)`."""

    denoiser: Denoiser
    probes: Tensor | None  # [probes, batch, *shape], or None for the exact divergence

    def __call__(self, y: Tensor, lmbda: float) -> tuple[Tensor, Tensor]:
        schedule = self.denoiser.schedule
        t = float(schedule.t_of_lmbda(torch.tensor(lmbda, dtype=torch.float64)))
        level = level_at(schedule, t)
        with torch.enable_grad():
            y = y.detach().requires_grad_()
            x0 = self.denoiser(level.norm * y, torch.full((len(y),), t, dtype=y.dtype, device=y.device))
            trace = self._trace(x0, y)
        dim = math.prod(y.shape[1:])
        return level.a * (x0 - level.a * y).detach(), level.a * (trace - level.a * dim)

    def _trace(self, x0: Tensor, y: Tensor) -> Tensor:
        """Trace of `d x0 / d y` of each sample; samples do not mix, so one backward pass serves the batch."""
        directions = list(self._directions(y))
        total = torch.zeros(len(y), dtype=y.dtype, device=y.device)
        for k, direction in enumerate(directions):
            (row,) = torch.autograd.grad(x0, y, direction, retain_graph=k + 1 < len(directions))
            total = total + (row * direction).flatten(1).sum(1)
        return total if self.probes is None else total / len(self.probes)

    def _directions(self, y: Tensor) -> Iterator[Tensor]:
        if self.probes is not None:
            yield from self.probes
            return
        for d in range(math.prod(y.shape[1:])):
            unit = torch.zeros_like(y)
            unit.view(len(y), -1)[:, d] = 1.0
            yield unit


def log_likelihood(
    denoiser: Denoiser,
    x0: Float[Tensor, "batch *shape"],
    *,
    steps: int = 64,
    probes: int | None = None,
    noise: NoiseSource | None = None,
    ids: Sequence[int] | None = None,
) -> Float[Tensor, "batch"]:
    """Log-density of clean latents under the model [nats]. Accurate to 1e-3 nats per dimension at the default steps.

    For data on a manifold (no density) or with padding the number means nothing. Use float64 where dimensions are few.

    Args:
        denoiser: Any `Denoiser`; a guided one gives the density that its deterministic sampler draws from.
        x0: Clean latents.
        steps: Runge-Kutta steps.
        probes: Random directions for the divergence (Hutchinson's estimate, unbiased); None for the exact one, which
            takes a backward pass per dimension.
        noise: Source of the probes.
        ids: Identifiers of the samples, for the probes.

    Raises:
        ConfigError: `probes` without `noise` and `ids`, or fewer than one step or probe.
    """
    if steps < 1:
        raise ConfigError(f"log_likelihood needs at least 1 step, got {steps}")
    low, high = _lmbda_range(denoiser)
    flow = _Flow(denoiser, _rademacher(x0, probes, noise, ids))
    y, gained = x0.detach(), x0.new_zeros(len(x0))
    h = (low - high) / steps
    with torch.no_grad():
        for i in range(steps):
            lmbda = high + i * h
            k1, d1 = flow(y, lmbda)
            k2, d2 = flow(y + h / 2 * k1, lmbda + h / 2)
            k3, d3 = flow(y + h / 2 * k2, lmbda + h / 2)
            k4, d4 = flow(y + h * k3, lmbda + h)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            gained = gained + h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
        t = float(denoiser.schedule.t_of_lmbda(torch.tensor(low, dtype=torch.float64)))
        end = level_at(denoiser.schedule, t)
        estimate = denoiser(end.norm * y, torch.full((len(y),), t, dtype=y.dtype, device=y.device))
        # At the noisy end y ~ N(a E[x], 1) up to a^2; the estimate there is E[x] up to a.
        remainder = (y - end.a * estimate).flatten(1)
        terminal = -0.5 * (remainder**2 + math.log(2 * math.pi)).sum(1)
    return terminal + gained


def _lmbda_range(denoiser: Denoiser) -> tuple[float, float]:
    ends = denoiser.schedule.lmbda(torch.tensor([1.0, 0.0], dtype=torch.float64))
    return max(-_LMBDA_RANGE, float(ends[0])), min(_LMBDA_RANGE, float(ends[1]))


def _rademacher(
    x0: Tensor, probes: int | None, noise: NoiseSource | None, ids: Sequence[int] | None
) -> Tensor | None:
    if probes is None:
        return None
    if probes < 1 or noise is None or ids is None:
        raise ConfigError(
            "Hutchinson's estimate needs probes >= 1 and both noise and ids; or leave probes out"
        )
    shape = tuple(x0.shape[1:])
    draws = [noise.uniform(ids, shape, f"probe {k}", device=x0.device, dtype=x0.dtype) for k in range(probes)]
    # Signs have the least variance of all probes: their squares are exactly 1.
    return torch.stack(draws).sub(0.5).sign()
