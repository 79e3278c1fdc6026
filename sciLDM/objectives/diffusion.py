r"""Denoising score matching in x0 space: `w(lmbda) |x0_hat(x_t, t) - x|^2`, the mean over the cells that exist.

One loss serves every parametrisation, because the weight is stated for the clean estimate (`sciLDM.weighting`).
With self-conditioning (Chen et al. 2023, arXiv:2208.04202) a share of the batches first estimates `x` without help and
then again with that estimate as input; no gradient flows through the first pass.

With a teacher its estimate takes the place of `x` (knowledge distillation, Hinton et al. 2015, arXiv:1503.02531): the
target is then a mean and no sample, so that gradients are far less noisy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sciLDM.conditions import Condition, drop_conditions
from sciLDM.denoiser import NetDenoiser
from sciLDM.errors import ConfigError
from sciLDM.objectives.context import RandomContext, spread
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
        context: Uniforms for which frames are revealed, `[batch, 4 + frames]`; None without random context.
    """

    u: Float[Tensor, "batch"]
    eps: Float[Tensor, "batch channel *shape"]
    drops: Float[Tensor, "batch entries"]
    self_condition: bool
    context: Float[Tensor, "batch columns"] | None = None


@final
class DiffusionObjective:
    """Loss of a `NetDenoiser` on normalised latents.

    Args:
        times: Distribution of training noise levels.
        weighting: Weight of the squared error of the clean estimate.
        self_condition: Share of batches trained with self-conditioning; 0 switches it off.
        all_together: Probability of dropping every droppable condition at once.
        context: Reveals frames of the latent to the network; the revealed cells have no loss.
    """

    def __init__(
        self,
        *,
        times: TimeSampler | None = None,
        weighting: Weighting | None = None,
        self_condition: float = 0.5,
        all_together: float = 0.1,
        context: RandomContext | None = None,
    ) -> None:
        self.times = times or LogitNormalTime()
        self.weighting = weighting or UniformV()
        self.self_condition = self_condition
        self.all_together = all_together
        self.context = context

    def draw(
        self, z: Float[Tensor, "batch channel *shape"], conditions: int, generator: torch.Generator
    ) -> Draw:
        """Random numbers for one batch; the noise levels are stratified over it."""
        batch = z.shape[0]
        options = {"generator": generator, "device": generator.device}
        strata = torch.randperm(batch, **options)
        u = (strata + torch.rand(batch, **options)) / batch
        eps = torch.randn(z.shape, **options).to(z)
        drops = torch.rand(batch, 1 + conditions, **options).to(z.device)
        self_condition = bool(torch.rand((), **options) < self.self_condition)
        context = None
        if self.context is not None:
            context = torch.rand(batch, 4 + z.shape[2], **options).to(z.device)
        return Draw(u.to(z.device), eps, drops, self_condition, context)

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
        teacher: NetDenoiser | None = None,
    ) -> Float[Tensor, "batch"]:
        """Weighted squared error of the clean estimate, averaged over cells and channels of each sample.

        Args:
            teacher: Its estimate is the target; None for the clean latent.
        """
        t = self.times(draw.u, denoiser.schedule, progress)
        labels, scored = self.given(z, draw, cond=cond, conditions=conditions, mask=mask)
        return self.at(denoiser, z, t, draw, cond=labels, mask=mask, scored=scored, teacher=teacher)

    def given(
        self,
        z: Float[Tensor, "batch channel *shape"],
        draw: Draw,
        *,
        cond: Cond | None = None,
        conditions: tuple[Condition, ...] = (),
        mask: Bool[Tensor, "batch *shape"] | None = None,
    ) -> tuple[Mapping[str, Tensor], Bool[Tensor, "batch *shape"] | None]:
        """What the network is told of a batch: labels, some of them dropped, and what of `z` is revealed.

        Returns:
            The labels, and the cells that remain to be estimated; None for all of them.
        """
        labels: Mapping[str, Tensor] = drop_conditions(
            cond or {}, conditions, draw.drops, all_together=self.all_together
        )
        if self.context is None or draw.context is None:
            return labels, mask
        if self.context.name not in {c.name for c in conditions}:
            raise ConfigError(
                f"objective.context reveals frames through the condition {self.context.name!r}, the domain declares "
                f"{sorted(c.name for c in conditions) or 'none'}; remove the option, or use a domain that has it"
            )
        known = self.context.known(draw.context)
        unknown = ~spread(known, z)[:, 0].expand(len(z), *z.shape[2:])
        labels = {**labels, self.context.name: self.context.reveal(z, known)}
        return labels, unknown if mask is None else unknown & mask

    def at(
        self,
        denoiser: NetDenoiser,
        z: Float[Tensor, "batch channel *shape"],
        t: Float[Tensor, "batch"],
        draw: Draw,
        *,
        cond: Cond | None = None,
        mask: Bool[Tensor, "batch *shape"] | None = None,
        scored: Bool[Tensor, "batch *shape"] | None = None,
        teacher: NetDenoiser | None = None,
    ) -> Float[Tensor, "batch"]:
        """The loss at given times, conditions as they are: what validation uses, noise level by noise level.

        Args:
            scored: Cells that the loss is averaged over; those of `mask` when None.
            teacher: Its estimate is the target; None for the clean latent.
        """
        alpha, sigma = denoiser.schedule(t)
        x_t = expand(alpha, z) * z + expand(sigma, z) * draw.eps
        previous = None
        if draw.self_condition:
            with torch.no_grad():
                previous = denoiser(x_t, t, cond, mask).detach()
        target = z
        if teacher is not None:
            with torch.no_grad():
                target = teacher(x_t, t, cond, mask, previous)
        error = (denoiser(x_t, t, cond, mask, previous) - target).square()
        scored = mask if scored is None else scored
        if scored is None:
            mean = error.flatten(1).mean(dim=1)
        else:
            cells = scored.flatten(1).sum(dim=1).clamp_min(1) * z.shape[1]
            mean = (error * scored[:, None]).flatten(1).sum(dim=1) / cells
        lmbda = denoiser.schedule.lmbda(t).clamp(-LMBDA_LIMIT, LMBDA_LIMIT)
        return self.weighting(lmbda) * mean
