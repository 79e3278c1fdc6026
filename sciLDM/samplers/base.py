r"""What all samplers share: the start, the noise, and the variance-normalised coordinates they step in.

Any schedule becomes variance preserving by `y = x_t / sqrt(alpha^2 + sigma^2)`:

    y = a x + s eps,    a = cos(theta), s = sin(theta), theta = atan(sigma / alpha),

with `theta` from pi/2 (noise) to 0 (clean). In these coordinates the probability-flow ODE is `dy / dtheta = v` with
`v = a eps - s x = (a y - x) / s` (TrigFlow, Lu & Song 2024, arXiv:2410.11081), finite at both ends; for data of unit
variance `v = 0`. Each solver is written once, in `(a, s)`, and serves every schedule.

Samplers assume latents of roughly unit variance: the start is `x_1 ~ N(0, alpha(1)^2 + sigma(1)^2)`, `y ~ N(0, 1)`.
Where `alpha(1) > 0`, the state should also have the mean `a E[x]`; the first estimate of the clean latent supplies it.
The last call of the denoiser, at the least noisy level of the grid, is returned as it is: the clean state is the
estimate `x0_hat` there. Samplers know nothing of conditions, masks or observations; those are in the denoiser.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.denoiser import Denoiser
from sciLDM.errors import ConfigError
from sciLDM.rng import NoiseSource
from sciLDM.samplers.grids import TimeGrid
from sciLDM.schedules import Schedule

__all__ = ["CLEAN", "Callback", "Level", "Run", "Sampler", "level_at"]

Callback: TypeAlias = Callable[[int, int, Tensor], None]
"""Called as `callback(step, total, x0_hat)` after each step, `step` counting from 1."""


@dataclass(frozen=True)
class Level:
    """One noise level: time, normalised scales `a^2 + s^2 = 1`, and the norm that leads back to `x_t = norm y`."""

    t: float
    a: float
    s: float
    norm: float

    @property
    def theta(self) -> float:
        """Angle, 0 when clean and pi/2 when pure noise."""
        return math.atan2(self.s, self.a)


CLEAN = Level(t=0.0, a=1.0, s=0.0, norm=1.0)
"""Where every sampler ends, also under schedules that have noise left at `t = 0`."""


def level_at(schedule: Schedule, t: float) -> Level:
    """The level at time `t`, in float64."""
    alpha, sigma = (float(scale) for scale in schedule(torch.tensor(t, dtype=torch.float64)))
    norm = math.hypot(alpha, sigma)
    return Level(t=t, a=alpha / norm, s=sigma / norm, norm=norm)


@dataclass(frozen=True)
class Run:
    """One call of a sampler: the denoiser, the levels, and the noise, all in normalised coordinates."""

    denoiser: Denoiser
    levels: tuple[Level, ...]
    shape: tuple[int, ...]
    source: NoiseSource
    ids: Sequence[int]
    temperature: float
    device: torch.device | str | None
    dtype: torch.dtype
    callback: Callback | None

    @property
    def steps(self) -> list[tuple[int, Level, Level]]:
        """`(i, from, to)` for every step but the last, which is the jump to the clean state."""
        return [(i, *pair) for i, pair in enumerate(pairwise(self.levels))]

    def noise(self, stream: str) -> Tensor:
        """Fresh normal noise of standard deviation `temperature`."""
        draw = self.source.normal(self.ids, self.shape, stream=stream, device=self.device, dtype=self.dtype)
        return draw if self.temperature == 1.0 else self.temperature * draw

    def begin(self, i: int, y: Tensor, level: Level) -> tuple[Tensor, Tensor]:
        """`(y, x0_hat)` at the start of step `i`; the very first estimate gives the start its mean (at no cost)."""
        x0 = self.denoise(y, level)
        return (y + level.a * x0 if i == 0 and len(self.levels) > 1 else y), x0

    def finish(self, y: Tensor) -> Tensor:
        """The last call: `x0_hat` at the least noisy level, which is the sample."""
        x0 = self.denoise(y, self.levels[-1])
        self.report(len(self.levels), x0)
        return x0

    def denoise(self, y: Tensor, level: Level) -> Tensor:
        """`x0_hat` at normalised state `y`."""
        t = torch.full((y.shape[0],), level.t, dtype=y.dtype, device=y.device)
        return self.denoiser(level.norm * y, t)

    def velocity(self, y: Tensor, level: Level, x0: Tensor) -> Tensor:
        """`dy / dtheta` given the clean estimate."""
        return (level.a * y - x0) / level.s

    def report(self, step: int, x0: Tensor) -> None:
        """Tell the callback that `step` steps are done."""
        if self.callback is not None:
            self.callback(step, len(self.levels), x0)


class Sampler(ABC):
    """Draws latents from a denoiser. Write `integrate`; start, grid, noise and reporting are shared.

    Args:
        steps: Number of noise levels at which the denoiser is called.
        grid: Where those levels lie.
        temperature: Standard deviation of every noise drawn, the start included; below 1 gives less varied samples.

    Raises:
        ConfigError: `steps` or `temperature` is out of range.
    """

    documented_steps: ClassVar[int]
    """Steps at which, with an exact denoiser, mean and standard deviation are right to 1 %."""

    def __init__(self, *, steps: int, grid: TimeGrid, temperature: float = 1.0) -> None:
        if steps < 1:
            raise ConfigError(f"a sampler needs at least 1 step, got {steps}")
        if temperature < 0:
            raise ConfigError(f"temperature must not be negative, got {temperature}; 1 is unbiased sampling")
        self.steps, self.grid, self.temperature = steps, grid, temperature

    def with_steps(self, steps: int) -> "Sampler":
        """The same sampler with another number of steps."""
        if steps < 1:
            raise ConfigError(f"a sampler needs at least 1 step, got {steps}")
        other = copy.copy(self)
        other.steps = steps
        return other

    @abstractmethod
    def integrate(self, run: Run, y: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """From normalised noise `y` at `run.levels[0]` to the clean latent."""

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        shape: tuple[int, ...],
        *,
        noise: NoiseSource,
        ids: Sequence[int],
        device: torch.device | str | None = None,
        callback: Callback | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "batch *shape"]:
        """One clean latent for each identifier; sample `i` depends on `(noise.seed, ids[i])` alone.

        Args:
            denoiser: Any `Denoiser`, guided or not.
            shape: Shape of one latent.
            noise: Source of all randomness.
            ids: Identifiers of the samples.
            device: Where to compute.
            callback: Called after each step with `(step, total, x0_hat)`.
            dtype: Type of the state; float64 for studies of the solver itself.
        """
        times = self.grid(denoiser.schedule, self.steps).tolist()
        if any(later >= earlier for earlier, later in pairwise(times)):
            raise ConfigError(
                f"{type(self.grid).__name__} gave times that do not decrease: {times}; use fewer steps"
            )
        run = Run(
            denoiser=denoiser,
            levels=tuple(level_at(denoiser.schedule, t) for t in times),
            shape=tuple(shape),
            source=noise,
            ids=ids,
            temperature=self.temperature,
            device=device,
            dtype=dtype,
            callback=callback,
        )
        return self.integrate(run, run.noise("start"))
