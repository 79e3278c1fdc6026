"""Sharded zarr stores that are laid out first and then filled region by region, so that memory is that of a region.

One chunk is one member and one time, so that any map can be read alone; shards hold many of them, so that large
ensembles are few files. A region is a whole number of shards: none is ever read back to be changed.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import xarray as xr
import zarr

from sciLDM.domains.climate.calendar import Times
from sciLDM.domains.climate.outputs import NUMBER, dated, provenance, time_encoding
from sciLDM.domains.climate.template import Template

__all__ = ["create_store", "samples_layout", "stretched", "write_region"]

_SHARD_BYTES = 2**27


def samples_layout(
    template: Template,
    times: Times,
    ids: Sequence[int],
    *,
    film: bool,
    what: str,
    details: Mapping[str, Any],
) -> xr.Dataset:
    """An ensemble without its values, which are never in memory.

    Args:
        template: The user's layout.
        times: Dates, `[sample, state]`.
        ids: Numbers of the samples.
        film: Whether states are a trajectory with a time dimension.
        what: What it is, for the history.
        details: How it was made, for the history.
    """
    states = times.seconds.shape[1]
    lead = (NUMBER, template.axes.time or "time") if film else (NUMBER,)
    one = np.full((1,) * len(lead) + (template.channels, *template.grid.shape), np.nan, dtype=np.float32)
    dataset = template.dataset(one, lead)
    sizes = {NUMBER: len(ids), **({lead[1]: states} if film else {})}
    dataset = dated(stretched(dataset, sizes), template, times, ids, film=film)
    return provenance(dataset, what, dict(details))


def stretched(dataset: xr.Dataset, sizes: Mapping[str, int]) -> xr.Dataset:
    """The variables with other lengths of some dimensions, and no values; coordinates along them are lost."""
    kept = dataset.drop_vars([n for n, c in dataset.coords.items() if set(c.dims) & set(sizes)])
    found = {}
    for name, array in kept.data_vars.items():
        shape = tuple(sizes.get(str(d), n) for d, n in zip(array.dims, array.shape, strict=True))
        lazy = dask.array.zeros(shape, dtype=array.dtype, chunks=-1)
        found[name] = xr.Variable(array.dims, lazy, array.attrs, array.encoding)
    return xr.Dataset(found, coords=kept.coords, attrs=dataset.attrs)


def create_store(path: Path, layout: xr.Dataset, *, along: Mapping[str, int]) -> None:
    """Write everything but the values of the variables.

    Args:
        path: The store.
        layout: Its variables (dask arrays, not computed) and coordinates.
        along: Dimensions along which it will be filled, and how many of each a region holds.
    """
    encoding = {
        str(name): _encoding(array, along)
        for name, array in layout.data_vars.items()
        if set(map(str, array.dims)) & set(along)
    }
    bare = layout.drop_encoding()
    for name, variable in layout.coords.items():
        bare[name].encoding = time_encoding(variable)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # Consolidated metadata is an extension of zarr 3 that xarray looks for first; others pass over it.
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        # Chunks of dask are those of nobody: nothing of them is computed or written here.
        bare.to_zarr(
            path,
            mode="w",
            compute=False,
            consolidated=True,
            zarr_format=3,
            encoding=encoding,
            safe_chunks=False,
        )


def write_region(path: Path, dataset: xr.Dataset, region: Mapping[str, int]) -> None:
    """Write the values of a region.

    Args:
        path: A store made by `create_store`.
        dataset: Variables that have the region's dimensions; others are left alone.
        region: First index along each of its dimensions.
    """
    group = zarr.open_group(path, mode="r+")
    for name, variable in dataset.data_vars.items():
        if not set(region) <= set(map(str, variable.dims)):
            continue
        array = group[str(name)]
        assert isinstance(array, zarr.Array)
        dims = [str(d) for d in array.metadata.dimension_names or ()]  # type: ignore[union-attr]
        values = variable.transpose(*dims).values
        first = [region.get(d, 0) for d in dims]
        array[tuple(slice(a, a + n) for a, n in zip(first, values.shape, strict=True))] = values


def _encoding(array: xr.DataArray, along: Mapping[str, int]) -> dict[str, Any]:
    """Chunks of one map, in shards of at most 128 MiB that divide the regions."""
    chunk = {str(d): 1 if str(d) in along else n for d, n in zip(array.dims, array.shape, strict=True)}
    shard, size = dict(chunk), array.dtype.itemsize * math.prod(chunk.values())
    for dim in sorted(along, key=lambda d: d == NUMBER):  # times first, then members
        if dim in chunk:
            fits = max(1, _SHARD_BYTES // size)
            shard[dim] = max(n for n in range(1, along[dim] + 1) if along[dim] % n == 0 and n <= fits)
            size *= shard[dim]
            if shard[dim] < along[dim]:
                break
    return {
        "chunks": tuple(chunk.values()),
        "shards": tuple(shard.values()),
        # zstd's frames depend on the values alone; threads of blosc could leave them in another order.
        "compressors": (zarr.codecs.ZstdCodec(level=1, checksum=False),),
        "_FillValue": np.array(np.nan, dtype=array.dtype),
    }
