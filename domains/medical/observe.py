"""From scans to a `Task`, and from a posterior to images in the patients' own geometry."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sciLDM.domain import Request, Task
from sciLDM.domains.medical.geometry import OnGrid, OnGridNonlinear, Placement, Triple, centred, task_grid
from sciLDM.domains.medical.intensity import IntensitySettings, Modality, Scale, as_rows, check_modality
from sciLDM.domains.medical.result import LEVELS, Reconstruction
from sciLDM.domains.medical.scan import Scan, as_scans, read_volume
from sciLDM.domains.medical.volume import Volume, from_array
from sciLDM.errors import ConfigError, DataError, ShapeMismatch
from sciLDM.operators import (
    GaussianNoise,
    Identity,
    LinearOperator,
    Observation,
    Operator,
    ThickSlice,
    conjugate_gradient,
)
from sciLDM.posterior.result import Posterior

__all__ = ["Native", "Protocol", "build_task", "deliver_task"]

_LEAST_SQUARES = 12
"""Iterations for a rough image that shows the intensity scale; more would fit the noise."""


@final
@dataclass(frozen=True)
class Protocol:
    """What reading an observation needs of a model.

    Attributes:
        grid: The model's grid.
        factor: Voxels per latent cell.
        modality: What its volumes are.
        intensity: How values are scaled.
        request: `(grid, shapes, spacings, cond)` to a request.
        spacings: Smallest and largest spacing of the training volumes along each axis, `[2, 3]` in mm.
    """

    grid: Triple
    factor: Triple
    modality: Modality
    intensity: IntensitySettings
    request: Callable[[Triple, np.ndarray, np.ndarray, Mapping[str, Any] | None], Request]
    spacings: np.ndarray


@final
@dataclass(frozen=True)
class Native:
    """What `deliver_task` needs of each case."""

    volumes: tuple[Volume, ...]
    places: tuple[Placement, ...]
    scales: tuple[Scale, ...]
    single: bool
    operator: str
    noise_std: float | None
    outside: tuple[float, ...]
    notes: tuple[tuple[str, ...], ...]


def build_task(
    protocol: Protocol,
    observed: Any,
    operator: Operator | None,
    *,
    noise_std: float | None,
    cond: Mapping[str, Any] | None,
) -> Task:
    """See `MedicalCodec.task`.

    Raises:
        DataError: Nothing is missing and nothing was measured otherwise; a volume of another modality.
        ShapeMismatch: Operator and values do not belong together, or cases of different kinds.
    """
    if operator is not None:
        observed = _with_operator(observed, operator)
    scans, single = as_scans(observed)
    shapes = np.array([s.volume.shape for s in scans])
    grid = task_grid(shapes.max(axis=0).tolist(), protocol.grid, protocol.factor)
    places = [centred(s.volume.shape, grid) for s in scans]
    if all(s.operator is None for s in scans):
        values, acts = _gaps(scans, places, noise_std), Identity((1, *grid))
        known = [np.asarray(s.volume.data) for s in scans]
    else:
        values, acts = _measurements(scans, places)
        known = [_rough(s, v, acts, p) for s, v, p in zip(scans, values, places, strict=True)]
    if isinstance(acts, Identity):
        for data in known:
            check_modality(data, protocol.modality)
    scales = [_scale(s, k, protocol) for s, k in zip(scans, known, strict=True)]
    spacings = np.array([s.volume.spacing for s in scans])
    context = as_rows(scales) | {
        "at": torch.tensor([p.at for p in places]).float(),
        "size": torch.tensor([p.size for p in places]).float(),
    }
    native = Native(
        tuple(s.volume for s in scans),
        tuple(places),
        tuple(scales),
        single,
        acts.family,
        noise_std,
        tuple(s.clipped(k[np.isfinite(k)]) for s, k in zip(scales, known, strict=True)),
        tuple(_notes(s.volume, protocol) for s in scans),
    )
    noise = None if noise_std is None else GaussianNoise(noise_std)
    request = protocol.request(grid, shapes, spacings, cond)
    return Task(Observation(values, acts, noise), request, context, native)


def deliver_task(
    protocol: Protocol, posterior: Posterior, task: Task
) -> Reconstruction | list[Reconstruction]:
    """See `MedicalCodec.deliver`."""
    native = task.native
    assert isinstance(native, Native)
    lower, upper = posterior.quantiles(LEVELS)
    parts = {
        "recon": posterior.mean,
        "std": posterior.std,
        "lower": lower,
        "upper": upper,
        "nullspace": posterior.null_space,
    }
    results = []
    for k, (volume, place, scale) in enumerate(
        zip(native.volumes, native.places, native.scales, strict=True)
    ):
        arrays = {name: _numpy(place.cut(values[k, 0])) for name, values in parts.items()}
        details = {
            "Operator": native.operator,
            "NoiseStd": native.noise_std,
            "IntensityScale": [scale.low, scale.high],
            "OutsideIntensityScale": native.outside[k],
            "Notes": list(native.notes[k]),
            "Sampling": {name: _plain(v) for name, v in posterior.details.items() if name != "model"},
            "model": str(posterior.details.get("model", "")),
        }
        results.append(
            Reconstruction(
                volume,
                arrays,
                _numpy(place.cut(posterior.samples[k, :, 0])),
                float(posterior.chi2[k]),
                posterior.calibrated,
                protocol.modality,
                details,
            )
        )
    return results[0] if native.single else results


def _notes(volume: Volume, protocol: Protocol) -> tuple[str, ...]:
    """What a reader of the result must know of the input."""
    lines = []
    low, high = protocol.spacings / 1.1, protocol.spacings * 1.1
    spacing = np.array(volume.spacing)
    if (spacing < low[0]).any() or (spacing > high[1]).any():
        shown = " x ".join(f"{s:.3g}" for s in spacing)
        seen = ", ".join(f"{a:.3g} to {b:.3g}" for a, b in protocol.spacings.T)
        lines.append(
            f"voxels of {shown} mm lie outside what the model was trained on ({seen} mm along x, y, z)"
        )
    larger = [n for n, g in zip(volume.shape, protocol.grid, strict=True) if n > g]
    if larger:
        lines.append(
            f"{volume.shape} voxels are more than the grid the model was trained on, {protocol.grid}"
        )
    return tuple(lines)


def _with_operator(observed: Any, operator: Operator) -> list[Scan] | Scan:
    """Values of an operator, as tensors or images, where the user gave no `Scan`."""
    if isinstance(observed, list | tuple):
        made = [_with_operator(item, operator) for item in observed]
        return [m for m in made if isinstance(m, Scan)]
    if isinstance(observed, Scan):
        if observed.operator is not None:
            raise ConfigError("operator: this scan has its own operator; leave `operator` out")
        y = torch.from_numpy(
            observed.volume.on_disk().reshape(observed.volume.stored.shape[:3]).copy()
        ).float()
        return replace(observed, values=_shaped(y, operator), operator=operator)
    if isinstance(observed, Tensor | np.ndarray):
        y = torch.as_tensor(observed)
        y = (torch.view_as_real(y) if y.is_complex() else y).float()
        blank = np.full(operator.in_shape[1:], np.nan, dtype=np.float32)
        if blank.ndim != 3:
            raise ShapeMismatch(f"expected an operator on (1, x, y, z), it acts on {operator.in_shape}")
        return Scan(from_array(blank, np.eye(4), name="measured"), _shaped(y, operator), operator)
    volume = read_volume(observed)
    y = torch.from_numpy(volume.on_disk().reshape(volume.stored.shape[:3]).copy()).float()
    if volume.stored.shape[:3] != operator.in_shape[1:]:
        raise ShapeMismatch(
            f"{volume.name or 'the volume'} has shape {volume.stored.shape}, {type(operator).__name__} acts on "
            f"{operator.in_shape}; for observations on another grid say where the result lies: measured(values, "
            "operator, like=...), or thick_slices(image)"
        )
    return Scan(volume, _shaped(y, operator), operator)


def _shaped(y: Tensor, operator: Operator) -> Tensor:
    for candidate in (y, y[None]):
        if tuple(candidate.shape) == operator.out_shape:
            return candidate
    raise ShapeMismatch(
        f"observed values have shape {tuple(y.shape)}, {type(operator).__name__} gives {operator.out_shape}"
    )


def _gaps(scans: Sequence[Scan], places: Sequence[Placement], noise_std: float | None) -> Tensor:
    """Volumes on the grid, NaN where damaged and around them."""
    rows = []
    for scan, place in zip(scans, places, strict=True):
        data, name = scan.volume.data, scan.volume.name or "volume"
        missing = np.isnan(data)
        if missing.all():
            raise DataError(f"{name}: nothing is known, all of it is NaN; use sample() instead")
        if not missing.any() and noise_std is None:
            raise DataError(
                f"{name}: nothing is missing. Mark damage by NaN or damaged(image, mask), lost slices by "
                "keep_slices(image), thick ones by thick_slices(image); or give noise_std to take out noise"
            )
        rows.append(place.put(data.astype(np.float32), fill=np.nan)[None])
    return torch.from_numpy(np.stack(rows))


def _measurements(scans: Sequence[Scan], places: Sequence[Placement]) -> tuple[Tensor, Operator]:
    """Values of all cases and the one operator that they share, on the grid."""
    first = scans[0]
    if any(s.operator is None or s.values is None for s in scans):
        raise ShapeMismatch("cases with and without an operator cannot be mixed; give them one at a time")
    assert first.operator is not None
    for scan, place in zip(scans, places, strict=True):
        same = place == places[0] and np.array_equal(
            scan.volume.stored.orientation, first.volume.stored.orientation
        )
        if not same or not _alike(scan.operator, first.operator):
            raise ShapeMismatch(
                "several cases share one operator: expected volumes of one shape and orientation, measured in the same "
                "way; give them one at a time"
            )
    orientation = first.volume.stored.orientation
    on_grid = OnGrid if isinstance(first.operator, LinearOperator) else OnGridNonlinear
    acts = on_grid(places[0], orientation, first.operator)  # type: ignore[arg-type]
    return torch.stack([s.values for s in scans if s.values is not None]), acts


def _alike(a: Operator | None, b: Operator | None) -> bool:
    if a is b:
        return True
    if isinstance(a, ThickSlice) and isinstance(b, ThickSlice):
        return a.axis == b.axis and a.matrix.shape == b.matrix.shape and bool(torch.equal(a.matrix, b.matrix))
    return False


@torch.no_grad()
def _rough(scan: Scan, values: Tensor, acts: Operator, place: Placement) -> np.ndarray:
    """Values whose percentiles are about those of the volume."""
    assert scan.operator is not None
    if isinstance(scan.operator, ThickSlice):
        return values.numpy()
    if scan.window is not None or not isinstance(acts, LinearOperator):
        return values.numpy()
    there = ~torch.isnan(values)[None]
    y = torch.where(there, values[None], 0.0)
    normal = lambda x: acts.adjoint(torch.where(there, acts(x), 0.0))  # noqa: E731
    image = conjugate_gradient(normal, acts.adjoint(y), tolerance=1e-2, max_iterations=_LEAST_SQUARES).x
    return _numpy(place.cut(image[0, 0]))


def _scale(scan: Scan, known: np.ndarray, protocol: Protocol) -> Scale:
    if scan.window is not None:
        return Scale(*scan.window, top=1.0 + protocol.intensity.headroom)
    fixed = protocol.intensity.fixed(protocol.modality)
    if fixed is None and scan.operator is not None and not isinstance(scan.operator, LinearOperator):
        raise ConfigError(
            "the intensity scale cannot be estimated through an operator that is not linear; give window=(low, high)"
        )
    return protocol.intensity.scale(known, protocol.modality)


def _numpy(values: Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.detach().cpu().numpy().astype(np.float32))


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)
