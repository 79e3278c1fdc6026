"""What travels with climate weights: grid, layout, units, climatology, calendar; latents to data sets and back."""

import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from sciLDM.autoencoders import Autoencoder
from sciLDM.autoencoders.grid import GridAutoencoder, GridFields, GridSettings
from sciLDM.conditions import FieldMap
from sciLDM.data.latent_cache import module_hash
from sciLDM.domain import FieldCodec, Request, Task
from sciLDM.domains.climate.film import FilmAutoencoder
from sciLDM.domains.climate.grid import Grid
from sciLDM.domains.climate.outputs import NUMBER, provenance, samples_dataset, write_dataset
from sciLDM.domains.climate.packing import unpack
from sciLDM.domains.climate.requests import Conditions, DatedRequest
from sciLDM.domains.climate.template import Template
from sciLDM.domains.climate.transforms import Normaliser
from sciLDM.errors import ConfigError
from sciLDM.operators import Operator
from sciLDM.posterior.result import Posterior
from sciLDM.rng import NoiseSource

__all__ = ["ClimateCodec", "grid_edges", "static_fields"]

_BATCH = 256


@final
class ClimateCodec(FieldCodec):
    """Codec of a climate model; built from plain JSON.

    Args:
        state: As `ClimateCorpus.state`.

    Attributes:
        template: The layout of the training data.
        frames: States of a trajectory; 1 for single maps.
        grid_shape: What decoders return and operators act on: `(channel, H, W)`, or `(channel, frames, H, W)`.
        members: Whether `deliver` adds the posterior's samples to the data set.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.state = dict(state)
        self.template = Template.from_dict(state["template"])
        self.frames = int(state["frames"])
        self.normaliser = Normaliser.from_dict(state["normaliser"])
        self.exists = torch.from_numpy(unpack(state["exists"]).copy())
        self._everywhere = bool(self.exists.all())
        self.asked = Conditions(state["conditions"])
        self.settings = GridSettings(**{k: _tuples(v) for k, v in state["autoencoder"].items()})
        # Known states of the trajectory, as latents; the objective reveals them, so labels hold none.
        known = (
            [FieldMap("context", dropout=0.0, channels=self.settings.channels)]
            if state.get("context")
            else []
        )
        self.conditions = (*self.asked.declared, *known)
        self.asks = ("time", "day", "scenario") if self.asked.scenarios else ("time", "day")
        self.members = bool(state.get("members", False))
        grid = self.template.grid
        lead = () if self.frames == 1 else (self.frames,)
        coarse = self.settings.layout(grid.shape, grid_edges(grid)).coarse(grid.shape)
        self.shape = (*lead, *coarse)
        self.grid_shape = (self.template.channels, *lead, *grid.shape)

    @cached_property
    def area(self) -> Float[Tensor, "rows columns"]:
        """Cell areas, mean 1."""
        return torch.from_numpy(self.template.grid.area).float()

    @cached_property
    def static(self) -> Float[Tensor, "static rows columns"] | None:
        """What encoder and decoder know beforehand."""
        return static_fields(self.template.grid, self.exists.numpy())

    def autoencoder(self) -> Autoencoder[Any, Any]:
        grid, static = self.template.grid, self.static
        states = GridAutoencoder(
            self.template.channels,
            grid.shape,
            self.settings,
            edges=grid_edges(grid),
            masked=bool(self.state["gaps"]),
            static_channels=0 if static is None else len(static),
        )
        return states if self.frames == 1 else FilmAutoencoder(states, self.frames)

    def plan(
        self, count: int, wanted: Mapping[str, Any], noise: NoiseSource, ids: Sequence[int]
    ) -> DatedRequest:
        u = noise.uniform(ids, (1,), stream="date").squeeze(1).numpy()
        start, labels = self.asked.draw(count, wanted, u)
        times = self.asked.step.after(start, self.frames)
        return DatedRequest(
            self.shape,
            labels,
            None,
            self.asked.always,
            times=times,
            seed=noise.seed,
            ids=tuple(map(int, ids)),
        )

    @torch.no_grad()
    def decode(
        self,
        autoencoder: Autoencoder[Any, Any],
        z: Float[Tensor, "batch channel *shape"],
        request: Request,
        *,
        reference: Path | None = None,
    ) -> xr.Dataset:
        assert isinstance(request, DatedRequest), "a climate request always has dates"
        parts = []
        for start in range(0, len(z), _BATCH):
            part = slice(start, start + _BATCH)
            context = {"phase": request.phase[part].to(z.device)}
            parts.append(self.to_units(autoencoder.decode(z[part], None), context).cpu())
        values = self.states_of(torch.cat(parts))
        dataset = samples_dataset(self.template, values, request.times, request.ids, film=self.frames > 1)
        details = {**self.provenance, "autoencoder": module_hash(autoencoder)[:12], "seed": request.seed}
        return provenance(dataset, f"{len(values)} samples", details)

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the model's knowledge comes from."""
        source = self.state["source"]
        return {"data": source["name"], "fingerprint": source["fingerprint"][:12]}

    def to_units(
        self, decoded: Float[Tensor, "batch channel *grid"], context: Mapping[str, Tensor]
    ) -> Float[Tensor, "batch channel *grid"]:
        return self.normaliser.to_units(decoded, context["phase"])

    def from_units(
        self, x: Float[Tensor, "batch channel *grid"], context: Mapping[str, Tensor]
    ) -> GridFields:
        return self.fields(self.normaliser.from_units(x, context["phase"]))

    def fields(self, x: Float[Tensor, "batch channel *grid"], *, complete: bool = False) -> GridFields:
        """Normalised values as the autoencoder takes them; missing ones (NaN, or where no cell exists) weigh 0.

        Args:
            x: Normalised values.
            complete: No value is missing where a cell exists; it is then not looked for.
        """
        exists, area = self.exists.to(x.device), self.area.to(x)
        if x.ndim == 5:
            exists = exists[:, None]
        static = None if self.static is None else self.static.to(x)
        known = exists.expand(x.shape) if complete else torch.isfinite(x) & exists
        if self._everywhere if complete else bool(known.all()):
            return GridFields(x, area.expand(len(x), 1, *x.shape[2:]), static)
        weight = (exists * area).expand(x.shape) if complete else known * area
        return GridFields(torch.where(known, x, 0.0), weight, static)

    def states_of(self, x: Float[Tensor, "batch channel *grid"]) -> np.ndarray:
        """`[batch, state, channel, H, W]` with NaN where no cell exists."""
        values = (x[:, :, None] if x.ndim == 4 else x).transpose(1, 2).numpy()
        return np.where(self.exists.numpy(), values, np.nan)

    block_formats = (".zarr",)

    @property
    def sample_bytes(self) -> int:
        """Size of one sample."""
        return 4 * math.prod(self.grid_shape)

    def create_samples(self, path: Path, request: Request, *, block: int, details: Mapping[str, Any]) -> None:
        """Lay out a sharded zarr store for all samples of a request."""
        from sciLDM.domains.climate.store import create_store, samples_layout

        assert isinstance(request, DatedRequest)
        count, film = len(request.ids), self.frames > 1
        layout = samples_layout(
            self.template, request.times, request.ids, film=film, what=f"{count} samples",
            details={**self.provenance, **details},
        )  # fmt: skip
        time = {self.template.axes.time or "time": self.frames} if film else {}
        create_store(path, layout, along={NUMBER: block, **time})

    def write_block(self, path: Path, first: int, samples: xr.Dataset) -> None:
        """Write samples `first`, `first + 1`, ... into the store."""
        from sciLDM.domains.climate.store import write_region

        write_region(path, samples, {NUMBER: first})

    def task(
        self,
        observed: Any,
        operator: Operator | None,
        *,
        noise_std: float | None = None,
        cond: Mapping[str, Any] | None = None,
    ) -> Task:
        """Read observations; see `observations.read_observed` for what may be given."""
        from sciLDM.domains.climate.observations import read_observed

        return read_observed(self, observed, operator, noise_std=noise_std, cond=cond or {})

    def deliver(self, posterior: Posterior, task: Task) -> xr.Dataset:
        from sciLDM.domains.climate.deliver import deliver_dataset

        return deliver_dataset(self, posterior, task)

    def calibration_regions(self, posterior: Posterior) -> Tensor:
        """One region a channel; cells that do not exist belong to none."""
        channel = torch.arange(len(self.exists))[:, None, None]
        labels = torch.where(self.exists, channel, -1)
        return labels[None] if self.frames == 1 else labels[None, :, None]

    def read_observation(self, path: Path, operator_spec: Any) -> tuple[Any, Operator | None]:
        """A NetCDF or zarr data set (gaps, coarse means or points), or a CSV of stations."""
        from sciLDM.domains.climate.read import open_dataset

        if operator_spec is not None:
            raise ConfigError(
                f"operator {operator_spec.name!r}: climate observations say themselves how they were made (gaps, "
                "coarser cells, points); leave the operator out"
            )
        if path.suffix.lower() in (".csv", ".tsv"):
            import pandas as pd

            table = pd.read_csv(path, sep="\t" if path.suffix.lower() == ".tsv" else ",")
            return (table.assign(time=pd.to_datetime(table["time"])) if "time" in table else table), None
        return open_dataset(path).load(), None

    def write_posterior(self, result: xr.Dataset, folder: Path) -> None:
        """`posterior.nc`."""
        write_dataset(result, folder / "posterior.nc")


def grid_edges(grid: Grid) -> tuple[Any, Any]:
    """What lies beyond the grid's ends, for the autoencoder's padding."""
    across = grid.periodic and all(grid.reaches_poles) and grid.shape[1] % 2 == 0
    return ("pole" if across else "replicate"), ("circular" if grid.periodic else "replicate")


def static_fields(grid: Grid, exists: np.ndarray) -> Float[Tensor, "static rows columns"] | None:
    """Where on the sphere a cell lies (a unit vector, so without a date line), and whether it exists."""
    found = []
    if grid.kind != "plain":
        lat, lon = (np.deg2rad(np.nan_to_num(v)) for v in (grid.latitudes, grid.longitudes))
        found += [np.sin(lat), np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon)]
    if not exists.all():
        found.append(exists.any(axis=0).astype(float))
    return torch.from_numpy(np.stack(found)).float() if found else None


def plain_settings(settings: GridSettings) -> dict[str, Any]:
    """Settings as JSON gives them back."""
    from dataclasses import asdict

    return json.loads(json.dumps(asdict(settings)))


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
