r"""Noise levels of a few-step sampler, and the bridge from one to the next.

With `r = alpha_t / alpha_s` the forward process from `s` to a noisier `t` is `z_t = r z_s + sqrt(sigma_t^2 - r^2
sigma_s^2) eps`; given both ends its state at `s` is

    z_s | z_t, x ~ N(r sigma_s^2 / sigma_t^2 z_t + alpha_s k x, sigma_s^2 k),    k = 1 - r^2 sigma_s^2 / sigma_t^2,

(Kingma et al. 2021, arXiv:2107.00630, Eq. 24 on). `sciLDM.samplers.DDIM(eta=1)` makes the same step.
"""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.parametrisation import expand
from sciLDM.samplers import TimeGrid
from sciLDM.schedules import Schedule
from sciLDM.timesteps import TimeSampler

__all__ = ["Segments", "bridge", "noised"]

_TABLE = 4096


@final
class Segments:
    """The stretches of time between the calls of a few-step sampler, the last one down to the cleanest level.

    Levels inside a stretch are drawn as the teacher's training noise levels were, where it knows most.

    Args:
        schedule: Noise schedule.
        grid: Where the sampler calls its denoiser.
        steps: Numbers of calls; with several, each sample of a batch belongs to one of them.
        times: Distribution of the teacher's training noise levels.
        lmbda_max: The cleanest level.
    """

    def __init__(
        self,
        schedule: Schedule,
        grid: TimeGrid,
        steps: tuple[int, ...],
        times: TimeSampler,
        *,
        lmbda_max: float,
    ) -> None:
        low = float(schedule.t_of_lmbda(torch.tensor(lmbda_max, dtype=torch.float64)))
        starts = [grid(schedule, n) for n in steps]
        # Shares of the stretches: those of each number of calls together weigh the same.
        self.starts = torch.cat(starts)
        self.ends = torch.cat([torch.cat([s[1:], s.new_tensor([low])]) for s in starts])
        self.weights = torch.cat([torch.full((n,), 1 / n, dtype=torch.float64) for n in steps]).cumsum(
            0
        ) / len(steps)
        u = (torch.arange(_TABLE, dtype=torch.float64) + 0.5) / _TABLE
        self._times = times(u, schedule).contiguous()

    def draw(
        self, u: Float[Tensor, "batch"], v: Float[Tensor, "batch"]
    ) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch"]]:
        """Start `t` of a stretch and a level `s` inside it, `s < t`, from two uniform numbers a sample."""
        which = torch.searchsorted(self.weights, u.double().cpu()).clamp(max=len(self.starts) - 1)
        start, end = self.starts[which], self.ends[which]
        low, high = (torch.searchsorted(self._times, t) for t in (end, start))
        v = v.double().cpu()
        inside = low + v * (high - low)
        index = inside.floor().long().clamp(max=_TABLE - 1)
        after = (index + 1).clamp(max=_TABLE - 1)
        s = torch.lerp(self._times[index], self._times[after], inside - index)
        # Where the teacher was hardly trained the stretch holds few levels: any of it will do.
        s = torch.where(high - low < 2, end + v * (start - end), s)
        s = torch.minimum(torch.maximum(s, end), end + 0.999 * (start - end))
        return start.to(u), s.to(u)


def noised(
    z: Float[Tensor, "batch channel *shape"],
    t: Float[Tensor, "batch"],
    eps: Float[Tensor, "batch channel *shape"],
    schedule: Schedule,
) -> Float[Tensor, "batch channel *shape"]:
    """`alpha_t z + sigma_t eps`."""
    alpha, sigma = schedule(t)
    return expand(alpha, z) * z + expand(sigma, z) * eps


def bridge(
    z_t: Float[Tensor, "batch channel *shape"],
    x: Float[Tensor, "batch channel *shape"],
    t: Float[Tensor, "batch"],
    s: Float[Tensor, "batch"],
    eps: Float[Tensor, "batch channel *shape"],
    schedule: Schedule,
) -> Float[Tensor, "batch channel *shape"]:
    """The state at `s` given that at a noisier `t` and the clean end, with fresh noise `eps`."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    keep = alpha_t / alpha_s * (sigma_s / sigma_t).square()
    lost = (1 - (alpha_t * sigma_s / (alpha_s * sigma_t)).square()).clamp_min(0.0)
    return expand(keep, z_t) * z_t + expand(alpha_s * lost, x) * x + expand(sigma_s * lost.sqrt(), x) * eps
