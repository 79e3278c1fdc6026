"""What travels with the weights of a medical model: grid, intensity scales, conditions; observations in, images out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.autoencoders import Autoencoder
from sciLDM.autoencoders.grid import GridAutoencoder, GridFields, GridSettings
from sciLDM.domain import FieldCodec, Request, Task, broadcast_labels
from sciLDM.domains.medical.geometry import Triple, centred
from sciLDM.domains.medical.intensity import IntensitySettings, Modality, Scale, from_network, to_network
from sciLDM.domains.medical.labels import LABEL_MAP, POSITION, SHAPE, SPACING, Column, declared, map_of
from sciLDM.domains.medical.observe import Protocol, build_task, deliver_task
from sciLDM.domains.medical.result import Reconstruction
from sciLDM.domains.medical.samples import VolumeSamples
from sciLDM.domains.medical.scan import read_volume
from sciLDM.errors import ConfigError
from sciLDM.operators import Operator
from sciLDM.posterior.hooks import OperatorSpec
from sciLDM.posterior.result import Posterior
from sciLDM.rng import NoiseSource

__all__ = ["MedicalCodec", "settings_from", "voxels_per_cell"]

_DECODE = 32
_MEASURED, _GENERATED = 0.1, 0.5  # shares of the prior's variance that an observation leaves open
_AIR = -500.0  # HU between air and everything else


def voxels_per_cell(settings: GridSettings) -> Triple:
    """Voxels per latent cell along each axis."""
    x, y, z = settings.layout((1, 1, 1), "replicate").factor
    return x, y, z


def settings_from(content: Mapping[str, Any]) -> GridSettings:
    """Autoencoder settings from plain JSON, lists as tuples again."""
    return GridSettings(**{k: _tuples(v) for k, v in content.items()})


@final
class MedicalCodec(FieldCodec):
    """Codec of a model of volumes; built from plain JSON.

    Fields are `[batch, 1, *grid]` on RAS+ axes, in the data's units (HU for CT, the scanner's numbers for MR). A volume
    lies in the middle of the grid; what surrounds a smaller one is its own edge repeated.

    The context of a reconstruction is each case's intensity scale and place: `low`, `high` (what -1 and 1 of the
    network stand for) and `at`, `size` (voxels). The scale of an MR volume is estimated from what was observed of it:
    the percentiles of the known voxels (gaps), of the thick slices, or of a least-squares image (projections,
    k-space). Thick slices and least squares smooth, so their upper percentile is a little low; a known scale goes into
    `Scan.window`.

    Args:
        state: As `MedicalCorpus.state`.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.state = dict(state)
        self.modality: Modality = state["modality"]
        x, y, z = state["grid"]
        self.grid: Triple = (x, y, z)
        self.settings = settings_from(state["autoencoder"])
        self.factor = voxels_per_cell(self.settings)
        self.shape = tuple(g // f for g, f in zip(self.grid, self.factor, strict=True))
        self.intensity = IntensitySettings(**{k: _tuples(v) for k, v in state["intensity"].items()})
        self.columns = tuple(Column.from_dict(c) for c in state["columns"])
        self.classes: int = state["classes"]
        self.conditions = declared(
            self.columns, dropout=state["dropout"], patches=state["patches"], classes=self.classes
        )

    @property
    def scale(self) -> Scale:
        """The scale of a typical training volume, in which samples are returned."""
        low, high = self.state["scale"]
        return Scale(low, high)

    def autoencoder(self) -> Autoencoder[Any, Any]:
        # -1 to 1 is what a scale's window becomes, so that the PSNR is that of volumes scaled to [0, 1].
        settings = replace(self.settings, data_range=2.0)
        return GridAutoencoder(1, self.grid, settings, edges="replicate")

    def plan(self, count: int, wanted: Mapping[str, Any], noise: NoiseSource, ids: Sequence[int]) -> Request:
        """Size and spacing left open are those of a training volume, drawn at random.

        `wanted` may hold `shape` (voxels, three numbers), `spacing` (mm, three numbers), `labels` (a segmentation:
        path, image or class numbers on the grid), and columns of the table (classes by name or number).
        """
        wanted = dict(wanted)
        frames = self.state["frames"]
        u = noise.uniform(ids, (1,), stream="volume").squeeze(1).numpy()
        drawn = [frames[min(int(v * len(frames)), len(frames) - 1)] for v in u]
        shape = _triples(wanted.pop(SHAPE, None), [f["shape"] for f in drawn], SHAPE)
        spacing = _triples(wanted.pop(SPACING, None), [f["spacing"] for f in drawn], SPACING)
        if (shape > np.array(self.grid)).any():
            raise ConfigError(
                f"shape: expected at most {list(self.grid)} voxels, the model's grid, got {shape.max(0)}"
            )
        position = np.array([f["position"] for f in drawn], dtype=np.float32)
        labels = self._cond(count, wanted, shape, spacing, position, self.grid)
        return Request(self.shape, labels, None, self._always)

    @torch.no_grad()
    def decode(
        self,
        autoencoder: Autoencoder[Any, Any],
        z: Float[Tensor, "batch channel *shape"],
        request: Request,
        *,
        reference: Path | None = None,
    ) -> VolumeSamples:
        parts = [autoencoder.decode(z[k : k + _DECODE], None).cpu() for k in range(0, len(z), _DECODE)]
        fields = self.scale.decode(torch.cat(parts)[:, 0].numpy())
        shapes = np.rint(request.cond[SHAPE].cpu().numpy() * self.grid).astype(int)
        spacings = np.exp(request.cond[SPACING].cpu().numpy().astype(np.float64))
        requested = {
            c.name: self._spoken(c, request.cond[c.name]) for c in self.columns if c.name in request.cond
        }
        low, high = self.state["scale"]
        return VolumeSamples.build(fields, shapes, spacings, (low, high), requested)

    def to_units(
        self, decoded: Float[Tensor, "batch channel *grid"], context: Mapping[str, Tensor]
    ) -> Float[Tensor, "batch channel *grid"]:
        return from_network(decoded, context["low"], context["high"])

    def from_units(
        self, x: Float[Tensor, "batch channel *grid"], context: Mapping[str, Tensor]
    ) -> GridFields:
        u = to_network(x, context["low"], context["high"])
        return GridFields(_repeat_edges(u, context["at"], context["size"]))

    def target(self, fields: GridFields) -> Tensor:
        """The fields themselves; NaN around a volume smaller than the grid."""
        if fields.weight is None:
            return fields.values
        return torch.where(fields.weight > 0, fields.values, torch.nan)

    def calibration_regions(self, posterior: Posterior) -> Tensor:
        """Regions whose uncertainty is calibrated apart: measured, in between, generated; for CT air and tissue too.

        They follow from the posterior alone, never from the truth. Where the model holds no prior variance all voxels
        count as measured.
        """
        share = posterior.null_space.nan_to_num(0.0)
        regions = (share > _MEASURED).long() + (share > _GENERATED).long()
        if self.modality == "ct":
            regions = regions + 3 * (posterior.mean > _AIR).long()
        return regions

    def task(
        self,
        observed: Any,
        operator: Operator | None,
        *,
        noise_std: float | None = None,
        cond: Mapping[str, Any] | None = None,
    ) -> Task:
        """Read an observation, or several.

        Args:
            observed: A volume with gaps marked by NaN (path, DICOM folder, nibabel image, `Volume`), a `Scan` (see
                `damaged`, `keep_slices`, `thick_slices`, `measured`), values of `operator`, or a list of these.
            operator: Acts on `(1, *shape on disk)` of the volume; `observed` is then its values. None where `observed`
                says it all.
            noise_std: In the units of the observation.
            cond: Columns of the table.
        """
        return build_task(self._protocol, observed, operator, noise_std=noise_std, cond=cond)

    def deliver(self, posterior: Posterior, task: Task) -> Reconstruction | list[Reconstruction]:
        """A `Reconstruction`, or a list when a list was observed."""
        return deliver_task(self._protocol, posterior, task)

    def read_observation(self, path: Path, operator_spec: OperatorSpec | None) -> tuple[Any, Operator | None]:
        """For the command line; see `commands.read_observation`."""
        from sciLDM.domains.medical.commands import read_observation

        return read_observation(path, operator_spec), None

    def write_posterior(self, result: Any, folder: Path) -> None:
        """A BIDS derivative data set in `folder`."""
        for one in result if isinstance(result, list) else [result]:
            assert isinstance(one, Reconstruction)
            one.save(folder)

    def tile_conditions(
        self, cond: Mapping[str, Tensor], origins: Sequence[tuple[int, ...]], shape: tuple[int, ...]
    ) -> dict[str, Tensor]:
        """Size and place of tiles of a volume larger than the model's grid, as of patches in training."""
        whole = np.rint(cond[SHAPE].cpu().numpy() * self.grid)
        around = np.array(shape) * self.factor - whole
        start = np.array(origins).reshape(-1, 3) * self.factor - around // 2
        first = np.clip(start, 0, whole - 1)
        end = np.clip(start + np.minimum(self.grid, np.array(shape) * self.factor), first + 1, whole)
        labels = {**cond, SHAPE: torch.from_numpy(((end - first) / self.grid).astype(np.float32))}
        if self.state["patches"]:
            place = np.concatenate([(first + end) / whole - 1, np.log(whole / (end - first))], axis=1)
            labels[POSITION] = torch.from_numpy(place.astype(np.float32))
        return labels

    def on_grid(self, data: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
        """Values in units of `scale` as the network sees them, on the model's grid."""
        u = Scale(*scale, top=1.0 + self.intensity.headroom).encode(data)
        return centred(u.shape, self.grid).put(u)

    @property
    def _protocol(self) -> Protocol:
        spacings = np.array([f["spacing"] for f in self.state["frames"]])
        span = np.stack([spacings.min(axis=0), spacings.max(axis=0)])
        return Protocol(self.grid, self.factor, self.modality, self.intensity, self._request, span)

    def _request(
        self, grid: Triple, shapes: np.ndarray, spacings: np.ndarray, cond: Mapping[str, Any] | None
    ) -> Request:
        """Latent grid and conditions of whole volumes on `grid`; shapes beyond the model's are left to its tiles."""
        unknown = np.full((len(shapes), 6), np.nan, dtype=np.float32)
        latent = tuple(g // f for g, f in zip(grid, self.factor, strict=True))
        labels = self._cond(len(shapes), dict(cond or {}), shapes, spacings, unknown, grid)
        return Request(latent, labels, None, self._always)

    @property
    def _always(self) -> frozenset[str]:
        return frozenset({SPACING, SHAPE})

    def _cond(
        self,
        count: int,
        wanted: dict[str, Any],
        shape: np.ndarray,
        spacing: np.ndarray,
        position: np.ndarray,
        grid: Triple,
    ) -> dict[str, Tensor]:
        labels: dict[str, Tensor] = {
            SPACING: torch.from_numpy(np.log(spacing).astype(np.float32)),
            SHAPE: torch.from_numpy((shape / np.array(self.grid)).astype(np.float32)),
        }
        if self.state["patches"]:
            labels[POSITION] = torch.from_numpy(position.astype(np.float32))
        if LABEL_MAP in wanted:
            labels[LABEL_MAP] = self._label_map(wanted.pop(LABEL_MAP), count, grid)
        named = {c.name: c for c in self.columns}
        plain = {k: self._wanted(named[k], v) if k in named else v for k, v in wanted.items()}
        for name, label in broadcast_labels(plain, count, list(named)).items():
            if named[name].classes:
                index = torch.where(label.isnan(), -1.0, label)
                if bool((index != index.round()).any() or (index >= len(named[name].classes)).any()):
                    raise ConfigError(f"condition {name!r}: expected one of {', '.join(named[name].classes)}")
                labels[name] = index.long()
            else:
                labels[name] = label
        return labels

    def _wanted(self, column: Column, value: Any) -> Any:
        if isinstance(value, list | tuple | np.ndarray):
            return [column.wanted(str(v) if isinstance(v, np.str_) else v) for v in value]
        return column.wanted(value)

    def _spoken(self, column: Column, label: Tensor) -> list[Any]:
        if not column.classes:
            return label.tolist()
        return [column.classes[k] if k >= 0 else "" for k in label.tolist()]

    def _label_map(self, value: Any, count: int, grid: Triple) -> Tensor:
        if not self.classes:
            raise ConfigError("this model knows no label map: it was trained without settings.label_map")
        data = value if isinstance(value, np.ndarray) else read_volume(value).data
        shares = map_of(centred(data.shape, grid).put(data), self.classes, self.factor)
        return torch.from_numpy(shares).expand(count, *shares.shape)


def _repeat_edges(
    u: Float[Tensor, "batch channel x y z"],
    at: Float[Tensor, "batch three"],
    size: Float[Tensor, "batch three"],
) -> Float[Tensor, "batch channel x y z"]:
    """Replace what surrounds each row's volume by the volume's edge, as in training."""
    for k in range(3):
        n = u.shape[2 + k]
        first, last = at[:, k].to(u.device).long(), (at[:, k] + size[:, k] - 1).to(u.device).long()
        if bool((first == 0).all() and (last == n - 1).all()):
            continue
        index = torch.arange(n, device=u.device).expand(len(u), n).clamp(first[:, None], last[:, None])
        if bool((index == index[:1]).all()):
            u = u.index_select(2 + k, index[0])
        else:
            view = [len(u), 1, 1, 1, 1]
            view[2 + k] = n
            u = u.gather(2 + k, index.view(view).expand_as(u))
    return u


def _triples(wanted: Any, drawn: Sequence[Any], name: str) -> np.ndarray:
    """One triple a sample: the user's, or those drawn."""
    if wanted is None:
        return np.array(drawn, dtype=np.float64).reshape(-1, 3)
    value = np.asarray(wanted, dtype=np.float64)
    if value.shape not in ((3,), (len(drawn), 3)) or not (value > 0).all():
        raise ConfigError(f"{name}: expected three positive numbers, along x, y, z, got {wanted!r}")
    return np.broadcast_to(value, (len(drawn), 3)).copy()


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
