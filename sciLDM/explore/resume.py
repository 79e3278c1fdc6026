"""Any sampler, started part-way: from a noisy state at some level instead of pure noise.

A sampler adds `a x0_hat` to its start, which gives pure noise the mean of the data. A state part-way has that mean
already, so it is handed over without it, together with the estimate that was made of it. The first call of the denoiser
therefore happens here, and the number of calls does not change.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.denoiser import Denoiser
from sciLDM.errors import ConfigError
from sciLDM.rng import NoiseSource
from sciLDM.samplers import Callback, Sampler
from sciLDM.samplers.base import Run, level_at

__all__ = ["resume"]


@final
class _Resumed(Denoiser):
    """A denoiser whose first estimate is known."""

    def __init__(self, denoiser: Denoiser, t: float, x0: Tensor) -> None:
        super().__init__(denoiser.schedule)
        self.denoiser, self.t, self.first = denoiser, t, x0
        self.begun = False

    def forward(
        self, x_t: Float[Tensor, "batch *shape"], t: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch *shape"]:
        """`x0_hat`."""
        if self.begun:
            return self.denoiser(x_t, t)
        if abs(float(t[0]) - self.t) > 1e-6:
            raise ConfigError("a sampler that adds noise before its first call (churn) cannot start part-way")
        self.begun = True
        return self.first


@torch.no_grad()
def resume(
    sampler: Sampler,
    denoiser: Denoiser,
    z: Float[Tensor, "batch *shape"],
    t: float,
    *,
    noise: NoiseSource,
    ids: Sequence[int],
    callback: Callback | None = None,
) -> Float[Tensor, "batch *shape"]:
    """Noise clean latents to time `t` and denoise them; levels below `t` are those of the sampler's own grid.

    Args:
        sampler: Any; its temperature scales the noise here too.
        denoiser: Any `Denoiser`.
        z: Clean latents of roughly unit variance.
        t: Where to start, in (0, 1].
        noise: Source of all randomness.
        ids: Identifiers; sample `i` depends on `(noise.seed, ids[i])` and its latent alone.
        callback: As for samplers.

    Raises:
        ConfigError: A sampler that adds noise before its first call.
    """
    run = Run(
        denoiser=denoiser,
        levels=tuple(level_at(denoiser.schedule, time) for time in _times(sampler, denoiser, t)),
        shape=tuple(z.shape[1:]),
        source=noise,
        ids=ids,
        temperature=sampler.temperature,
        device=z.device,
        dtype=z.dtype,
        callback=callback,
    )
    level = run.levels[0]
    y = level.a * z + level.s * run.noise("start")
    x0 = run.denoise(y, level)
    known = Run(**{**vars(run), "denoiser": _Resumed(denoiser, level.t, x0)})
    # With a single level nothing is added to the start: the estimate is the result.
    return sampler.integrate(known, y - level.a * x0 if len(run.levels) > 1 else y)


def _times(sampler: Sampler, denoiser: Denoiser, t: float) -> list[float]:
    schedule = denoiser.schedule
    below = [time for time in sampler.grid(schedule, sampler.steps).tolist() if time < t]
    if len(below) > 1:
        lmbda = schedule.lmbda(torch.tensor([t, *below], dtype=torch.float64)).tolist()
        # A first step much shorter than the next spoils what multistep samplers extrapolate.
        if lmbda[1] - lmbda[0] < 0.5 * (lmbda[2] - lmbda[1]):
            below = below[1:]
    times = [t, *below]
    assert all(later < earlier for earlier, later in pairwise(times))
    return times
