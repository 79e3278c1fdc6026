"""`ds.ldm`: latent diffusion from the data set's side.

    import sciLDM.domains.climate
    model = ds.ldm.fit("runs/slp", {"frames": 4, "conditions": {"context": True}})
    filled = gappy.ldm.fill(model, noise_std=50.0)
    ahead = ds.isel(time=slice(-4, None)).ldm.forecast(model, steps=3, members=50)

Models may be given as loaded, or by the name of a run folder. Results that may not fit in memory are written to a zarr
store region by region when `path` is given; these calls go on where an interrupted one stopped.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, final, runtime_checkable

import numpy as np
import xarray as xr

from sciLDM.domains.climate.axes import find_axes
from sciLDM.domains.climate.grid import Grid
from sciLDM.domains.climate.outputs import write_dataset
from sciLDM.domains.climate.read import open_dataset, stage
from sciLDM.errors import ConfigError, DataError

if TYPE_CHECKING:
    from sciLDM.domains.climate.forecast import ForecastSettings

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

    def fit(
        self,
        output: str | Path,
        domain: Mapping[str, Any] | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        say: Callable[[str], None] = print,
    ) -> Any:
        """Train a model on this data set; an interrupted training is continued by the same call.

        A copy is written beside the run first, so that the run's configuration can name it. Files that are larger than
        memory are better named in a configuration themselves (`data: /archive/era5.zarr`).

        Args:
            output: The run folder.
            domain: Arguments of `Climate` but `data`: `{"frames": 4, "split": {"test": ["2007", "2008"]}}`.
            options: Everything else of a configuration, nested or dotted: `{"denoiser_stage.max_minutes": 5}`.
            say: Where one-line messages go.

        Returns:
            The trained model.

        Raises:
            ConfigError: Options that cannot work.
            DataError: Data that cannot be used.
        """
        import sciLDM

        if "data" in (domain or {}):
            raise ConfigError("fit: the data are this data set; leave `data` out of the options")
        output = Path(output)
        data = stage(self._dataset, output.with_name(f"{output.name}-data"))
        config = {"domain": {"class_path": "climate", "init_args": {**(domain or {}), "data": data}}}
        return sciLDM.fit(config, output, overrides=dict(options or {}), say=say)

    def sample(
        self,
        model: Any,
        count: int,
        *,
        path: str | Path | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        seed: int = 0,
        cond: Mapping[str, Any] | None = None,
        batch_size: int = 64,
    ) -> xr.Dataset:
        """New fields for the dates of this data set: sample `i` has date `i`, modulo their number.

        Args:
            model: A loaded climate model, or the name of its run.
            count: Samples.
            path: A `.zarr` store to write to, in blocks.
            steps: Steps of the sampler.
            guidance: As in `LatentDiffusion.sample`.
            seed: Sample `i` depends on `(seed, i)` alone.
            cond: Conditions besides the dates; `time` here overrides them.
            batch_size: Samples computed at once.

        Returns:
            The ensemble; with `path` it is opened, not loaded.
        """
        from sciLDM.data.ensemble import write_ensemble

        model = _loaded(model)
        wanted: dict[str, Any] = {"time": self._dates(count), **(cond or {})}
        wanted = {name: value for name, value in wanted.items() if value is not None}
        options = {
            "steps": steps,
            "guidance": guidance,
            "seed": seed,
            "cond": wanted,
            "batch_size": batch_size,
        }
        if path is None:
            return model.sample(count, **options)
        return open_dataset(write_ensemble(model, path, count, **options))

    def forecast(
        self,
        model: Any,
        *,
        steps: int,
        members: int = 16,
        path: str | Path | None = None,
        seed: int = 0,
        settings: "ForecastSettings | None" = None,
    ) -> xr.Dataset:
        """What may follow the last states of this data set.

        Args:
            model: A loaded climate model trained with random context, or the name of its run.
            steps: States to forecast.
            members: Size of the ensemble.
            path: A `.zarr` store to write to, some members and states at a time.
            seed: Of the members.
            settings: How to forecast.

        Returns:
            `number` and the valid `time` as dimensions; with `path` it is opened, not loaded.

        Raises:
            ConfigError: A model that cannot forecast, or settings out of range.
            DataError: Last states that are incomplete, irregular, or of another grid.
        """
        from sciLDM.domains.climate.forecast import forecast
        from sciLDM.domains.climate.write import write_forecast

        model = _loaded(model)
        options: dict[str, Any] = {"steps": steps, "members": members, "seed": seed, "settings": settings}
        if path is None:
            return forecast(model, self._dataset, **options)
        return open_dataset(write_forecast(model, self._dataset, path, **options))

    def fill(
        self,
        model: Any,
        *,
        noise_std: float | None = None,
        samples: int = 16,
        steps: int | None = None,
        seed: int = 0,
        members: bool = False,
        cond: Mapping[str, Any] | None = None,
        path: str | Path | None = None,
    ) -> xr.Dataset:
        """Fill the gaps (NaN) of this data set.

        Args:
            model: A loaded climate model of the same grid, or the name of its run.
            noise_std: Standard deviation of the errors of the values that are there, in their units; None estimates it.
            samples: Posterior samples of each case.
            steps: Steps of the sampler.
            seed: Of the samples.
            members: Also return the samples, as `<var>_members`.
            cond: Conditions besides the dates.
            path: A `.zarr` store to write to, some times at a time; this data set need not fit in memory then.

        Returns:
            Mean, spread and interval of every variable, in this data set's layout; with `path` opened, not loaded.
        """
        model = _loaded(model)
        options: dict[str, Any] = {
            "noise_std": noise_std, "samples": samples, "steps": steps, "seed": seed, "cond": cond,
        }  # fmt: skip
        if path is None:
            return _run(model, self._dataset, members, **options)
        from sciLDM.domains.climate.write import write_filled

        return open_dataset(write_filled(model, self._dataset, path, members=members, **options))

    def reconstruct(
        self,
        model: Any,
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
            model: A loaded climate model, or the name of its run.
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
        return _run(
            _loaded(model),
            observed,
            members,
            noise_std=noise_std,
            samples=samples,
            steps=steps,
            seed=seed,
            cond=cond,
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

    def _dates(self, count: int) -> list[Any] | None:
        """A date for each of `count` samples; None where the data set has none."""
        for name in self._dataset.data_vars:
            time = find_axes(self._dataset, str(name)).time
            if time is not None and time in self._dataset.coords:
                values = self._dataset[time].values
                return [values[i % len(values)] for i in range(count)]
        return None


def _run(model: Reconstructs, observed: Any, members: bool, **options: Any) -> xr.Dataset:
    codec = getattr(model, "codec", None)
    if codec is None or not hasattr(codec, "members"):
        raise ConfigError(f"ldm: expected a loaded climate model, got {type(model).__name__}")
    before, codec.members = codec.members, members
    try:
        return model.reconstruct(observed, **options)
    finally:
        codec.members = before


def _loaded(model: Any) -> Any:
    """The model, loaded if only its name was given."""
    import sciLDM

    return sciLDM.load(model) if isinstance(model, str | Path) else model


def _mean(x: xr.DataArray, weight: xr.DataArray) -> float:
    return float((x.where(weight > 0, 0.0) * weight).sum() / weight.sum())
