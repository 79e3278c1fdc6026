r"""Consistency distillation (Song et al. 2023, arXiv:2303.01469), of a guided teacher and for sampling with new noise.

A student `f(z_t, t)` is to give the clean end of the probability-flow ODE through `z_t`. On a grid of `intervals` times
the teacher makes one step from `t` to the next cleaner `s`,

    z_s = alpha_s D + sigma_s (z_t - alpha_t D) / sigma_t,    D averaged over both ends (Heun, arXiv:2206.00364),

and the student must agree with itself along it: `f(z_t, t) = f(z_s, s)`, the right side held fixed, up to `s = 0` where
`f` is the identity. The error is measured by the pseudo-Huber distance (Song & Dhariwal 2023, arXiv:2310.14189, Eq. 8).

Where the ODE of a teacher samples less well than its SDE, as in molecules, so will the student; calls that follow new
noise (`sciLDM.samplers.Renoising`) mend part of that.
"""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.conditions import Condition
from sciLDM.denoiser import NetDenoiser
from sciLDM.distill.levels import noised
from sciLDM.distill.stage import StudentStage, cell_mean
from sciLDM.distill.teacher import Teacher
from sciLDM.objectives import DiffusionObjective, Draw
from sciLDM.parametrisation import expand
from sciLDM.samplers import Sampler, UniformGrid
from sciLDM.types import Cond

__all__ = ["ConsistencyStage"]


@final
class ConsistencyStage(StudentStage):
    """The student's training.

    Args:
        student: What is trained; starts as the teacher's network.
        teacher: `D`.
        sampler: How the student is to be sampled.
        intervals: Steps of the teacher from noise to data.
        steps: Numbers of calls that the student is trained for: half of each batch starts where those begin.
        objective: Condition dropout of the teacher.
        conditions: Declared conditions.
    """

    def __init__(
        self,
        student: NetDenoiser,
        teacher: Teacher,
        sampler: Sampler,
        *,
        intervals: int = 32,
        steps: tuple[int, ...] = (4,),
        objective: DiffusionObjective | None = None,
        conditions: Sequence[Condition] = (),
    ) -> None:
        super().__init__(student, teacher, sampler, objective=objective, conditions=conditions)
        grid = UniformGrid()(student.schedule, intervals)
        self._starts = grid
        self._ends = torch.cat([grid[1:], grid.new_tensor([student.schedule.t_range[0]])])
        calls = torch.cat([sampler.grid(student.schedule, n) for n in steps])
        # Where on the fine grid the sampler's own calls lie.
        self._calls = (grid[None] - calls[:, None]).abs().argmin(dim=1)

    def student_loss(
        self, z: Tensor, mask: Tensor | None, cond: Cond, draw: Draw, generator: torch.Generator
    ) -> dict[str, Float[Tensor, "batch"]]:
        schedule = self.student.schedule
        t, s = self._interval(draw.u)
        z_t = noised(z, t, draw.eps, schedule)
        z_s = self._teachers_step(z_t, t, s, cond, mask)
        with torch.no_grad():
            target = self.student(z_s, s, cond, mask)
        error = self.student(z_t, t, cond, mask) - target
        mean = cell_mean(error.square(), mask)
        size = _PSEUDO_HUBER**2
        # An interval's share of the way: errors add up along it.
        return {"student": ((mean + size).sqrt() - _PSEUDO_HUBER), "_error": mean}

    def _interval(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Half of the batch from anywhere on the grid, half from where the sampler calls the student."""
        v = (2 * u.double().cpu()).clamp(max=2 - 1e-9)
        anywhere = (v.frac() * len(self._starts)).long()
        called = self._calls[(v.frac() * len(self._calls)).long()]
        which = torch.where(v < 1, anywhere, called)
        return self._starts[which].to(u), self._ends[which].to(u)

    def _teachers_step(self, z_t: Tensor, t: Tensor, s: Tensor, cond: Cond, mask: Tensor | None) -> Tensor:
        first = self.teacher(z_t, t, cond, mask)
        guess = self._along(z_t, first, t, s)
        second = self.teacher(guess, s, cond, mask)
        return self._along(z_t, (first + second) / 2, t, s)

    def _along(self, z_t: Tensor, x0: Tensor, t: Tensor, s: Tensor) -> Tensor:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.student.schedule(t), self.student.schedule(s)
        eps = (z_t - expand(alpha_t, z_t) * x0) / expand(sigma_t, z_t)
        return expand(alpha_s, z_t) * x0 + expand(sigma_s, z_t) * eps


_PSEUDO_HUBER = 0.03
"""Errors below it count as squares, above it as themselves."""
