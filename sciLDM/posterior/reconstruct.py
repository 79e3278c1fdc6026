r"""A whole reconstruction: from a task to a posterior.

1. The noise level, if it is unknown (`noise_level`).
2. Latent samples of `p(z | y)`. The solver is told of the observation's noise and of the variance that the
   autoencoder's error gives each observed value, `R + diag(A C A^T)`; else it would bend the latents to fit what they
   cannot hold.
3. Perturb and correct in data space (`ensemble`), with the error's variance at each decoded sample.
4. Mean, spread, chi-square, share of generated variance; calibration where there is one.

Sample `k` of case `c` has the number `c * samples + k` and depends on that, the seed and its case alone: neither batch
size nor the number of cases changes it.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor

from sciLDM.autoencoders import Autoencoder, LatentStats
from sciLDM.denoiser import Denoiser
from sciLDM.domain import FieldCodec, Request, Task
from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.guidance.posterior.hybrid import HybridSolver
from sciLDM.guidance.posterior.problem import IdentityMap, Problem
from sciLDM.guidance.posterior.solver import PosteriorSolver
from sciLDM.operators import GaussianNoise, linearise
from sciLDM.posterior._totals import Totals
from sciLDM.posterior.conformal import Conformal
from sciLDM.posterior.consistency import Correction, observed_variance
from sciLDM.posterior.ensemble import data_chi2, perturb_and_correct
from sciLDM.posterior.error_model import AutoencoderError, ErrorCovariance
from sciLDM.posterior.hooks import HasRegions
from sciLDM.posterior.latent_map import LatentMap
from sciLDM.posterior.noise_level import ROUNDS, SAMPLES, NoiseLevel, estimate_noise
from sciLDM.posterior.result import Posterior
from sciLDM.posterior.sampling import default_sampler
from sciLDM.rng import NoiseSource
from sciLDM.samplers import Sampler

__all__ = ["Prior", "Settings", "reconstruct"]

_MOST_CORRELATED, _LARGEST = 1024, 2**26
"""Most values of a case whose errors are taken as correlated by the solver, and most numbers that this may take."""


@final
@dataclass(frozen=True)
class Prior:
    """What reconstruction needs of a trained model.

    Attributes:
        codec: Units, native objects.
        autoencoder: Trained; its `estimator`.
        stats: Statistics of its latents.
        denoiser: From a request and some of its rows to the denoiser with their conditions and guidance.
        error: Variance of what the autoencoder loses; None takes it as lossless.
        device: Where to compute.
    """

    codec: FieldCodec
    autoencoder: Autoencoder[Any, Any]
    stats: LatentStats
    denoiser: Callable[[Request, slice], Denoiser]
    error: AutoencoderError | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@final
@dataclass(frozen=True)
class Settings:
    """How to reconstruct.

    Attributes:
        samples: Posterior samples of each case, at least 2.
        seed: Sample `i` depends on `(seed, i)` alone.
        solver: `HybridSolver()` when None.
        sampler: `default_sampler()`, of 20 steps, when None.
        batch_size: Samples computed at once.
        correction: How the final data step is solved.
        paired: Each second sample starts from the turned noise of the one before it. Every sample is one of the
            posterior as ever, but what is odd in the noise drops out of their mean: with few samples it lies far nearer
            to the posterior's. Scores that take samples for independent (CRPS of an ensemble) are then too good.

    Raises:
        ConfigError: Out of range.
    """

    samples: int = 16
    seed: int = 0
    solver: PosteriorSolver = field(default_factory=HybridSolver)
    sampler: Sampler = field(default_factory=default_sampler)
    batch_size: int = 32
    correction: Correction = field(default_factory=Correction)
    paired: bool = False

    def __post_init__(self) -> None:
        if self.samples < 2 or self.batch_size < 1:
            raise ConfigError(
                f"a spread needs at least 2 samples, and batches at least 1, got samples={self.samples} and "
                f"batch_size={self.batch_size}"
            )
        if self.paired and self.samples % 2:
            raise ConfigError(f"paired: expected an even number of samples, got {self.samples}")


def reconstruct(
    task: Task,
    prior: Prior,
    settings: Settings | None = None,
    *,
    calibration: Conformal | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Posterior:
    """Posterior of every case of a task.

    Args:
        task: Observations, grid and conditions.
        prior: The trained model.
        settings: Samples, solver, seed.
        calibration: Applied when it knows the operator's family.
        progress: `progress(done, total)` in steps of the sampler.

    Raises:
        ConfigError: Settings out of range.
        ShapeMismatch: Operator, request, context and decoder do not belong together.
    """
    settings = settings or Settings()
    began = time.monotonic()
    run = _Run(task, prior, settings, progress)
    level = run.estimate_noise() if task.observation.noise is None else None
    totals = run.ensemble(run.whiten(None if level is None else level.std))
    posterior = totals.posterior(run.whiten(None if level is None else level.std), run.operator, level)
    details = {**run.details(), **posterior.details, "seconds": time.monotonic() - began}
    posterior = replace(posterior, details=details)
    if calibration is None:
        return posterior
    regions = prior.codec.calibration_regions if isinstance(prior.codec, HasRegions) else None
    return calibration.apply(posterior, run.operator.family, regions)


@final
class _Run:
    """One call of `reconstruct`."""

    def __init__(
        self,
        task: Task,
        prior: Prior,
        settings: Settings,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.task, self.prior, self.settings = task, prior, settings
        self.cases = len(task.observation.values)
        self.operator = task.observation.operator.to(prior.device)
        self.noise = NoiseSource(settings.seed)
        self._check()
        self._progress = progress
        batches = [-(-self.cases * n // settings.batch_size) for n in (settings.samples, SAMPLES)]
        self._steps = settings.sampler.steps
        short = ROUNDS * batches[1] * self._short_steps if task.observation.noise is None else 0
        self._total, self._done = batches[0] * self._steps + short, 0

    @property
    def _short_steps(self) -> int:
        return max(4, self._steps // 2)

    def _check(self) -> None:
        request, count = self.task.request, self.cases
        parts = {
            **request.cond,
            **self.task.context,
            **({} if request.mask is None else {"mask": request.mask}),
        }
        for name, part in parts.items():
            if len(part) != count:
                raise ShapeMismatch(f"{count} observed cases, but {len(part)} rows of {name!r} in the task")

    def whiten(self, std: Tensor | None) -> Problem:
        """Values and weights of each case, on the device; `std` where the noise had to be estimated."""
        observation = self.task.observation
        if std is not None:
            shape = (-1, *[1] * len(self.operator.out_shape))
            observation = replace(observation, noise=GaussianNoise(std.cpu().view(shape)))
        problem = Problem.from_observation(
            replace(observation, values=observation.values.float()), IdentityMap()
        )
        place = self.prior.device
        return replace(problem, values=problem.values.to(place), weights=problem.weights.to(place))

    def map(self, rows: Sequence[int]) -> LatentMap:
        """Decoder and encoder for rows that belong to these cases."""
        prior, device = self.prior, self.prior.device
        index = torch.tensor(list(rows))
        context = {name: value[index].to(device) for name, value in self.task.context.items()}
        mask = self.task.request.mask
        mask = None if mask is None else mask[index].to(device)
        return LatentMap(prior.autoencoder, prior.stats, prior.codec, context=context, mask=mask)

    def covariance(self, data: LatentMap, decoded: Tensor, *, typical: bool = False) -> ErrorCovariance:
        """The autoencoder's error about decoded fields, in the data's units."""
        error = self.prior.error
        if error is None:
            return ErrorCovariance(torch.zeros_like(decoded))
        variance = error.typical_variance(decoded) if typical else error.variance(decoded)
        return error.covariance(
            variance.sqrt() * data.slope(decoded), smooth=self.settings.correction.correlated
        )

    @torch.no_grad()
    def solver_weights(self, problem: Problem) -> tuple[Tensor, Tensor | None]:
        """What the solver takes for the noise of each case, with the typical error about the prior's centre.

        `1 / sqrt(diag(R + A C A^T))`, and what whitens the correlation that is left where that is small and known.
        """
        latent = (self.prior.autoencoder.latent_channels, *self.task.request.shape)
        weights, whiteners = [], []
        for start in range(0, self.cases, self.settings.batch_size):
            rows = range(start, min(start + self.settings.batch_size, self.cases))
            data = self.map(rows)
            decoded = data.decoded(torch.zeros(len(rows), *latent, device=self.prior.device))
            x = data.units(decoded)
            if tuple(x.shape[1:]) != self.operator.in_shape:
                raise ShapeMismatch(
                    f"{type(self.operator).__name__} acts on fields of shape {self.operator.in_shape} (channel, "
                    f"*grid), this model's have {tuple(x.shape[1:])}; build the operator for this grid"
                )
            covariance, w = (
                self.covariance(data, decoded, typical=True),
                problem.weights[rows.start : rows.stop],
            )
            if self._correlated(covariance):
                made = [self._whitened(x[k : k + 1], covariance, k, w[k]) for k in range(len(rows))]
                weights += [m[0][None] for m in made]
                whiteners += [m[1] for m in made]
                continue
            extra = observed_variance(self.operator, x, covariance)
            weights.append(w / (1 + w.square() * extra).sqrt())
        return torch.cat(weights), torch.stack(whiteners) if whiteners else None

    def _correlated(self, covariance: ErrorCovariance) -> bool:
        values, field = math.prod(self.operator.out_shape), math.prod(self.operator.in_shape)
        return (
            covariance.root is not None
            and self.settings.solver.correlated
            and values <= _MOST_CORRELATED
            and self.cases * values**2 + values * field <= _LARGEST
        )

    def _whitened(
        self, x: Tensor, covariance: ErrorCovariance, row: int, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weights of one case and the inverse root of the correlation of its values."""
        size = math.prod(self.operator.out_shape)
        eye = torch.eye(size, dtype=x.dtype, device=x.device).view(size, *self.operator.out_shape)
        _, forward, adjoint = linearise(self.operator, x.expand(size, *x.shape[1:]).contiguous())
        own = replace(covariance, std=covariance.std[row : row + 1])
        w = weights.flatten()
        total = w[:, None] * forward(own(adjoint(eye))).flatten(1) * w + torch.diag((w > 0).to(w))
        std = total.diagonal().clamp(min=torch.finfo(w.dtype).tiny).sqrt()
        there = w > 0
        correlation = torch.where(there[:, None] & there, total / (std[:, None] * std), 0.0)
        correlation.diagonal().fill_(1.0)
        factor = torch.linalg.cholesky(correlation.double())
        inverse = torch.linalg.solve_triangular(factor, torch.eye(size).to(factor), upper=False)
        return torch.where(there, w / std, 0.0).view(weights.shape), inverse.to(w)

    @torch.no_grad()
    def ensemble(
        self, problem: Problem, *, samples: int | None = None, sampler: Sampler | None = None, name: str = ""
    ) -> Totals:
        """Corrected samples of all cases; `name` keeps the noise of different ensembles apart."""
        samples, sampler = samples or self.settings.samples, sampler or self.settings.sampler
        noise = self.noise.fork(name) if name else self.noise
        totals = Totals(self.cases, samples, paired=self.settings.paired)
        drawn = replace(noise, paired=self.settings.paired)
        weights, whiteners = self.solver_weights(problem)
        request = self.task.request.repeated(samples)
        count, shape = self.cases * samples, (self.prior.autoencoder.latent_channels, *request.shape)
        for start in range(0, count, self.settings.batch_size):
            ids = range(start, min(start + self.settings.batch_size, count))
            case = [i // samples for i in ids]
            data = self.map(case)
            whitener = None if whiteners is None else whiteners[case]
            rows = Problem(data, self.operator, problem.values[case], weights[case], whitener)
            denoiser = self.prior.denoiser(request, slice(ids.start, ids.stop))
            guided = self.settings.solver.guide(denoiser, rows)
            before = self._done
            z = sampler(
                guided, shape, noise=drawn, ids=ids, device=self.prior.device,
                callback=lambda step, _total, _x0, b=before: self._report(b + step),
            )  # fmt: skip
            self._report(before + sampler.steps)
            totals.evaluations.append(vars(guided.evaluations))
            decoded = data.decoded(z)
            covariance = self.covariance(data, decoded)
            values, whitening = problem.values[case], problem.weights[case]
            made = perturb_and_correct(
                data.units(decoded), self.operator, values, whitening, covariance, noise=noise.fork("perturb"),
                ids=ids, settings=self.settings.correction,
            )  # fmt: skip
            chi2 = data_chi2(made.perturbed.x, self.operator, values, whitening)
            totals.add(ids, made, chi2, self._prior_variance(data, decoded))
        return totals

    def estimate_noise(self) -> NoiseLevel:
        """By short runs of few samples."""
        observation = self.task.observation
        sampler = self.settings.sampler.with_steps(self._short_steps)

        def run(std: Tensor) -> Tensor:
            problem = self.whiten(std)
            made = self.ensemble(problem, samples=SAMPLES, sampler=sampler, name="noise level")
            return torch.stack([self.operator(x.to(self.prior.device)).cpu() for x in made.perturbed])

        return estimate_noise(run, observation.values.float().cpu(), observation.present.cpu())

    def details(self) -> dict[str, Any]:
        """What was asked for."""
        settings = self.settings
        return {
            "solver": type(settings.solver).__name__,
            "sampler": type(settings.sampler).__name__,
            "steps": settings.sampler.steps,
            "samples": settings.samples,
            "paired": settings.paired,
            "seed": settings.seed,
            "autoencoder_error": self.prior.error is not None,
        }

    def _prior_variance(self, data: LatentMap, decoded: Tensor) -> Tensor | None:
        error = self.prior.error
        if error is None:
            return None
        return error.prior_variance(decoded) * data.slope(decoded).square()

    def _report(self, done: int) -> None:
        self._done = done
        if self._progress is not None:
            self._progress(done, self._total)
