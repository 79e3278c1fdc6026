"""How well held-out volumes are rebuilt, beside classical methods and a supervised network; every row is kept.

Test volumes are seen by nobody before. Validation volumes tune the total variation and calibrate the error bars;
training volumes train the supervised network. All methods get the same noisy values.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import torch

from sciLDM.domain import Progress
from sciLDM.domains.medical.baselines import tune_volumes, tv_volume
from sciLDM.domains.medical.codec import MedicalCodec
from sciLDM.domains.medical.geometry import Triple
from sciLDM.domains.medical.result import Reconstruction
from sciLDM.domains.medical.scan import read_volume
from sciLDM.domains.medical.sources import Entry, read_entry
from sciLDM.domains.medical.study_result import OURS, Study, example_of
from sciLDM.domains.medical.study_scores import (
    chi_square,
    ensemble_scores,
    image_score,
    posterior_of,
    scored_truth,
)
from sciLDM.domains.medical.study_store import Store, identity
from sciLDM.domains.medical.study_tasks import Case, Observed, StudyTask, task_named
from sciLDM.domains.medical.supervised import Supervised, SupervisedSettings, train_supervised
from sciLDM.domains.medical.volume import Volume, from_array
from sciLDM.errors import ConfigError, DataError
from sciLDM.guidance.posterior.solver import PosteriorSolver
from sciLDM.posterior.conformal import Conformal
from sciLDM.posterior.result import Posterior

__all__ = ["Reconstructs", "StudySettings", "crop", "reconstruction_study"]


@runtime_checkable
class Reconstructs(Protocol):
    """What a study needs of `sciLDM.model.LatentDiffusion`."""

    codec: Any
    reconstruct: Any


@dataclass(frozen=True)
class StudySettings:
    """Size of a study."""

    noise: float = 0.01
    """Standard deviation of the errors, as a share of the data range (of the largest line integral for projections)."""
    samples: int = 16
    """Posterior samples of each volume."""
    paired: bool = True
    """Samples in pairs that start from opposite noise, for a mean that is worth many more; `samples` is then even."""
    steps: int | None = None
    """Steps of the sampler; the model's default when None."""
    solver: PosteriorSolver | None = None
    """How observations steer the denoiser; the model's default when None."""
    validation: int = 8
    """Volumes that tune and calibrate."""
    test: int = 8
    """Volumes that are scored."""
    tuning: int = 3
    """Of the validation volumes, how many tune the total variation."""
    tv_iterations: int = 500
    """For each of its reconstructions."""
    supervised: SupervisedSettings | None = field(default_factory=SupervisedSettings)
    """None leaves the supervised network out."""
    seed: int = 0
    """Of noise, holes, samples and the network."""

    def __post_init__(self) -> None:
        if not 0 < self.noise < 1 or self.samples < 2 or min(self.validation, self.test, self.tuning) < 1:
            raise ConfigError(
                "study: expected noise between 0 and 1, samples >= 2, and at least one volume to test, validate, tune"
            )


def reconstruction_study(
    model: Reconstructs,
    volumes: Any,
    tasks: Sequence[str | StudyTask] = ("slices", "thick", "hole"),
    *,
    settings: StudySettings | None = None,
    keep: str | Path | None = None,
    progress: Progress | None = None,
) -> Study:
    """Rebuild held-out volumes and score everybody.

    Args:
        model: A trained medical model; the codec says its grid, modality and intensity scale.
        volumes: A `MedicalCorpus`, or `{"train": [...], "validation": [...], "test": [...]}` of paths or `Volume`s.
            What is larger than the model's grid is cut to it, around its middle.
        tasks: `slices`, `thick`, `hole`, `views8`, ..., or tasks of your own.
        settings: Size of the study.
        keep: Folder where every reconstruction is kept as soon as it is made: a study that was stopped goes on where it
            was, and a new model or setting costs no more than what depends on it.
        progress: Told how far it is.

    Raises:
        DataError: A split without volumes.
        ConfigError: An unknown task; `keep` for a model that was not loaded from a folder.
    """
    settings = settings or StudySettings()
    chosen = [task_named(t) for t in tasks]
    if not isinstance(model.codec, MedicalCodec):
        raise ConfigError(f"study: expected a medical model, its codec is {type(model.codec).__name__}")
    if keep is not None and not weights_of(model):
        raise ConfigError("study: `keep` needs a model with a hash of its weights: save it and load it again")
    store = Store(None if keep is None else Path(keep))
    run = _Run(model, model.codec, settings, store, progress or (lambda *_: None))
    splits = run.splits(volumes)
    for task in chosen:
        run.task(task, splits)
    return run.finish(chosen, splits)


@final
class _Run:
    """One call of `reconstruction_study`."""

    def __init__(
        self,
        model: Reconstructs,
        codec: MedicalCodec,
        settings: StudySettings,
        store: Store,
        progress: Progress,
    ) -> None:
        self.model, self.codec, self.settings = model, codec, settings
        self.store, self.progress = store, progress
        self.records: list[dict[str, Any]] = []
        self.examples: dict[str, dict[str, np.ndarray]] = {}
        self.notes: dict[str, dict[str, Any]] = {}
        self.kept: dict[str, tuple[list[Observed], list[Posterior], list[Observed], list[Posterior]]] = {}

    def splits(self, volumes: Any) -> dict[str, list[Case]]:
        """Cases of each split; numbers differ between splits, so that noise does too."""
        counts = {"train": None, "validation": self.settings.validation, "test": self.settings.test}
        if self.settings.supervised is None:
            counts["train"] = 0
        found: dict[str, list[Case]] = {}
        for at, (split, count) in enumerate(counts.items()):
            cases = []
            for k, one in enumerate(_volumes(volumes, split)[:count]):
                volume = crop(_read(one), self.codec.grid)
                scale = self.codec.intensity.scale(volume.data, self.codec.modality)
                cases.append(Case.of(volume, (scale.low, scale.high), at * 1_000_000 + k))
            if not cases and count != 0:
                raise DataError(f"study: the {split} split has no volumes")
            found[split] = cases
        return found

    def task(self, task: StudyTask, splits: Mapping[str, Sequence[Case]]) -> None:
        """All methods on one task."""
        settings = self.settings
        tuning, test = (
            [task.observe(case, settings.noise, settings.seed) for case in splits[split]]
            for split in ("validation", "test")
        )
        self.notes[task.name] = self._baselines(task, splits["train"], tuning, test)
        self._ours(task, tuning, test)

    def _baselines(
        self, task: StudyTask, train: Sequence[Case], tuning: list[Observed], test: list[Observed]
    ) -> dict[str, Any]:
        """Classical methods and the supervised network; returns what was tuned."""
        settings, common = self.settings, (task, self.settings.seed)
        note: dict[str, Any] = {"compared": task.compared}
        for name in task.classical(test[0]):
            make = lambda o, name=name: task.classical(o)[name]()  # noqa: E731
            self._classical(task, name, make, test, common)
        weight = self._tv_weight(tuning[: settings.tuning])
        make = lambda o: tv_volume(o.observation, weight, o.case.range, iterations=settings.tv_iterations)  # noqa: E731
        self._classical(task, "TV", make, test, (*common, weight, settings.tv_iterations))
        if settings.supervised is not None:
            net = self._supervised(task, train, settings.supervised)
            depends = (*common, settings.supervised, net.steps)
            self._classical(task, "supervised U-Net", net.reconstruct, test, depends)
            note |= {"supervised_seconds": net.seconds, "supervised_steps": net.steps}
        return note | {"tv_weight": weight}

    def _tv_weight(self, few: list[Observed]) -> float:
        iterations = self.settings.tv_iterations

        def tune() -> dict[str, float]:
            found = tune_volumes(
                [o.observation for o in few],
                [o.case.volume.data for o in few],
                [o.case.range for o in few],
                iterations=iterations,
            )
            return {"weight": found.weight}

        depends = ([identity(o) for o in few], iterations)
        return float(self.store.content("TV weight", depends, tune)["weight"])

    def _supervised(self, task: StudyTask, cases: Sequence[Case], chosen: SupervisedSettings) -> Supervised:
        noise, seed = self.settings.noise, self.settings.seed
        modality, intensity = self.codec.modality, self.codec.intensity

        def train() -> Mapping[str, Any]:
            net = train_supervised(
                task, cases, noise=noise, modality=modality, intensity=intensity, settings=chosen, seed=seed
            )
            return net.content()

        depends = (task, noise, seed, modality, intensity, chosen, [c.volume.name for c in cases])
        content = self.store.content("U-Net", depends, train)
        return Supervised.from_content(content, chosen.widths, task, modality, intensity)

    def finish(self, tasks: Sequence[StudyTask], splits: Mapping[str, Sequence[Case]]) -> Study:
        """Factors as a model ships them, one set for each family of operators, and the study itself."""
        shipped, families = Conformal(), {}
        for task in tasks:
            families.setdefault(self.kept[task.name][0][0].observation.operator.family, []).append(task.name)
        for family, names in families.items():
            posteriors = [p for name in names for p in self.kept[name][1]]
            if any(p.calibrated for p in posteriors):
                continue
            truths = [_truth(o) for name in names for o in self.kept[name][0]]
            regions = self.codec.calibration_regions
            one = Conformal.fit(posteriors, truths, family=family, regions=regions)
            shipped = shipped.joined(one)
            for name in names:
                _, _, test, found = self.kept[name]
                scaled = [one.apply(p, family, known_regions(one, family, regions)) for p in found]
                self._add(name, "coverage_family", [r["coverage"] for r in ensemble_scores(scaled, test)])
        settings = self.settings
        protocol = {
            "noise": settings.noise,
            "samples": settings.samples,
            "paired": settings.paired,
            "steps": settings.steps,
            "seed": settings.seed,
            "volumes": {split: len(cases) for split, cases in splits.items()},
            "modality": self.codec.modality,
            "data_range": "high - low of each volume's intensity scale: "
            + ("a window" if self.codec.intensity.fixed(self.codec.modality) else "percentiles"),
            "ssim": "3-D, windows of 7 voxels, mean over the compared voxels",
            "tasks": self.notes,
        }
        return Study(tuple(self.records), protocol, shipped, self.examples)

    def _classical(
        self,
        task: StudyTask,
        name: str,
        method: Callable[[Observed], np.ndarray],
        test: list[Observed],
        depends: Any,
    ) -> None:
        def timed(observed: Observed) -> tuple[np.ndarray, float]:
            began = time.monotonic()
            return method(observed), time.monotonic() - began

        for k, observed in enumerate(test):
            image, seconds = self.store.image(observed, name, depends, lambda o=observed: timed(o))
            record = self._record(task, name, observed, image, seconds)
            record |= {"chi2": chi_square(observed.observation, image), "crps": record["mae"]}
            self.records.append(record)
            self.progress(f"{task.name}: {name}", k + 1, len(test))
            if k == 0 and name in ("cubic", "TV", "supervised U-Net"):
                self.examples.setdefault(task.name, {})[name] = image.astype(np.float32)

    def _ours(self, task: StudyTask, tuning: list[Observed], test: list[Observed]) -> None:
        held = [self._reconstruct(task, o, k, len(tuning), "calibrating") for k, o in enumerate(tuning)]
        posteriors = [posterior_of(result) for result, _ in held]
        found, records = [], []
        for k, observed in enumerate(test):
            result, seconds = self._reconstruct(task, observed, k, len(test), OURS)
            found.append(posterior_of(result))
            records.append(self._record(task, OURS, observed, result.arrays["recon"], seconds))
            if k == 0:
                self.examples.setdefault(task.name, {}).update(example_of(observed, result, task))
        if posteriors[0].calibrated:
            scaled = found  # the model brings its own factors
        else:
            truths = [scored_truth(o) for o in tuning]
            factors = Conformal.fit(posteriors, truths, family=task.name)
            scaled = [factors.apply(p, task.name) for p in found]
        raw, calibrated = ensemble_scores(found, test), ensemble_scores(scaled, test)
        for record, before, after in zip(records, raw, calibrated, strict=True):
            self.records.append(record | after | {"coverage_raw": before["coverage"]})
        self.kept[task.name] = (tuning, posteriors, test, found)

    def _reconstruct(
        self, task: StudyTask, observed: Observed, k: int, total: int, what: str
    ) -> tuple[Reconstruction, float]:
        settings, began = self.settings, time.monotonic()
        seed = settings.seed + observed.case.number

        def make() -> tuple[Reconstruction, float]:
            result = self.model.reconstruct(
                observed.scan,
                noise_std=observed.noise_std,
                samples=settings.samples,
                steps=settings.steps,
                seed=seed,
                solver=settings.solver,
                paired=settings.paired,
            )
            assert isinstance(result, Reconstruction)
            return result, time.monotonic() - began

        own = getattr(self.model, "calibration", None)
        depends = (
            weights_of(self.model),
            settings.samples,
            settings.steps,
            seed,
            settings.solver,
            settings.paired,
        )
        found = self.store.reconstruction(observed, (*depends, None if own is None else own.state()), make)
        self.progress(f"{task.name}: {what}", k + 1, total)
        return found

    def _record(
        self, task: StudyTask, method: str, observed: Observed, image: np.ndarray, seconds: float
    ) -> dict[str, Any]:
        case = observed.case
        score = image_score(case.volume.data, image, case.range, observed.scored)
        return {
            "task": task.name,
            "method": method,
            "volume": case.volume.name,
            "psnr": score.psnr,
            "ssim": score.ssim,
            "mae": score.mae,
            "range": case.range,
            "seconds": seconds,
        }

    def _add(self, task: str, name: str, values: Sequence[float]) -> None:
        ours = [r for r in self.records if r["task"] == task and r["method"] == OURS]
        for record, value in zip(ours, values, strict=True):
            record[name] = value


def known_regions(
    factors: Conformal, family: str, rule: Callable[[Posterior], torch.Tensor]
) -> Callable[[Posterior], torch.Tensor]:
    """`rule`, with labels that no calibration volume had replaced by the nearest one that some had."""
    known = torch.tensor(sorted(factors.families[family].quantiles))

    def regions(posterior: Posterior) -> torch.Tensor:
        labels = rule(posterior).long()
        nearest = (labels.unsqueeze(-1) - known).abs().argmin(dim=-1)
        return torch.where(labels >= 0, known[nearest], labels)

    return regions


def crop(volume: Volume, grid: Triple) -> Volume:
    """The middle of a volume, at most as large as `grid`, in its own place in the patient."""
    start = [max(0, (n - g) // 2) for n, g in zip(volume.shape, grid, strict=True)]
    if all(n <= g for n, g in zip(volume.shape, grid, strict=True)):
        return volume
    part = volume.data[tuple(slice(s, s + g) for s, g in zip(start, grid, strict=True))]
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.array(start)
    return from_array(np.ascontiguousarray(part), affine, name=volume.name)


def weights_of(model: object) -> str:
    """Hash of a loaded model's weights; empty when it has none."""
    card = getattr(model, "card", {})
    return str(card.get("files", {}).get("model.safetensors", {}).get("sha256", ""))


def _volumes(source: Any, split: str) -> list[Any]:
    """What a corpus or a mapping has in a split."""
    if isinstance(source, Mapping):
        return list(source.get(split, ()))
    return list(source.files(split))


def _read(one: Any) -> Volume:
    return read_entry(one) if isinstance(one, Entry) else read_volume(one)


def _truth(observed: Observed) -> torch.Tensor:
    return torch.from_numpy(observed.case.volume.data.astype(np.float32))[None, None]
