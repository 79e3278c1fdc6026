r"""The teacher: the denoiser of a finished model as it samples, guided and with its own estimate fed back.

A student is taught by `D(x_t, t)` after guidance, so that it needs none: what autoguidance (arXiv:2406.02507) or a
guidance scale buys at two or three calls a step, the student does in one.
"""

from collections.abc import Callable, Mapping
from typing import TypeAlias, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sciLDM.denoiser import Denoiser
from sciLDM.guidance import Autoguidance, ClassifierFree, Conditioned
from sciLDM.model import LatentDiffusion
from sciLDM.schedules import Schedule

__all__ = ["DenoiserFor", "Teacher"]

DenoiserFor: TypeAlias = Callable[[Mapping[str, Tensor], Tensor | None], Denoiser]
"""From labels and mask of a batch to the denoiser of that batch; a new one each time, without memory."""


@final
class Teacher:
    """Estimates without gradient.

    Args:
        denoiser_for: Gives the denoiser of a batch.
        schedule: Its noise schedule.
        passes: Calls for one estimate; with 2 a self-conditioned denoiser is fed its first one.
    """

    def __init__(self, denoiser_for: DenoiserFor, schedule: Schedule, *, passes: int = 1) -> None:
        self._denoiser_for, self.schedule, self.passes = denoiser_for, schedule, passes

    @staticmethod
    def of(model: LatentDiffusion) -> "Teacher":
        """That of a model, with its guide and its guidance scale."""
        experiment, denoiser, guide = model.experiment, model.denoiser, model.guide
        memory = experiment.objective.self_condition > 0
        always = frozenset(c.name for c in model.codec.conditions if c.dropout == 0)

        def denoiser_for(cond: Mapping[str, Tensor], mask: Tensor | None) -> Denoiser:
            good = ClassifierFree(
                denoiser, cond, mask, scale=experiment.guidance, always=always, self_condition=memory
            )
            if guide is None:
                return good
            bad = Conditioned(guide, cond, mask, self_condition=memory)
            return Autoguidance(good, bad, experiment.guide_scale)

        return Teacher(denoiser_for, denoiser.schedule, passes=2 if memory else 1)

    @torch.no_grad()
    def __call__(
        self,
        x_t: Float[Tensor, "batch channel *shape"],
        t: Float[Tensor, "batch"],
        cond: Mapping[str, Tensor],
        mask: Bool[Tensor, "batch *shape"] | None,
    ) -> Float[Tensor, "batch channel *shape"]:
        """The guided clean estimate."""
        denoiser = self._denoiser_for(cond, mask)
        x0 = denoiser(x_t, t)
        for _ in range(self.passes - 1):
            x0 = denoiser(x_t, t)
        return x0
