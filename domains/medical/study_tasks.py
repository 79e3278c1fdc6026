r"""What is taken from held-out volumes to see whether it can be rebuilt: lost slices, thick slices, a hole, few views.

Each task simulates `y = A(x) + noise` on the volume's own voxels and hands the same values to everybody: as a `Scan` to
the model, as an `Observation` to classical methods. Methods are compared where the task took something away, `scored`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import final

import numpy as np
import torch
from torch import Tensor

from sciLDM.domains.medical.baselines import (
    along_axis,
    back_projection,
    fill_gaps,
    gradient_fill,
    sirt_volume,
    zero_filled_volume,
)
from sciLDM.domains.medical.hounsfield import MU_WATER_70_KEV, to_attenuation
from sciLDM.domains.medical.scan import Scan, measured
from sciLDM.domains.medical.volume import Volume, from_array
from sciLDM.errors import ConfigError, DataError
from sciLDM.operators import GaussianNoise, Identity, Observation, ParallelBeam, ThickSlice
from sciLDM.rng import NoiseSource

__all__ = ["Case", "Hole", "MissingSlices", "Observed", "StudyTask", "ThickSlices", "Views", "task_named"]

Method = Callable[[], np.ndarray]


@final
@dataclass(frozen=True)
class Case:
    """A held-out volume.

    Attributes:
        volume: On RAS+ axes, axes on disk included.
        low: Value that counts as 0 in scores.
        high: Value that counts as 1: `high - low` is the data range of PSNR and SSIM.
        number: Decides the noise and the place of a hole.
    """

    volume: Volume
    low: float
    high: float
    number: int

    @staticmethod
    def of(volume: Volume, scale: tuple[float, float], number: int) -> "Case":
        """A volume as a case; the file's own order of axes is forgotten."""
        upright = from_array(volume.data.astype(np.float32), volume.affine, name=volume.name)
        return Case(upright, *scale, number)

    @property
    def range(self) -> float:
        """What PSNR and SSIM are relative to."""
        return self.high - self.low

    def mirrored(self) -> "Case":
        """Left and right exchanged, for training."""
        flipped = np.ascontiguousarray(self.volume.data[::-1])
        return replace(self, volume=self.volume.with_data(flipped))


@final
@dataclass(frozen=True)
class Observed:
    """A simulated observation of one case.

    Attributes:
        case: The truth.
        scan: For the model.
        observation: For classical methods, one row; its operator acts on `(1, *volume)`.
        noise_std: In the observation's units.
        scored: Voxels at which methods are compared.
        seen: 1 where a voxel was measured itself, else 0.
        known: Values that show the intensity scale.
    """

    case: Case
    scan: Scan
    observation: Observation
    noise_std: float
    scored: np.ndarray
    seen: np.ndarray
    known: np.ndarray


class StudyTask(ABC):
    """A kind of damage.

    Attributes:
        name: In tables.
        compared: Where methods are compared, for readers of a table.
    """

    name: str
    compared: str

    @abstractmethod
    def observe(self, case: Case, noise: float, seed: int) -> Observed:
        """Simulate; the same case number and seed give the same values.

        Args:
            case: The volume.
            noise: Standard deviation of the errors as a share of the range of the values.
            seed: Of the noise.
        """

    @abstractmethod
    def classical(self, observed: Observed) -> Mapping[str, Method]:
        """Reconstructions without learning, by name; each is computed when called."""

    @abstractmethod
    def guess(self, observed: Observed) -> np.ndarray:
        """A quick first image, which a supervised network improves."""


@final
@dataclass(frozen=True)
class MissingSlices(StudyTask):
    """Only every `every`-th slice was recorded."""

    every: int = 4
    axis: int = 2
    name: str = "slices"
    compared: str = "lost slices"

    def observe(self, case: Case, noise: float, seed: int) -> Observed:
        n = case.volume.shape[self.axis]
        keep = self.kept(n)
        if len(keep) < 2:
            raise DataError(
                f"{case.volume.name}: {n} slices are too few to lose all but every {self.every}th"
            )
        seen = np.zeros(case.volume.shape, dtype=bool)
        np.moveaxis(seen, self.axis, 0)[keep] = True
        return _gaps(case, seen, noise, seed, self.name)

    def kept(self, n: int) -> np.ndarray:
        """Recorded slices, as far from one end as from the other."""
        return np.arange(((n - 1) % self.every) // 2, n, self.every)

    def classical(self, observed: Observed) -> Mapping[str, Method]:
        keep, n = self.kept(observed.case.volume.shape[self.axis]), observed.case.volume.shape[self.axis]
        values = np.take(observed.scan.volume.data, keep, axis=self.axis)
        found: dict[str, Method] = {
            kind: lambda kind=kind: along_axis(values, keep, n, self.axis, kind)
            for kind in ("nearest", "linear", "cubic")
        }
        return found | {"zero-filled": lambda: zero_filled_volume(observed.observation)}

    def guess(self, observed: Observed) -> np.ndarray:
        return self.classical(observed)["linear"]()


@final
@dataclass(frozen=True)
class ThickSlices(StudyTask):
    """Slices `factor` times as thick as the volume's own, side by side."""

    factor: float = 4.0
    axis: int = 2
    name: str = "thick"
    compared: str = "all voxels inside a slice"

    def observe(self, case: Case, noise: float, seed: int) -> Observed:
        volume = case.volume
        spacing = volume.spacing[self.axis]
        operator = ThickSlice(
            (1, *volume.shape), axis=1 + self.axis, spacing=spacing, thickness=self.factor * spacing
        )
        values, std = _measure(case, operator(_batch(volume.data)), noise * case.range, seed, self.name)
        inside = int(np.ceil(float(operator.centres[-1]) / spacing + self.factor / 2 - 1e-4))
        scored = np.zeros(volume.shape, dtype=bool)
        np.moveaxis(scored, self.axis, 0)[:inside] = True
        blank = volume.with_data(np.full_like(volume.data, np.nan))
        scan = Scan(blank, values[0], operator)
        observation = Observation(values, operator, GaussianNoise(std))
        seen = np.zeros(volume.shape, dtype=np.float32)
        return Observed(case, scan, observation, std, scored, seen, values.numpy())

    def classical(self, observed: Observed) -> Mapping[str, Method]:
        operator, volume = observed.observation.operator, observed.case.volume
        assert isinstance(operator, ThickSlice)
        # Centres are counted from the first voxel's outer edge in mm; voxel k has its middle at k + 1/2.
        at = operator.centres.numpy() / volume.spacing[self.axis] - 0.5
        values, n = observed.observation.values[0, 0].numpy(), volume.shape[self.axis]
        found: dict[str, Method] = {
            kind: lambda kind=kind: along_axis(values, at, n, self.axis, kind)
            for kind in ("nearest", "linear", "cubic")
        }
        return found | {"zero-filled": lambda: zero_filled_volume(observed.observation)}

    def guess(self, observed: Observed) -> np.ndarray:
        return self.classical(observed)["linear"]()


@final
@dataclass(frozen=True)
class Hole(StudyTask):
    """A cube of `side` voxels is missing, at a place drawn for each case away from the volume's faces."""

    side: int = 12
    name: str = "hole"
    compared: str = "inside the hole"

    def observe(self, case: Case, noise: float, seed: int) -> Observed:
        shape = case.volume.shape
        u = NoiseSource(seed).uniform([case.number], (3,), f"{self.name}-place")[0].numpy()
        seen = np.ones(shape, dtype=bool)
        box = []
        for n, share in zip(shape, u, strict=True):
            size = min(self.side, n // 2)
            margin = min(2, (n - size) // 2)
            start = margin + int(share * (n - size - 2 * margin + 1))
            box.append(slice(start, start + size))
        seen[tuple(box)] = False
        return _gaps(case, seen, noise, seed, self.name)

    def classical(self, observed: Observed) -> Mapping[str, Method]:
        data = observed.scan.volume.data
        found: dict[str, Method] = {
            kind: lambda kind=kind: fill_gaps(data, kind) for kind in ("nearest", "linear", "cubic")
        }
        found["biharmonic"] = lambda: gradient_fill(data)
        return found | {"zero-filled": lambda: zero_filled_volume(observed.observation)}

    def guess(self, observed: Observed) -> np.ndarray:
        # Spline interpolation in space is too slow to be done for every training example.
        return fill_gaps(observed.scan.volume.data, "nearest")


@final
@dataclass(frozen=True)
class Views(StudyTask):
    """Few parallel projections of every axial slice of a CT volume, as line integrals of attenuation."""

    views: int = 8
    mu_water: float = MU_WATER_70_KEV
    compared: str = "all voxels"

    @property
    def name(self) -> str:  # type: ignore[override]
        """`views8`."""
        return f"views{self.views}"

    def observe(self, case: Case, noise: float, seed: int) -> Observed:
        volume = case.volume
        beam = _beam(volume.shape, self.views, volume.spacing[:2])
        clean = beam(to_attenuation(_batch(volume.data), self.mu_water))
        values, std = _measure(case, clean, noise * float(clean.max()), seed, self.name)
        scan = measured(values[0], beam, like=volume, mu_water=self.mu_water)
        assert scan.operator is not None
        assert scan.values is not None
        observation = Observation(scan.values[None], scan.operator, GaussianNoise(std))
        everywhere = np.ones(volume.shape, dtype=bool)
        seen = np.zeros(volume.shape, dtype=np.float32)
        ends = np.array([case.low, case.high], dtype=np.float32)
        return Observed(case, scan, observation, std, everywhere, seen, ends)

    def classical(self, observed: Observed) -> Mapping[str, Method]:
        limits = (observed.case.low, observed.case.high)
        return {
            "FBP": lambda: back_projection(observed.observation, limits),
            "SIRT": lambda: sirt_volume(observed.observation, limits),
            "zero-filled": lambda: zero_filled_volume(observed.observation),
        }

    def guess(self, observed: Observed) -> np.ndarray:
        return back_projection(observed.observation, (observed.case.low, observed.case.high))


def task_named(task: str | StudyTask) -> StudyTask:
    """`slices`, `thick`, `hole`, `views8`, `views16`, ..., or a task as it is.

    Raises:
        ConfigError: Another name.
    """
    if isinstance(task, StudyTask):
        return task
    known: dict[str, Callable[[], StudyTask]] = {"slices": MissingSlices, "thick": ThickSlices, "hole": Hole}
    if task in known:
        return known[task]()
    number = task.removeprefix("views")
    if task.startswith("views") and number.isdigit() and int(number) > 0:
        return Views(int(number))
    raise ConfigError(f"task {task!r} is not known; expected {', '.join(known)}, views8 or another number")


@lru_cache(maxsize=8)
def _beam(shape: tuple[int, ...], views: int, spacing: Sequence[float]) -> ParallelBeam:
    angles = [180.0 * k / views for k in range(views)]
    return ParallelBeam((1, *shape), angles, spacing=(float(spacing[0]), float(spacing[1])), axes=(1, 2))


def _gaps(case: Case, seen: np.ndarray, noise: float, seed: int, name: str) -> Observed:
    volume = case.volume
    values, std = _measure(case, _batch(volume.data), noise * case.range, seed, name)
    values = torch.where(torch.from_numpy(seen), values, torch.nan)
    data = values[0, 0].numpy()
    observation = Observation(values, Identity((1, *volume.shape)), GaussianNoise(std))
    scan = Scan(volume.with_data(data))
    return Observed(case, scan, observation, std, ~seen, seen.astype(np.float32), data)


def _measure(case: Case, clean: Tensor, std: float, seed: int, name: str) -> tuple[Tensor, float]:
    noise = NoiseSource(seed).normal([case.number], tuple(clean.shape[1:]), stream=name)
    return clean + std * noise, std


def _batch(data: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32))[None, None]
