"""`ds.ldm`: what a loaded model does with a data set, from the data set's side.

import sciLDM, sciLDM.domains.climate
model = sciLDM.load("runs/slp")
filled = ds.ldm.fill(model, noise_std=50.0)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, final, runtime_checkable

import numpy as np
import xarray as xr

from sciLDM.domains.climate.axes import find_axes
from sciLDM.domains.climate.grid import Grid
from sciLDM.domains.climate.outputs import write_dataset
from sciLDM.domains.climate.read import stage
from sciLDM.errors import ConfigError, DataError

__all__ = ["LatentDiffusionAccessor", "Reconstructs"]


@runtime_checkable
class Reconstructs(Protocol):
    """What the accessor needs of a loaded model (`sciLDM.LatentDiffusion`)."""

    codec: Any
    reconstruct: Any


@xr.register_dataset_accessor("ldm")
@final
class LatentDiffusionAccessor:
    """Latent diffusion on a data set."""

    def __init__(self, dataset: xr.Dataset) -> None:
        self._dataset = dataset

    def fill(
        self,
        model: Reconstructs,
        *,
        noise_std: float | None = None,
        samples: int = 16,
        steps: int | None = None,
        seed: int = 0,
        members: bool = False,
        cond: Mapping[str, Any] | None = None,
    ) -> xr.Dataset:
        """Fill the gaps (NaN) of this data set.

        Args:
            model: A loaded climate model of the same grid.
            noise_std: Standard deviation of the errors of the values that are there, in their units; None estimates it.
            samples: Posterior samples of each case.
            steps: Steps of the sampler.
            seed: Of the samples.
            members: Also return the samples, as `<var>_members`.
            cond: Conditions besides the dates.

        Returns:
            Mean, spread and interval of every variable, in this data set's layout.
        """
        return self._run(
            model,
            self._dataset,
            members,
            noise_std=noise_std,
            samples=samples,
            steps=steps,
            seed=seed,
            cond=cond,
        )

    def reconstruct(
        self,
        model: Reconstructs,
        observed: Any,
        *,
        noise_std: float | None = None,
        samples: int = 16,
        steps: int | None = None,
        seed: int = 0,
        members: bool = False,
        cond: Mapping[str, Any] | None = None,
    ) -> xr.Dataset:
        """The fields of this data set's dates, from observations made elsewhere (stations, coarse means).

        Args:
            model: A loaded climate model.
            observed: A table or data set of observations; dates are taken from this data set where they have none.
            noise_std: As in `fill`.
            samples: As in `fill`.
            steps: As in `fill`.
            seed: As in `fill`.
            members: As in `fill`.
            cond: As in `fill`.
        """
        cond = dict(cond or {})
        if "time" not in cond and "time" in self._dataset.coords and self._dataset["time"].size == 1:
            cond["time"] = self._dataset["time"].values.reshape(-1)[0]
        return self._run(
            model, observed, members, noise_std=noise_std, samples=samples, steps=steps, seed=seed, cond=cond
        )

    def score(self, truth: xr.Dataset) -> dict[str, dict[str, float]]:
        """Area-weighted errors of this data set's means against the truth, by variable.

        Returns:
            `rmse` and `bias` in the variable's units; with `<var>_lower` and `<var>_upper` also `coverage`, with
            `<var>_std` also `spread_skill` (spread of the posterior over error of its mean).

        Raises:
            DataError: No common variable.
        """
        found: dict[str, dict[str, float]] = {}
        for name in (str(n) for n in truth.data_vars if n in self._dataset.data_vars):
            axes = find_axes(truth, name)
            grid = Grid.of(truth, axes)
            area = xr.DataArray(grid.native(grid.area), dims=(axes.y, axes.x))
            error = self._dataset[name].astype("f8") - truth[name].astype("f8")
            weight = np.isfinite(error) * area
            rmse = _mean(error**2, weight) ** 0.5
            found[name] = {"rmse": rmse, "bias": _mean(error, weight)}
            if f"{name}_std" in self._dataset:
                found[name]["spread_skill"] = (
                    _mean(self._dataset[f"{name}_std"].astype("f8") ** 2, weight) ** 0.5 / rmse
                )
            if f"{name}_lower" in self._dataset:
                inside = (truth[name] >= self._dataset[f"{name}_lower"]) & (
                    truth[name] <= self._dataset[f"{name}_upper"]
                )
                found[name]["coverage"] = _mean(inside.astype("f8"), weight)
        if not found:
            raise DataError(
                f"score: no common variable; this has {list(self._dataset)}, the truth {list(truth)}"
            )
        return found

    def stage(self, folder: str | Path) -> str:
        """Write this data set where a configuration can name it; returns the path for `domain.init_args.data`."""
        return stage(self._dataset, folder)

    def write(self, path: str | Path) -> Path:
        """Write as `.nc` or `.zarr`."""
        return write_dataset(self._dataset, path)

    @staticmethod
    def _run(model: Reconstructs, observed: Any, members: bool, **options: Any) -> xr.Dataset:
        codec = getattr(model, "codec", None)
        if codec is None or not hasattr(codec, "members"):
            raise ConfigError(f"ldm: expected a loaded climate model, got {type(model).__name__}")
        before, codec.members = codec.members, members
        try:
            return model.reconstruct(observed, **options)
        finally:
            codec.members = before


def _mean(x: xr.DataArray, weight: xr.DataArray) -> float:
    return float((x.where(weight > 0, 0.0) * weight).sum() / weight.sum())
