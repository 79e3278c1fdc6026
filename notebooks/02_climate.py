# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # From a NetCDF file to maps with error bars, given a few stations
#
# You have gridded fields in time, here daily sea-level pressure over the North Atlantic. This notebook trains a latent
# diffusion model on them, draws an ensemble for a date, and rebuilds whole maps from a few stations, with an
# uncertainty for every cell. Set `SCILDM_TINY=1` for a run of seconds instead of minutes.

# %%
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr

import sciLDM
import sciLDM.domains.climate  # registers `ds.ldm`
from sciLDM.data.cards import locate
from sciLDM.domains.climate.maps import posterior_maps
from sciLDM.errors import DataError

TINY = os.environ.get("SCILDM_TINY") == "1"
work = Path(tempfile.mkdtemp())


# %% [markdown]
# ## 1. The file
# Daily means of the NCEP/NCAR reanalysis, 2001 to 2008, 17 x 33 cells. Where the file is not on this machine we make
# one like it: smooth pressure patterns that drift and decay over a few days, stronger in winter.


# %%
def synthetic(rng: np.random.Generator) -> xr.Dataset:
    """Smooth random patterns with a memory of about three days."""
    time = pd.date_range("2001-01-01", "2008-12-31", freq="D")
    lat, lon = np.arange(30.0, 71, 2.5), np.arange(-70.0, 11, 2.5)
    y, x = np.meshgrid(lat, lon * np.cos(np.deg2rad(50)), indexing="ij")
    centres = np.stack([rng.uniform(25, 75, 60), rng.uniform(-50, 12, 60)])
    bumps = np.exp(
        -((y - centres[0, :, None, None]) ** 2 + (x - centres[1, :, None, None]) ** 2) / (2 * 7.0**2)
    )
    loads = rng.normal(size=(len(time), len(bumps)))
    for day in range(1, len(time)):
        loads[day] = 0.7 * loads[day - 1] + 0.71 * loads[day]
    winter = 1 + 0.4 * np.cos(2 * np.pi * (time.dayofyear.to_numpy() - 15) / 365.25)
    values = (
        101_800 - 25 * (lat - 30)[:, None] + 500 * np.einsum("tk,kyx->tyx", winter[:, None] * loads, bumps)
    )
    coords = {"time": time, "lat": lat, "lon": lon}
    return xr.Dataset({"slp": (("time", "lat", "lon"), values.astype("f4"))}, coords)


try:
    data = xr.load_dataset(locate("ncep_slp")[0])
except DataError:
    data = synthetic(np.random.default_rng(0))
data["slp"].attrs = {
    "units": "Pa", "standard_name": "air_pressure_at_mean_sea_level", "long_name": "sea-level pressure"
}  # fmt: skip
data["slp"]

# %% [markdown]
# ## 2. Train
# 2007 and 2008 are held out. The autoencoder starts from the leading EOFs and turns the 561 values of a map into 70
# numbers; the denoiser learns how those are distributed, given the time of year. With few thousand maps it starts
# from the exact denoiser of a Gaussian with their covariance (`gaussian_start`) and learns what is not Gaussian.
# `data` may be any path, glob or zarr store.

# %%
steps = {"autoencoder_stage": 2 if TINY else 500, "denoiser_stage": 4 if TINY else 4000}
config = {
    "domain": {
        "class_path": "climate",
        "init_args": {
            "data": data.ldm.stage(work / "data"),
            "split": {"train": ["2001", "2006-06"], "validation": ["2006-07", "2006-12"], "test": ["2007", "2008"]},
            "autoencoder": {
                "patch": [2, 1], "factors": [[2, 5]], "channels": 2, "widths": [32, 64], "blocks": [1, 1], "pca": -1,
                "noise": 0.01, "l1": 0.0, "mse": 1.0, "gradient": 0.0,
            },
        },
    },
    "gaussian_start": True,
    "network": {"class_path": "DiTNetwork", "init_args": {"width": 32 if TINY else 128, "depth": 1 if TINY else 4,
                                                      "heads": 4}},
    "ignore_gate": TINY,
    **{
        stage: {"max_steps": n, "warmup_steps": n // 10, "learning_rate": 1e-3, "batch_size": 8 if TINY else 32}
        for stage, n in steps.items()
    },
}  # fmt: skip
model = sciLDM.fit(config, work / "run")

# %% [markdown]
# ## 3. An ensemble
# Maps that might be the 15th of January, as xarray: the file's own layout, after the dimension `number`.

# %%
ensemble = model.sample(4 if TINY else 16, steps=8 if TINY else None, cond={"time": "2008-01-15"}, seed=1)
ensemble["slp"].isel(number=slice(4)).plot(col="number", aspect=1.4, size=2.2)
ensemble.head(number=4)

# %% [markdown]
# ## 4. Stations
# Forty cells report on some days of the held-out winter, with errors of 1 hPa; all else is missing (NaN). Stations
# between the grid's points may come as a table with `lat`, `lon` and `time`: `ds.ldm.reconstruct(model, table)`.

# %%
rng = np.random.default_rng(3)
truth = data.sel(time=pd.date_range("2007-11-15", periods=2 if TINY else 6, freq="20D"))
reports = np.zeros(data["slp"].shape[1:], dtype=bool)
reports.flat[rng.choice(reports.size, 40, replace=False)] = True
observed = truth.copy(deep=True)
observed["slp"].values[:] += rng.normal(scale=100.0, size=observed["slp"].shape)
observed["slp"].values[:, ~reports] = np.nan

size = {"samples": 6, "steps": 12} if TINY else {"samples": 32, "steps": 20}
filled = observed.ldm.fill(model, noise_std=100.0, members=True, seed=0, **size)
day = {"time": 0}
posterior_maps(filled.isel(day), "slp", truth=truth["slp"].isel(day), observed=observed["slp"].isel(day))

# %% [markdown]
# ## 5. How good is it, and does it know?
# Beside the climatology of the training years. `coverage` is the share of cells inside their 90 % interval;
# `spread_skill` is 1 where the spread is as large as the error.

# %%
past = data.sel(time=slice("2001", "2006")).groupby("time.month").mean()
climatology = past.sel(month=truth["time"].dt.month).drop_vars("month").transpose(*truth["slp"].dims)
scores = pd.DataFrame(
    {"stations": filled.ldm.score(truth)["slp"], "climatology": climatology.ldm.score(truth)["slp"]}
).T
print(scores.round(2))

# Far from the stations the posterior says that it knows less.
there = truth["slp"].dims[1:]
away = [
    float(np.hypot(*(np.argwhere(reports) - cell).T).min()) for cell in np.ndindex(*reports.shape)
]  # in cells
plt.figure(figsize=(4, 3))
plt.plot(away, filled["slp_std"].mean("time").transpose(*there).values.ravel(), ".", alpha=0.4)
plt.gca().set(xlabel="distance to the nearest station [cells]", ylabel="posterior standard deviation [Pa]")
plt.tight_layout()

# %%
# What goes into the archive: CF attributes, units and dates as they came, and a line of history.
kept = sciLDM.domains.climate.read.open_dataset(str(filled.ldm.write(work / "filled.nc")))
print(kept.attrs["history"])
assert data["slp"].attrs.items() <= kept["slp"].attrs.items(), kept["slp"].attrs
assert (kept["time"].values == truth["time"].values).all()
assert kept["slp"].dims == data["slp"].dims
ratio = scores.loc["stations", "rmse"] / scores.loc["climatology", "rmse"]
assert ratio < 0.7, ratio
round(float(ratio), 3)
