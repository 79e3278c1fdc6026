"""What all ways to distil share: a student in training, its noise levels, and the score of what it draws."""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.conditions import Condition
from sciLDM.denoiser import NetDenoiser
from sciLDM.distill.teacher import Teacher
from sciLDM.guidance import Conditioned
from sciLDM.objectives import DiffusionObjective, Draw
from sciLDM.rng import NoiseSource
from sciLDM.samplers import Sampler
from sciLDM.training.adversarial import Opponent
from sciLDM.training.stage import Stage
from sciLDM.types import Cond

__all__ = ["StudentStage", "cell_mean"]


class StudentStage(Stage):
    """A student learns from a teacher on normalised latents. Write `student_loss`.

    Validation draws from the student under the labels of held-out latents, with the same noise every time, and
    reports `energy`: an unbiased estimate of the energy distance (Szekely & Rizzo 2013,
    doi:10.1016/j.jspi.2013.03.018) between the two sets, 0 for equal distributions. A guided teacher does not
    minimise it, so it shows progress and failure, not which of two good students is better.

    Args:
        student: What is trained.
        teacher: What it learns from.
        sampler: How the student is to be sampled.
        objective: Training noise levels and condition dropout of the teacher.
        conditions: Declared conditions, for label dropout.
        opponent: A second network in training, where the method has one.
    """

    def __init__(
        self,
        student: NetDenoiser,
        teacher: Teacher,
        sampler: Sampler,
        *,
        objective: DiffusionObjective | None = None,
        conditions: Sequence[Condition] = (),
        opponent: Opponent | None = None,
    ) -> None:
        super().__init__("distillation", student, opponent)
        self.sampler = sampler
        self.objective = objective or DiffusionObjective()
        self.conditions = tuple(conditions)
        # In a tuple, so that its weights are neither trained, nor averaged, nor stored with the checkpoint.
        self._held = (teacher,)

    @property
    def student(self) -> NetDenoiser:
        """The network under its own name."""
        assert isinstance(self.network, NetDenoiser)
        return self.network

    @property
    def teacher(self) -> Teacher:
        """What the student learns from."""
        return self._held[0]

    @abstractmethod
    def student_loss(
        self, z: Tensor, mask: Tensor | None, cond: Cond, draw: Draw, generator: torch.Generator
    ) -> dict[str, Float[Tensor, "batch"]]:
        """Named loss terms of one batch, whose labels have been dropped as in the teacher's own training."""

    def loss_terms(self, fields: Any, generator: torch.Generator) -> dict[str, Float[Tensor, "batch"]]:
        z, mask, cond = fields
        draw = self.objective.draw(z, len(self.conditions), generator)
        labels, _ = self.objective.given(z, draw, cond=cond, conditions=self.conditions, mask=mask)
        with self.precision():
            return self.student_loss(z, mask, labels, draw, generator)

    def scores(self, fields: Any, indices: np.ndarray) -> dict[str, Float[Tensor, "batch"]]:
        z, mask, cond = fields
        return {"energy": _energy(self.draw(z, mask, cond, [int(i) for i in indices]), z)}

    def draw(
        self, z: Tensor, mask: Tensor | None, cond: Mapping[str, Tensor], ids: Sequence[int]
    ) -> Float[Tensor, "batch channel *shape"]:
        """Samples of the student under these labels, of the shape of `z`."""
        noise = NoiseSource(self.settings.seed).fork("distillation validation")
        with self.precision():
            return self.sampler(
                Conditioned(self.student, cond, mask),
                tuple(z.shape[1:]),
                noise=noise,
                ids=ids,
                device=z.device,
            )

    def networks(self) -> list[NetDenoiser]:
        """All networks whose arithmetic is the stage's."""
        return [self.student]

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Inside this block the networks run in the stage's arithmetic; sampling later has its own."""
        dtype = torch.bfloat16 if self.settings.precision == "bf16" else None
        with ExitStack() as stack:
            for network in self.networks():
                stack.callback(setattr, network, "autocast_dtype", network.autocast_dtype)
                network.autocast_dtype = dtype
            yield


def cell_mean(error: Float[Tensor, "batch channel *shape"], mask: Tensor | None) -> Float[Tensor, "batch"]:
    """Mean over channels and the cells that exist."""
    if mask is None:
        return error.flatten(1).mean(dim=1)
    cells = mask.flatten(1).sum(dim=1).clamp_min(1) * error.shape[1]
    return (error * mask[:, None]).flatten(1).sum(dim=1) / cells


def _energy(x: Tensor, y: Tensor) -> Tensor:
    """Row `i` of `2 |x - y'| - |x - x'| - |y - y'|`, averaged over all other rows; divided by `sqrt(dim)`."""
    x, y = x.flatten(1).float(), y.flatten(1).float()
    if len(x) == 1:
        return x.new_zeros(1)
    among_x, among_y, across = (torch.cdist(a, b) for a, b in ((x, x), (y, y), (x, y)))
    across.fill_diagonal_(0.0)  # a sample and the latent whose labels it has are not independent
    return (2 * across - among_x - among_y).sum(dim=1) / (len(x) - 1) / x.shape[1] ** 0.5
