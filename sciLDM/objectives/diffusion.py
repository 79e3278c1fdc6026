r"""Denoising score matching in x0 space: `w(lmbda) |x0_hat(x_t, t) - x|^2`, the mean over the cells that exist.

One loss serves every parametrisation, because the weight is stated for the clean estimate (`sciLDM.weighting`).
With self-conditioning (Chen et al. 2023, arXiv:2208.04202) a share of the batches first estimates `x` without help and
then again with that estimate as input; no gradient flows through the first pass.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sciLDM.conditions import Condition, drop_conditions
from sciLDM.denoiser import NetDenoiser
from sciLDM.parametrisation import expand
from sciLDM.schedules import LMBDA_LIMIT
from sciLDM.timesteps import LogitNormalTime, TimeSampler
from sciLDM.types import Cond
from sciLDM.weighting import UniformV, Weighting

__all__ = ["DiffusionObjective", "Draw"]


@dataclass(frozen=True)
class Draw:
    """All the randomness of one training batch, drawn beforehand so that validation can repeat it exactly.

    Attributes:
        u: Stratified uniforms for the noise level, `[batch]`.
        eps: Standard normal noise, of the latent's shape.
        drops: Uniforms for condition dropout, `[batch, 1 + conditions]`.
        self_condition: Whether this batch uses its own first estimate.
    """

    u: Float[Tensor, "batch"]
    eps: Float[Tensor, "batch channel *shape"]
    drops: Float[Tensor, "batch entries"]
    self_condition: bool


@final
class DiffusionObjective:
    """Loss of a `NetDenoiser` on normalised latents.

    Args:
        times: Distribution of training noise levels.
        weighting: Weight of the squared error of the clean estimate.
        self_condition: Share of batches trained with self-conditioning; 0 switches it off.
        all_together: Probability of dropping every droppable condition at once.
    """

    def __init__(
        self,
        *,
        times: TimeSampler | None = None,
        weighting: Weighting | None = None,
        self_condition: float = 0.5,
        all_together: float = 0.1,
    ) -> None:
        self.times = times or LogitNormalTime()
        self.weighting = weighting or UniformV()
        self.self_condition = self_condition
        self.all_together = all_together

    def draw(
        self, z: Float[Tensor, "batch channel *shape"], conditions: int, generator: torch.Generator
    ) -> Draw:
        """Random numbers for one batch; the noise levels are stratified over it."""
        batch = z.shape[0]
        options = {"generator": generator, "device": generator.device}
        strata = torch.randperm(batch, **options)
        u = (strata + torch.rand(batch, **options)) / batch
        return Draw(
            u=u.to(z.device),
            eps=torch.randn(z.shape, **options).to(z),
            drops=torch.rand(batch, 1 + conditions, **options).to(z.device),
            self_condition=bool(torch.rand((), **options) < self.self_condition),
        )

    def __call__(
        self,
        denoiser: NetDenoiser,
        z: Float[Tensor, "batch channel *shape"],
        draw: Draw,
        *,
        cond: Cond | None = None,
        conditions: tuple[Condition, ...] = (),
        mask: Bool[Tensor, "batch *shape"] | None = None,
        progress: float = 1.0,
    ) -> Float[Tensor, "batch"]:
        """Weighted squared error of the clean estimate, averaged over cells and channels of each sample."""
        t = self.times(draw.u, denoiser.schedule, progress)
        labels: Mapping[str, Tensor] = drop_conditions(
            cond or {}, conditions, draw.drops, all_together=self.all_together
        )
        return self.at(denoiser, z, t, draw, cond=labels, mask=mask)

    def at(
        self,
        denoiser: NetDenoiser,
        z: Float[Tensor, "batch channel *shape"],
        t: Float[Tensor, "batch"],
        draw: Draw,
        *,
        cond: Cond | None = None,
        mask: Bool[Tensor, "batch *shape"] | None = None,
    ) -> Float[Tensor, "batch"]:
        """The loss at given times, conditions as they are: what validation uses, noise level by noise level."""
        alpha, sigma = denoiser.schedule(t)
        x_t = expand(alpha, z) * z + expand(sigma, z) * draw.eps
        previous = None
        if draw.self_condition:
            with torch.no_grad():
                previous = denoiser(x_t, t, cond, mask).detach()
        error = (denoiser(x_t, t, cond, mask, previous) - z).square()
        if mask is None:
            mean = error.flatten(1).mean(dim=1)
        else:
            cells = mask.flatten(1).sum(dim=1).clamp_min(1) * z.shape[1]
            mean = (error * mask[:, None]).flatten(1).sum(dim=1) / cells
        lmbda = denoiser.schedule.lmbda(t).clamp(-LMBDA_LIMIT, LMBDA_LIMIT)
        return self.weighting(lmbda) * mean
