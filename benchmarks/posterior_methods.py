"""What `posterior.py` compares: classical reconstructions, baselines in latent space, and ours."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from posterior_tasks import NOISE, ObservedTask
from torch import Tensor

from sciLDM.domain import FieldCodec
from sciLDM.evaluate.classical import cgls, zero_filled
from sciLDM.evaluate.classical_tv import pdhg_tv, tune_tv
from sciLDM.guidance.posterior import DPSSolver, PosteriorSolver, PSLDSolver
from sciLDM.model import LatentDiffusion
from sciLDM.operators import Observation
from sciLDM.posterior.reconstruct import Prior, Settings, reconstruct
from sciLDM.posterior.result import Posterior
from sciLDM.posterior.sampling import default_sampler

__all__ = ["CGLS", "TV", "Found", "Guided", "Interpolated", "Method", "ZeroFilled", "psnr", "steepest"]

BOUNDS = (-1.0, 1.0)


@final
@dataclass(frozen=True)
class Found:
    """A reconstruction.

    Attributes:
        mean: Point estimate of each case.
        posterior: What else is known; None for a method that gives a point alone.
        evaluations: Work done, in passes over a batch, where networks were used.
    """

    mean: Float[Tensor, "case 1 *grid"]
    posterior: Posterior | None = None
    evaluations: Mapping[str, int] = field(default_factory=dict)


class Method(ABC):
    """One row of the table.

    Attributes:
        name: As in the table.
        calibrated: Whether its intervals are scaled on calibration volumes.
    """

    name: str
    calibrated: bool = False

    def applies(self, task: ObservedTask) -> bool:
        """Whether the method is of any use for a task."""
        return True

    @abstractmethod
    def tuned(
        self, task: ObservedTask, observation: Observation, truth: Float[Tensor, "case 1 *grid"]
    ) -> tuple["Method", str]:
        """The method with its weight chosen on validation volumes, and what was chosen."""

    @abstractmethod
    def __call__(self, task: ObservedTask, observation: Observation) -> Found:
        """Reconstruct."""


def psnr(x: Float[Tensor, "case 1 *grid"], truth: Float[Tensor, "case 1 *grid"]) -> Float[Tensor, "case"]:
    """Peak signal-to-noise ratio of each case [dB], range 2."""
    return 10 * torch.log10(4 / (x - truth).square().flatten(1).mean(dim=1))


# --- classical -----------------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Interpolated(Method):
    """Slices interpolated along the depth: `slinear` or `cubic`; constant beyond the outermost."""

    kind: str

    @property
    def name(self) -> str:  # type: ignore[override]
        return {"slinear": "linear", "cubic": "cubic"}[self.kind]

    def applies(self, task: ObservedTask) -> bool:
        return task.interpolates is not None

    def tuned(self, task: ObservedTask, observation: Observation, truth: Tensor) -> tuple[Method, str]:
        return self, ""

    def __call__(self, task: ObservedTask, observation: Observation) -> Found:
        from scipy.interpolate import make_interp_spline

        places = np.array(task.interpolates)
        spline = make_interp_spline(
            places, observation.values.numpy(), k=1 if self.kind == "slinear" else 3, axis=2
        )
        wanted = np.arange(task.operator.in_shape[1]).clip(places[0], places[-1])
        return Found(torch.from_numpy(spline(wanted)).float().clamp(*BOUNDS))


@final
@dataclass(frozen=True)
class ZeroFilled(Method):
    """`A^T y`, scaled to fit."""

    name = "zero-filled"

    def applies(self, task: ObservedTask) -> bool:
        return task.interpolates is None

    def tuned(self, task: ObservedTask, observation: Observation, truth: Tensor) -> tuple[Method, str]:
        return self, ""

    def __call__(self, task: ObservedTask, observation: Observation) -> Found:
        return Found(zero_filled(observation, scaled=True))


@final
@dataclass(frozen=True)
class CGLS(Method):
    """Least squares, stopped at the noise."""

    name = "CGLS"

    def tuned(self, task: ObservedTask, observation: Observation, truth: Tensor) -> tuple[Method, str]:
        return self, ""

    def __call__(self, task: ObservedTask, observation: Observation) -> Found:
        return Found(cgls(observation, discrepancy=1.0).x)


@final
@dataclass(frozen=True)
class TV(Method):
    """Total variation within bounds, its weight that of the least error on the validation volumes."""

    weight: float = 0.0
    name = "TV"

    def tuned(self, task: ObservedTask, observation: Observation, truth: Tensor) -> tuple[Method, str]:
        ladder = [0.25 * 2**k for k in range(8)]
        found = tune_tv([observation], [truth], ladder, iterations=1000, bounds=BOUNDS)
        return TV(found.weight), f"weight {found.weight:g}"

    def __call__(self, task: ObservedTask, observation: Observation) -> Found:
        return Found(pdhg_tv(observation, self.weight, bounds=BOUNDS).x)


# --- in latent space -----------------------------------------------------------------------------------------


@final
@dataclass(frozen=True)
class Guided(Method):
    """Posterior samples by a solver, with the project's own sampler.

    Attributes:
        name: As in the table.
        model: The trained prior.
        solver: How observations steer the denoiser.
        samples: Of each case.
        steps: Of the sampler.
        corrected: Take the final step in data space; else decode and stop, as the baselines were published.
        calibrated: Scale its intervals on calibration volumes, which doubles the work.
        candidates: Solvers to choose from on the validation volumes; `solver` is then not looked at.
    """

    name: str
    model: LatentDiffusion
    solver: PosteriorSolver
    samples: int = 16
    steps: int = 20
    corrected: bool = True
    calibrated: bool = True
    candidates: Sequence[PosteriorSolver] = ()

    def tuned(self, task: ObservedTask, observation: Observation, truth: Tensor) -> tuple[Method, str]:
        if not self.candidates:
            return self, ""
        few = replace(self, samples=2, candidates=())
        scores = {}
        for solver in self.candidates:
            x = replace(few, solver=solver)(task, observation).mean
            scores[solver] = float(psnr(x, truth).nan_to_num(nan=-1e9).mean())
        best = max(scores, key=scores.__getitem__)
        return replace(self, solver=best, candidates=()), ", ".join(
            f"{k} {v:g}" for k, v in vars(best).items()
        )

    def __call__(self, task: ObservedTask, observation: Observation) -> Found:
        model = self.model
        assert isinstance(model.codec, FieldCodec)
        prior = Prior(
            model.codec, model.autoencoder, model.stats, model.guided,
            model.autoencoder_error if self.corrected else None, model.device,
        )  # fmt: skip
        settings = Settings(self.samples, 0, self.solver, default_sampler(self.steps))
        stated = model.codec.task(observation.values, task.operator, noise_std=NOISE)
        posterior = reconstruct(stated, prior, settings)
        details: dict[str, Any] = dict(posterior.details)
        return Found(posterior.mean, posterior, details["evaluations"])


def steepest(kind: str) -> tuple[PosteriorSolver, ...]:
    """Strengths that DPS and PSLD choose from, four to a factor of ten and more."""
    strengths = (0.03, 0.1, 0.3, 1.0, 3.0)
    if kind == "DPS":
        return tuple(DPSSolver(zeta) for zeta in strengths)
    return tuple(PSLDSolver(zeta, gamma) for zeta in strengths[1:-1] for gamma in (0.1, 1.0))
