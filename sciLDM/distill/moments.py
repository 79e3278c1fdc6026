r"""Multistep moment matching (Salimans et al. 2024, arXiv:2406.04103).

A student `g` replaces the clean estimate in the ancestral step from `t` to a cleaner `s`: `x = g(z_t)`, `z_s ~ q(z_s |
z_t, x)`. That step keeps the marginals if `x`, seen from `z_s`, has the conditional mean that data have there,

    E[x | z_s] = D(z_s)    for all s of the stretch,

`D` being the teacher's denoiser. The left side is estimated by a second denoiser `F` (the opponent), which is trained
beside the student on what it makes; the student descends along

    d/dx = (F(z_s) - D(z_s)) / |x - D(z_s)|_1

(their section 3.1, with the normalisation of Yin et al. 2024, arXiv:2311.18828, Eq. 8). Nothing is ever sampled from
the teacher, and with a single stretch this is distribution matching distillation.
"""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.conditions import Condition
from sciLDM.denoiser import NetDenoiser
from sciLDM.distill.levels import Segments, bridge, noised
from sciLDM.distill.stage import StudentStage, cell_mean
from sciLDM.distill.teacher import Teacher
from sciLDM.objectives import DiffusionObjective, Draw
from sciLDM.parametrisation import expand
from sciLDM.samplers import DDIM
from sciLDM.training.adversarial import Opponent
from sciLDM.types import Cond

__all__ = ["MomentStage", "StudentMoments"]


@final
class StudentMoments(Opponent):
    """`F`: the mean of what the student makes, as seen from a noisier state; starts as the teacher's network.

    Args:
        denoiser: Becomes `F`.
        learning_rate: Its peak learning rate; the stage's own when None.
        fed: Whether the network takes an earlier estimate (self-conditioning): then it is given the teacher's.
        lead: Steps that it makes before the student's first.
    """

    name = "moments_of_student"

    def __init__(
        self, denoiser: NetDenoiser, learning_rate: float | None, *, fed: bool, lead: int = 0
    ) -> None:
        super().__init__()
        self.denoiser, self.learning_rate, self.fed, self.lead = denoiser, learning_rate, fed, lead
        self._loss: Tensor | None = None

    def estimate(
        self,
        z_s: Float[Tensor, "batch channel *shape"],
        s: Float[Tensor, "batch"],
        x: Float[Tensor, "batch channel *shape"],
        wanted: Float[Tensor, "batch channel *shape"],
        cond: Cond,
        mask: Tensor | None,
    ) -> Float[Tensor, "batch channel *shape"]:
        """`F(z_s)`; its error as an estimate of `x` becomes its own loss."""
        found = self.denoiser(z_s, s, cond, mask, wanted if self.fed else None)
        alpha, sigma = self.denoiser.schedule(s)
        weight = (alpha / sigma.clamp_min(1e-3)).square() + 1  # the error of `v`, as in training the teacher
        self._loss = weight * cell_mean((found - x).square(), mask)
        return found.detach()

    def own_loss(self) -> Float[Tensor, "batch"]:
        assert self._loss is not None
        loss, self._loss = self._loss, None
        return loss


@final
class MomentStage(StudentStage):
    """The student's training. It reports `_gap`, the mean squared difference of the two conditional means.

    Args:
        student: What is trained; starts as the teacher's network.
        opponent: `F`.
        teacher: `D`.
        steps: Numbers of calls that the student is trained for.
        sampler: How it is to be sampled; its grid places the calls.
        lmbda_max: Cleanest level at which means are compared: below it they say little, and the opponent's errors much.
        objective: Training noise levels and condition dropout of the teacher.
        conditions: Declared conditions.
    """

    def __init__(
        self,
        student: NetDenoiser,
        opponent: StudentMoments,
        teacher: Teacher,
        *,
        steps: tuple[int, ...],
        sampler: DDIM,
        lmbda_max: float = 2.0,
        objective: DiffusionObjective | None = None,
        conditions: Sequence[Condition] = (),
    ) -> None:
        super().__init__(
            student, teacher, sampler, objective=objective, conditions=conditions, opponent=opponent
        )
        self.segments = Segments(
            student.schedule, sampler.grid, steps, self.objective.times, lmbda_max=lmbda_max
        )

    def networks(self) -> list[NetDenoiser]:
        assert isinstance(self.adversary, StudentMoments)
        return [self.student, self.adversary.denoiser]

    def student_loss(
        self, z: Tensor, mask: Tensor | None, cond: Cond, draw: Draw, generator: torch.Generator
    ) -> dict[str, Float[Tensor, "batch"]]:
        assert isinstance(self.adversary, StudentMoments)
        schedule = self.student.schedule
        v = torch.rand(len(z), generator=generator, device=generator.device).to(z)
        fresh = torch.randn(z.shape, generator=generator, device=generator.device).to(z)
        t, s = self.segments.draw(draw.u, v)
        z_t = noised(z, t, draw.eps, schedule)
        x = self.student(z_t, t, cond, mask)
        made = x.detach()
        z_s = bridge(z_t, made, t, s, fresh, schedule)
        wanted = self.teacher(z_s, s, cond, mask)
        found = self.adversary.estimate(z_s, s, made, wanted, cond, mask)
        gap = found - wanted
        scale = cell_mean((made - wanted).abs(), mask).clamp_min(1e-4)
        # Half the squared distance to a point that is held fixed: its gradient is the direction above.
        target = made - gap / expand(scale, gap)
        loss = 0.5 * cell_mean((x - target).square(), mask)
        if self.step < self.adversary.lead:
            loss = 0.0 * loss
        return {"student": loss, "_gap": cell_mean(gap.square(), mask)}
