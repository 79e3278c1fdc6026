"""What users hold: a trained latent diffusion model."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sciLDM.artefact import Artefact, find_artefact, load_artefact, save_artefact
from sciLDM.assembly import build_denoiser, build_guide, solver_of
from sciLDM.autoencoders import Autoencoder, LatentStats
from sciLDM.data.ensemble import model_hash
from sciLDM.denoiser import Denoiser
from sciLDM.domain import Codec, FieldCodec, Request
from sciLDM.errors import ArtefactError, ConfigError, DataError
from sciLDM.experiment import Experiment, instantiate
from sciLDM.guidance import Autoguidance, ClassifierFree, Conditioned
from sciLDM.guidance.posterior import (
    MeasuredCovariance,
    PosteriorSolver,
)
from sciLDM.operators import Operator
from sciLDM.posterior.conformal import Conformal
from sciLDM.posterior.error_model import AutoencoderError
from sciLDM.posterior.reconstruct import Prior, Settings, reconstruct
from sciLDM.posterior.sampling import default_sampler
from sciLDM.posterior.tiled import default_solver, needs_tiles, reconstruct_tiled
from sciLDM.rng import NoiseSource
from sciLDM.samplers import Sampler

__all__ = ["LatentDiffusion", "Steering", "load"]

Steering = Callable[[Denoiser, Mapping[str, Tensor], Tensor | None], Denoiser]
"""Wraps the denoiser of a batch, given its conditions and mask: guidance that the model does not bring itself."""


@final
class LatentDiffusion:
    """Autoencoder, latent statistics and denoiser of one domain, with what is needed to use them.

    Args:
        config: The complete experiment configuration.
        state: The codec's state (vocabulary, units, statistics).
        card: What the model is and how it was made.
        reference: Folder with the training and test items, or None.

    Attributes:
        guide: A worse denoiser, away from which `sample` is guided (`sciLDM.guidance.Autoguidance`); None without.
        autoencoder_error: Variance of what the autoencoder loses, for fields on a grid; None where not measured.
        denoiser_error: Covariance of the denoiser's error by noise level, for fields on a grid; None if not measured.
        calibration: Factors on the widths of reconstructions, by family of operators; None before calibration.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        state: Mapping[str, Any],
        *,
        card: Mapping[str, Any] | None = None,
        reference: Path | None = None,
    ) -> None:
        self.config, self.card = dict(config), dict(card or {})
        self.reference = reference
        self.experiment: Experiment = instantiate(config)
        self.state = dict(state)
        self.codec: Codec = self.experiment.domain.codec(state)
        self.autoencoder: Autoencoder[Any, Any] = self.codec.autoencoder().eval()
        channels = self.autoencoder.latent_channels
        self.stats = LatentStats(channels)
        self.denoiser = build_denoiser(self.experiment, self.codec, channels)
        self.guide = build_guide(self.experiment, self.codec, channels)
        self.autoencoder_error: AutoencoderError | None = None
        self.denoiser_error: MeasuredCovariance | None = None
        self.calibration: Conformal | None = None
        self.device = torch.device("cpu")

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The modules whose tensors make up the artefact."""
        parts: dict[str, nn.Module] = {
            "autoencoder": self.autoencoder,
            "stats": self.stats,
            "denoiser": self.denoiser,
        }
        if self.guide is not None:
            parts["guide"] = self.guide
        errors = {"autoencoder_error": self.autoencoder_error, "denoiser_error": self.denoiser_error}
        return parts | {name: error for name, error in errors.items() if error is not None}

    @property
    def parameters(self) -> dict[str, int]:
        """Number of parameters of each part."""
        return {name: sum(p.numel() for p in part.parameters()) for name, part in self.parts.items()}

    def to(self, device: str | torch.device, *, dtype: torch.dtype | None = None) -> "LatentDiffusion":
        """Move to a device; `dtype=torch.bfloat16` runs the denoising network under autocast."""
        self.device = torch.device(device)
        for part in self.parts.values():
            part.to(self.device)
        for denoiser in (self.denoiser, self.guide):
            if denoiser is not None:
                denoiser.autocast_dtype = dtype
        return self

    def sample(
        self,
        count: int,
        *,
        cond: Mapping[str, Any] | None = None,
        guidance: float | Mapping[str, float] | None = None,
        steps: int | None = None,
        sampler: Sampler | None = None,
        seed: int = 0,
        first: int = 0,
        batch_size: int = 512,
        candidates: int = 1,
        steer: Steering | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Any:
        """New objects of the domain, with everything a user wants to know about them.

        Args:
            count: How many.
            cond: What to ask for, in the data's own units: a number for all, or one per sample. Any subset.
            guidance: 1 is the plain conditional model, larger insists more; a mapping sets it per condition.
            steps: Denoiser calls per sample; the model's default when None.
            sampler: Another sampler than the model's own.
            seed: Sample `i` depends on `(seed, first + i)` alone, whatever the batch size.
            first: Number of the first sample, to continue a series.
            batch_size: Samples computed at once.
            candidates: Drawn for each sample; the one that comes nearest to what was asked is kept. The price is as
                many times higher. Only where samples can be measured (`Codec.measurable`).
            steer: Wraps the denoiser of each batch, say `sciLDM.explore.Predictor.steer`.
            progress: `progress(done, total)` in denoiser calls.

        Raises:
            ConfigError: An unknown condition, a wrong number of values, or settings out of range.
        """
        _check_counts(self.codec, count, batch_size, candidates, cond or {})
        noise = NoiseSource(seed)
        request = self.codec.plan(count, cond or {}, noise, range(first, first + count)).repeated(candidates)
        ids = range(first * candidates, (first + count) * candidates)
        z = self.sample_latents(
            request, ids, noise, guidance=guidance, sampler=self._sampler(sampler, steps), batch_size=batch_size,
            steer=steer, progress=progress,
        )  # fmt: skip
        found = self.codec.decode(self.autoencoder, z, request, reference=self.reference)
        return found if candidates == 1 else self.codec.choose(found, candidates)

    def reconstruct(
        self,
        observed: Any,
        operator: Operator | None = None,
        *,
        noise_std: float | None = None,
        cond: Mapping[str, Any] | None = None,
        samples: int = 16,
        steps: int | None = None,
        seed: int = 0,
        solver: PosteriorSolver | None = None,
        guidance: float | Mapping[str, float] | None = None,
        batch_size: int = 32,
        paired: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Any:
        """What a field may have been, given an observation of it: mean, spread and samples as native objects.

        A field larger than the model's grid is reconstructed in tiles (`sciLDM.posterior.tiled` says what of that is
        exact), one sample at a time.

        Args:
            observed: What was observed; NaN where missing. Which objects are understood is the domain's.
            operator: How it was observed, in the data's units; None where the domain can tell from `observed`.
            noise_std: Standard deviation of the observation errors in the data's units. None estimates it, at about
                half the price again (`sciLDM.posterior.noise_level` says when that can be trusted). Zero is raised to
                1e-4 of the spread of the values.
            cond: What else is known, as in `sample`.
            samples: Posterior samples of each case.
            steps: Steps of the sampler, 20 when None.
            seed: Sample `k` of case `c` depends on `(seed, c * samples + k)` and its case alone.
            solver: How observations steer the denoiser; when None `HybridSolver.measured`, with a Gaussian start
                Gauss-Newton on its covariance (`solver`), in tiles `sciLDM.posterior.tiled.default_solver()`.
            guidance: As in `sample`; above 1 the spread is too small by design.
            batch_size: Samples computed at once, or tiles.
            paired: Each second sample starts from the turned noise of the one before it: a mean of few samples is then
                far nearer to the posterior's (`sciLDM.posterior.reconstruct.Settings` says what it costs).
            progress: `progress(done, total)` in steps.

        Raises:
            ConfigError: A domain without fields on a grid, or settings out of range.
            ShapeMismatch: Observation, operator and model are not for the same grid.
            DataError: Nothing observed, or infinite values.
        """
        codec = _field_codec(self)
        task = codec.task(observed, operator, noise_std=noise_std, cond=cond)
        large = needs_tiles(codec, self.autoencoder, task.request)
        settings = Settings(
            samples,
            seed,
            solver or (default_solver(self.denoiser_error) if large else self.solver),
            default_sampler(20 if steps is None else steps),
            batch_size,
            paired=paired,
        )
        prior = Prior(
            codec, self.autoencoder.estimator(), self.stats,
            lambda request, part: self.guided(request, part, guidance), self.autoencoder_error, self.device,
        )  # fmt: skip
        run = reconstruct_tiled if large else reconstruct
        posterior = run(task, prior, settings, calibration=self.calibration, progress=progress)
        details = {**posterior.details, "model": model_hash(self)[:12]}
        return codec.deliver(replace(posterior, details=details), task)

    @property
    def solver(self) -> PosteriorSolver:
        """How observations steer this model's denoiser, where fields are not larger than those it was trained on."""
        return solver_of(self.denoiser.start, self.denoiser_error)

    def sample_latents(
        self,
        request: Request,
        ids: Sequence[int],
        noise: NoiseSource,
        *,
        guidance: float | Mapping[str, float] | None = None,
        sampler: Sampler | None = None,
        batch_size: int = 512,
        steer: Steering | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Float[Tensor, "batch channel *shape"]:
        """Latents (denormalised, on the model's device) for a request."""
        sampler = sampler or self.experiment.sampler
        shape = (self.autoencoder.latent_channels, *request.shape)
        batches = range(0, len(ids), batch_size)
        latents = []
        for k, start in enumerate(batches):
            part = slice(start, start + batch_size)
            denoiser = self._away_from_guide(self.guided(request, part, guidance), request, part)
            if steer is not None:
                denoiser = steer(denoiser, *self._given(request, part))
            report = None
            if progress is not None:
                report = lambda step, total, _x0, k=k: progress(k * total + step, len(batches) * total)  # noqa: E731
            z = sampler(denoiser, shape, noise=noise, ids=ids[part], device=self.device, callback=report)
            latents.append(self.stats.denormalise(z))
        return torch.cat(latents)

    def guided(
        self, request: Request, part: slice, guidance: float | Mapping[str, float] | None = None
    ) -> Denoiser:
        """The denoiser for some samples of a request, with their conditions and the guidance asked for.

        Without the guide: what is a posterior mean here (reconstruction, likelihood, flows) must remain one.
        """
        cond, mask = self._given(request, part)
        return ClassifierFree(
            self.denoiser,
            cond,
            mask,
            scale=self.experiment.guidance if guidance is None else guidance,
            always=request.always,
            self_condition=self.experiment.objective.self_condition > 0,
        )

    def _away_from_guide(self, denoiser: Denoiser, request: Request, part: slice) -> Denoiser:
        if self.guide is None:
            return denoiser
        memory = self.experiment.objective.self_condition > 0
        bad = Conditioned(self.guide, *self._given(request, part), self_condition=memory)
        return Autoguidance(denoiser, bad, self.experiment.guide_scale)

    def _given(self, request: Request, part: slice) -> tuple[dict[str, Tensor], Tensor | None]:
        cond = {name: label[part].to(self.device) for name, label in request.cond.items()}
        return cond, None if request.mask is None else request.mask[part].to(self.device)

    def save(self, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> Path:
        """Write `model.safetensors`, `config.yaml` and `card.json`; `dtype` halves the matrices, say bfloat16.

        `torch.int8` halves them again (weights as integers, one scale a channel); they are read back as float32.
        """
        tensors = {
            f"{part}.{name}": tensor
            for part, module in self.parts.items()
            for name, tensor in module.state_dict().items()
        }
        card = {**self.card, "state": self.state}
        if self.calibration is not None:
            card["calibration"] = self.calibration.state()
        return save_artefact(folder, tensors=tensors, config=self.config, card=card, dtype=dtype)

    def _sampler(self, sampler: Sampler | None, steps: int | None) -> Sampler:
        if steps is None:
            return sampler or self.experiment.sampler
        if sampler is not None:
            raise ConfigError("give either steps or a sampler (which has its own steps), not both")
        if steps < 1:
            raise ConfigError(f"steps must be at least 1, got {steps}")
        return self.experiment.sampler.with_steps(steps)


def _field_codec(model: LatentDiffusion) -> FieldCodec:
    if "distilled" in model.card:
        raise ConfigError(
            "reconstruct: expected a denoiser that gives posterior means, got a few-step student, whose estimates are "
            "samples; reconstruct with the model it was distilled from"
        )
    if not isinstance(model.codec, FieldCodec):
        raise ConfigError(
            f"reconstruct: expected a model of fields on a grid, got one of {model.experiment.domain.name} "
            f"({type(model.codec).__name__} is no FieldCodec); use sample(cond=...) instead"
        )
    return model.codec


def _check_counts(
    codec: Codec, count: int, batch_size: int, candidates: int, cond: Mapping[str, Any]
) -> None:
    if min(count, batch_size, candidates) < 1:
        raise ConfigError(
            f"count, batch_size and candidates must be at least 1, got {count}, {batch_size} and {candidates}"
        )
    if candidates > 1 and not codec.measurable & set(cond):
        known = ", ".join(sorted(codec.measurable)) or "nothing with this model"
        raise ConfigError(
            f"candidates={candidates}: expected a request that can be measured on samples ({known}), got "
            f"{', '.join(cond) or 'none'}; ask for one, or leave candidates out"
        )


def load(name_or_path: str | os.PathLike[str]) -> LatentDiffusion:
    """A shipped model (`"qm9-small"`), a run folder, or a model folder.

    Raises:
        ArtefactError: Not found (near names are listed), damaged, foreign, or newer than this version.
    """
    folder = find_artefact(name_or_path)
    artefact = load_artefact(folder)
    reference = folder.parent / "reference"
    return _restore(artefact, reference if reference.is_dir() else None)


def _restore(artefact: Artefact, reference: Path | None) -> LatentDiffusion:
    card = dict(artefact.card)
    state, calibration = card.pop("state", None), card.pop("calibration", None)
    if not isinstance(state, dict):
        raise ArtefactError(
            "the model's card has no `state`: it was not written by `LatentDiffusion.save`; train again"
        )
    with torch.random.fork_rng(
        devices=[]
    ):  # initial weights are drawn and replaced: not the caller's business
        model = LatentDiffusion(artefact.config, state, card=card, reference=reference)
    prior = artefact.tensors.get("autoencoder_error.prior")
    if prior is not None:  # sized by what it was fitted on
        root = artefact.tensors.get("autoencoder_error.root")
        block = 0 if root is None else root.shape[1]
        model.autoencoder_error = AutoencoderError(len(prior), tuple(prior.shape[1:]), block)
    variance = artefact.tensors.get("denoiser_error.log_variance")
    if variance is not None:
        model.denoiser_error = MeasuredCovariance(len(variance), variance.shape[1], variance.shape[2:])
    for part, module in model.parts.items():
        prefix = f"{part}."
        tensors = {k.removeprefix(prefix): v for k, v in artefact.tensors.items() if k.startswith(prefix)}
        expected = module.state_dict()
        wrong = sorted(set(expected) ^ set(tensors)) or [
            k for k in expected if expected[k].shape != tensors[k].shape
        ]
        if wrong:
            raise ArtefactError(
                f"the weights of the {part} do not fit its configuration (first difference: {wrong[0]}); "
                "config.yaml and model.safetensors come from different models"
            )
        module.load_state_dict({k: v.to(expected[k].dtype) for k, v in tensors.items()})
    if calibration is not None:
        try:
            model.calibration = Conformal.from_state(calibration)
        except DataError as error:
            raise ArtefactError(f"the model's card: {error}") from error
    return model
