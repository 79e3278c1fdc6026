"""Opening what climate scientists have: files, globs, folders, zarr stores, URLs, data cards and xarray objects.

Everything becomes a list of *series*: states of one grid in order of time, one series a run (ensemble member, scenario,
or simply the file). Nothing is loaded here but coordinates.
"""

import glob
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, final

import numpy as np
import xarray as xr

from sciLDM.domains.climate.axes import Axes, find_axes
from sciLDM.domains.climate.calendar import Times
from sciLDM.errors import DataError

__all__ = ["Part", "Series", "Source", "open_dataset", "open_source", "stage"]

_NETCDF = (".nc", ".nc4", ".cdf", ".netcdf", ".h5", ".hdf5")
_REMOTE = ("http://", "https://", "gs://", "s3://", "az://", "abfs://")


@final
@dataclass(frozen=True)
class Part:
    """Consecutive states in one data set.

    Attributes:
        dataset: Lazily opened, runs selected.
        times: Its dates.
    """

    dataset: xr.Dataset
    times: Times


@final
@dataclass(frozen=True)
class Series:
    """One run: its name and its parts in order of time."""

    run: str
    parts: tuple[Part, ...]


@final
@dataclass(frozen=True)
class Source:
    """An opened source.

    Attributes:
        name: For the card.
        variables: Chosen variables.
        axes: Of each variable.
        series: Runs.
        first: The first data set: coordinates, attributes and encodings are taken from it.
        notes: What the user must see.
        opened: Data sets whose files are ours to close.
        paths: Where they were opened; none for data sets the user gave.
    """

    name: str
    variables: tuple[str, ...]
    axes: dict[str, Axes]
    series: tuple[Series, ...]
    first: xr.Dataset
    notes: list[str] = field(default_factory=list)
    opened: tuple[xr.Dataset, ...] = ()
    paths: tuple[str, ...] = ()

    def close(self) -> None:
        """Close the files that were opened for it; data sets the user gave stay open."""
        for dataset in self.opened:
            dataset.close()


def open_source(
    data: Any, *, variables: Sequence[str] = (), mask: str | None = None, forcing: Sequence[str] = ()
) -> Source:
    """Open and check a source.

    Args:
        data: A path, glob, folder, zarr store, URL or data card name (or a list of them), or an xarray object.
        variables: Those to use; all gridded, dated ones when empty.
        mask: A variable that is needed besides, for its cells.
        forcing: Variables that are needed besides, with time alone.

    Raises:
        DataError: Nothing readable, unknown variables, missing dimensions, or files that do not belong together.
    """
    datasets, name = _datasets(data)
    given = isinstance(data, xr.Dataset | xr.DataArray)
    opened = () if given else tuple(ds for _, ds in datasets)
    paths = () if given else tuple(path for path, _ in datasets)
    try:
        source = _read(datasets, name, variables, [*([mask] if mask else []), *forcing])
    except Exception:
        for dataset in opened:
            dataset.close()
        raise
    return replace(source, opened=opened, paths=paths)


def _read(
    datasets: list[tuple[str, xr.Dataset]], name: str, variables: Sequence[str], extras: Sequence[str]
) -> Source:
    notes: list[str] = []
    first = datasets[0][1]
    present = list(dict.fromkeys(str(v) for _, ds in datasets for v in ds.data_vars))
    chosen = _choose(present, datasets, variables, extras, notes)
    groups = _merge_variables(datasets, chosen, extras)
    axes = {v: find_axes(next(ds for _, ds in groups if v in ds), v) for v in chosen}
    _check_axes(axes)
    series: dict[str, list[Part]] = {}
    runs = axes[chosen[0]].runs
    several = len(groups) > 1 and _overlap([_times(ds, axes[chosen[0]].time, where) for where, ds in groups])
    for where, dataset in groups:
        if any(v not in dataset for v in chosen):
            missing = [v for v in chosen if v not in dataset]
            raise DataError(
                f"{where}: no variable {missing}, which other files have; choose `variables` that all share"
            )
        times = _times(dataset, axes[chosen[0]].time, where)
        stem = Path(where).stem if several else ""
        if runs is None:
            series.setdefault(stem, []).append(Part(dataset, times))
            continue
        labels = dataset[runs].values if runs in dataset.coords else np.arange(dataset.sizes[runs])
        for k, label in enumerate(labels):
            key = f"{stem}/{label}" if stem else str(label)
            series.setdefault(key, []).append(Part(dataset.isel({runs: k}), times))
    ordered = tuple(
        Series(run, tuple(sorted(parts, key=lambda p: float(p.times.seconds.min()))))
        for run, parts in series.items()
    )
    merged = next(ds for _, ds in groups)
    return Source(
        name, tuple(chosen), axes, ordered, merged if set(chosen) <= set(merged.data_vars) else first, notes
    )


def open_dataset(path: str | Path) -> xr.Dataset:
    """One NetCDF file or zarr store, with decoded times and nothing loaded.

    Raises:
        DataError: It cannot be read, or its time cannot be decoded.
    """
    text = str(path)
    is_zarr = text.rstrip("/").endswith(".zarr") or (Path(text).is_dir() and _is_zarr(Path(text)))
    # Without dask: chunks are read by our own threads, whole and in order.
    options: dict[str, Any] = {"engine": "zarr"} if is_zarr or text.startswith(_REMOTE) else {}
    try:
        with warnings.catch_warnings():
            # A fill value that does not fit its variable is dropped; consolidated metadata is a matter of speed.
            warnings.simplefilter("ignore")
            dataset = xr.open_dataset(text, **options)
            if (
                options
            ):  # a store that is not consolidated lists its variables in any order, another one each time
                close = dataset.close
                dataset = dataset[sorted(map(str, dataset.data_vars))]
                dataset.set_close(close)
            return dataset
    except Exception as error:  # each engine has its own errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        remedy = ""
        if "decode" in reason or "time" in reason.lower():
            remedy = "; open it with xarray, mend the time coordinate, and give the data set itself"
        raise DataError(f"cannot read {text}: {reason}{remedy}") from error


def stage(dataset: xr.Dataset | xr.DataArray, folder: str | Path) -> str:
    """Write an in-memory data set where a configuration can name it; equal data get the same file.

    Args:
        dataset: What to train on.
        folder: Where to keep it.

    Returns:
        The path, for `domain.init_args.data`.
    """
    import hashlib
    import os

    import dask.base

    plain = _as_dataset(dataset)
    token = hashlib.sha256(str(dask.base.tokenize(plain)).encode()).hexdigest()[:16]
    path = Path(folder) / f"{token}.nc"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.part")
        clean = (
            plain.drop_encoding()
            if any(v.encoding.get("chunks") for v in plain.variables.values())
            else plain
        )
        clean.to_netcdf(partial)
        partial.replace(path)
    return str(path)


def _datasets(data: Any) -> tuple[list[tuple[str, xr.Dataset]], str]:
    """Data sets with where each comes from, and a name for them all."""
    if isinstance(data, xr.Dataset | xr.DataArray):
        return [("memory", _as_dataset(data))], "memory"
    entries = [str(data)] if isinstance(data, str | Path) else [str(entry) for entry in data]
    paths = [path for entry in entries for path in _paths(entry)]
    if not paths:
        raise DataError("data: nothing given; expected a path, a glob, a zarr store or a data card's name")
    name = entries[0] if len(entries) == 1 and "/" not in entries[0] else Path(entries[0].rstrip("/")).name
    return [(path, _with_coordinates(open_dataset(path))) for path in paths], name


def _paths(entry: str) -> list[str]:
    from sciLDM.data.cards import card, cards, locate

    if entry.startswith(_REMOTE):
        return [entry]
    path = Path(entry).expanduser()
    if entry in cards() and not path.exists():
        if card(entry).domain != "climate":
            raise DataError(f"data card {entry!r} is of the domain {card(entry).domain!r}, expected climate")
        return [str(p) for p in locate(entry)]
    if any(mark in entry for mark in "*?["):
        found = sorted(glob.glob(str(path), recursive=True))
        if not found:
            raise DataError(f"data: no file matches {entry!r}")
        return found
    if path.is_dir() and not _is_zarr(path) and path.suffix != ".zarr":
        found = sorted(str(p) for p in path.iterdir() if p.suffix.lower() in _NETCDF or p.suffix == ".zarr")
        if not found:
            raise DataError(f"data: {entry} holds no NetCDF file and no zarr store")
        return found
    if not path.exists():
        known = [n for n in cards() if card(n).domain == "climate"]
        raise DataError(
            f"data: there is no {entry!r}; expected a NetCDF file, a glob, a zarr store, a URL, or one of the data "
            f"cards {', '.join(known)}"
        )
    return [str(path)]


def _is_zarr(path: Path) -> bool:
    return any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zmetadata"))


def _as_dataset(data: xr.Dataset | xr.DataArray) -> xr.Dataset:
    if isinstance(data, xr.DataArray):
        data = data.to_dataset(name=data.name or "field", promote_attrs=False)
    return _with_coordinates(data)


def _with_coordinates(dataset: xr.Dataset) -> xr.Dataset:
    """Latitudes and longitudes that were stored as data variables become coordinates."""
    names = {str(n) for key in ("latitude", "longitude") for n in dataset.cf.coordinates.get(key, [])}
    names |= {n for n in map(str, dataset.data_vars) if n.lower() in ("nav_lat", "nav_lon", "xlat", "xlong")}
    found = dataset.set_coords([n for n in names if n in dataset.data_vars])
    found.set_close(dataset.close)  # a derived data set does not know its file
    return found


def _choose(
    present: list[str],
    datasets: list[tuple[str, xr.Dataset]],
    variables: Sequence[str],
    extras: Sequence[str],
    notes: list[str],
) -> list[str]:
    if unknown := [v for v in [*variables, *extras] if v not in present]:
        import difflib

        near = difflib.get_close_matches(unknown[0], present, n=2)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise DataError(f"no variable {unknown[0]!r} in the data; there are {', '.join(present)}{hint}")
    chosen, left = list(variables), []
    for name in [] if variables else present:
        dataset = next(ds for _, ds in datasets if name in ds)
        try:
            axes = find_axes(dataset, name)
        except DataError:
            axes = None
        numeric = dataset[name].dtype.kind in "fiu"
        if axes is not None and axes.time is not None and numeric and name not in extras:
            chosen.append(name)
        elif name not in extras and "bnds" not in name and "bounds" not in name and dataset[name].ndim >= 2:
            left.append(name)
    if not chosen:
        described = "; ".join(f"{n} {tuple(datasets[0][1][n].dims)}" for n in present if n in datasets[0][1])
        raise DataError(
            "no variable with two horizontal dimensions and time: expected dims such as (time, lat, lon), got "
            f"{described or 'none'}; rename the dimensions or give them CF attributes"
        )
    if left:
        notes.append(f"variables left out (no time, or no grid): {', '.join(left)}")
    for name in chosen:
        dataset = next(ds for _, ds in datasets if name in ds)
        if find_axes(dataset, name).time is None:
            raise DataError(
                f"variable {name!r} has dimensions {dataset[name].dims}: no time found; give the time dimension dates "
                "(CF units such as 'days since 2000-01-01')"
            )
    return chosen


def _merge_variables(
    datasets: list[tuple[str, xr.Dataset]], chosen: list[str], extras: Sequence[str]
) -> list[tuple[str, xr.Dataset]]:
    """Files of different variables side by side; files of the same ones stay separate."""
    groups: dict[tuple[str, ...], list[tuple[str, xr.Dataset]]] = {}
    for where, dataset in datasets:
        names = tuple(v for v in chosen if v in dataset)
        if names:
            groups.setdefault(names, []).append((where, dataset))
    if len(groups) == 1:
        return next(iter(groups.values()))
    if len({len(group) for group in groups.values()}) > 1:
        counts = {", ".join(names): len(group) for names, group in groups.items()}
        raise DataError(
            f"files of different variables do not pair up: {counts}; choose fewer `variables` or files"
        )
    merged = []
    for together in zip(*groups.values(), strict=True):
        try:
            parts = [ds[[v for v in [*chosen, *extras] if v in ds]] for _, ds in together]
            joined = xr.merge(parts, join="exact", combine_attrs="drop_conflicts", compat="override")
        except ValueError as error:
            where = ", ".join(Path(w).name for w, _ in together)
            raise DataError(f"mismatched grids or times in {where}: {str(error).splitlines()[0]}") from error
        merged.append((together[0][0], joined))
    return merged


def _check_axes(axes: dict[str, Axes]) -> None:
    (name, model), *others = axes.items()
    for other, found in others:
        same = (found.y, found.x, found.time, found.runs, found.latitude, found.longitude)
        if same != (model.y, model.x, model.time, model.runs, model.latitude, model.longitude):
            raise DataError(
                f"mismatched grids: {name!r} lies on ({model.time}, {model.y}, {model.x}), {other!r} on "
                f"({found.time}, {found.y}, {found.x}); choose variables of one grid"
            )


def _times(dataset: xr.Dataset, dim: str | None, where: str) -> Times:
    assert dim is not None, "variables without time were refused"
    if dim not in dataset.coords or dataset[dim].dtype.kind not in "MO":
        # NEMO counts states along its time dimension and keeps the dates beside them.
        dated = [c for c in dataset.coords.values() if c.dims == (dim,) and c.dtype.kind in "MO"]
        if len(dated) != 1:
            if dim in dataset.coords:
                return Times.of(dataset[dim].values)  # says what it found instead of dates
            raise DataError(
                f"{where}: dimension {dim!r} has no dates; give it a coordinate with CF time units"
            )
        return Times.of(dated[0].values)
    return Times.of(dataset[dim].values)


def _overlap(times: list[Times]) -> bool:
    """Whether any two cover common time: then they are runs, not pieces of one."""
    spans = sorted((float(t.seconds.min()), float(t.seconds.max())) for t in times if len(t))
    return any(later[0] <= earlier[1] for earlier, later in pairwise(spans))
