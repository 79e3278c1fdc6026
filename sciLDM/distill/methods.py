"""Ways to distil, as settings: what a student is trained by, and how it is sampled afterwards."""

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, final

from sciLDM.distill.consistency import ConsistencyStage
from sciLDM.distill.moments import MomentStage, StudentMoments
from sciLDM.distill.stage import StudentStage
from sciLDM.distill.teacher import Teacher
from sciLDM.errors import ConfigError
from sciLDM.model import LatentDiffusion
from sciLDM.samplers import DDIM, Renoising, Sampler, UniformGrid
from sciLDM.training.settings import StageSettings

__all__ = ["Consistency", "Method", "MomentMatching"]


@dataclass(frozen=True)
class Method(ABC):
    """What turns a model into a few-step student.

    Raises:
        ConfigError: A value out of range.
    """

    steps: tuple[int, ...] = (4,)
    """Numbers of denoiser calls that the student is trained for; the largest is its default. One of them gives the
    best student for its price."""

    name: ClassVar[str]
    """On the command line."""

    def __post_init__(self) -> None:
        if not self.steps or min(self.steps) < 1 or len(set(self.steps)) < len(self.steps):
            raise ConfigError(f"steps: expected different numbers from 1, got {self.steps}")

    @property
    @abstractmethod
    def training(self) -> StageSettings:
        """Optimisation that suits it, unless told otherwise."""

    @abstractmethod
    def sampler(self, temperature: float) -> Sampler:
        """How the student is sampled."""

    @abstractmethod
    def sampler_config(self, temperature: float) -> dict[str, Any]:
        """The same as a configuration says it."""

    @abstractmethod
    def stage(self, model: LatentDiffusion, settings: StageSettings) -> StudentStage:
        """The training of a student of `model`; the student is a copy of its denoiser."""


@final
@dataclass(frozen=True)
class MomentMatching(Method):
    """Multistep moment matching: the student's steps keep the conditional means of the teacher (`distill.moments`)."""

    name: ClassVar[str] = "moments"

    opponent_rate: float = 5.0
    """Learning rate of the network that follows the student, in units of the student's: it must be faster."""

    lead: int = 20
    """Steps that it makes before the student's first."""

    lmbda_max: float = 2.0
    """Cleanest level at which means are compared."""

    def __post_init__(self) -> None:
        Method.__post_init__(self)
        if self.opponent_rate <= 0 or self.lead < 0:
            raise ConfigError(
                f"expected a positive opponent_rate and a lead of 0 or more, got {self.opponent_rate} and {self.lead}"
            )

    @property
    def training(self) -> StageSettings:
        return StageSettings(
            max_steps=1000, batch_size=256, learning_rate=2e-4, warmup_steps=20, decay="linear", decay_from=0.5,
            weight_decay=0.0, betas=(0.0, 0.99), ema_decay=0.98, validate_every=200, checkpoint_every=50,
            precision="bf16",
        )  # fmt: skip

    def sampler(self, temperature: float) -> DDIM:
        return DDIM(steps=max(self.steps), grid=UniformGrid(), eta=1.0, temperature=temperature)

    def sampler_config(self, temperature: float) -> dict[str, Any]:
        return _config("DDIM", steps=max(self.steps), eta=1.0, temperature=temperature)

    def stage(self, model: LatentDiffusion, settings: StageSettings) -> StudentStage:
        objective = model.experiment.objective
        opponent = StudentMoments(
            copy.deepcopy(model.denoiser),
            self.opponent_rate * settings.learning_rate,
            fed=objective.self_condition > 0,
            lead=min(self.lead, settings.max_steps // 10),
        )
        return MomentStage(
            copy.deepcopy(model.denoiser), opponent, Teacher.of(model), steps=self.steps,
            sampler=self.sampler(model.experiment.sampler.temperature),
            lmbda_max=self.lmbda_max, objective=objective, conditions=model.codec.conditions,
        )  # fmt: skip


@final
@dataclass(frozen=True)
class Consistency(Method):
    """Consistency distillation, sampled with new noise between the calls (`distill.consistency`)."""

    name: ClassVar[str] = "consistency"

    intervals: int = 32
    """Steps of the teacher from noise to data."""

    def __post_init__(self) -> None:
        Method.__post_init__(self)
        if self.intervals < 2 * max(self.steps):
            raise ConfigError(
                f"intervals: expected at least twice the steps ({2 * max(self.steps)}), got {self.intervals}"
            )

    @property
    def training(self) -> StageSettings:
        return StageSettings(
            max_steps=1000, batch_size=256, learning_rate=3e-4, warmup_steps=20, decay="linear", decay_from=0.5,
            weight_decay=0.0, ema_decay=0.98, validate_every=200, checkpoint_every=50, precision="bf16",
        )  # fmt: skip

    def sampler(self, temperature: float) -> Renoising:
        return Renoising(steps=max(self.steps), grid=UniformGrid(), temperature=temperature)

    def sampler_config(self, temperature: float) -> dict[str, Any]:
        return _config("Renoising", steps=max(self.steps), temperature=temperature)

    def stage(self, model: LatentDiffusion, settings: StageSettings) -> StudentStage:
        return ConsistencyStage(
            copy.deepcopy(model.denoiser), Teacher.of(model), self.sampler(model.experiment.sampler.temperature),
            intervals=self.intervals, steps=self.steps, objective=model.experiment.objective,
            conditions=model.codec.conditions,
        )  # fmt: skip


def _config(sampler: str, **options: Any) -> dict[str, Any]:
    grid = {"class_path": "sciLDM.samplers.UniformGrid"}
    return {"class_path": f"sciLDM.samplers.{sampler}", "init_args": {**options, "grid": grid}}
