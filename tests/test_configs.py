"""Every shipped configuration is one runnable experiment: it parses, builds, and trains two steps of each stage."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import yaml

import sciLDM
from sciLDM.experiment import read_config
from tests.medical.phantoms import blob, body, save

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*/*.yaml"))
SMILES = (
    "CCO",
    "CC(=O)O",
    "c1ccccc1",
    "CCN",
    "CC#N",
    "OCC1CC1",
    "C1CCOC1",
    "NC(=O)C",
    "CC(C)O",
    "COC",
    "CCF",
    "O=CC=O",
)


def molecules(folder: Path) -> Path:
    table = folder / "mine.csv"
    table.write_text("smiles\n" + "\n".join(SMILES) + "\n", encoding="utf-8")
    return table


def climate(folder: Path) -> Path:
    """Daily waves over the years and the grid that the shipped configuration names."""
    time = xr.date_range("2001-01-01", "2008-12-31", freq="5D", use_cftime=False)
    lat, lon = np.arange(30.0, 70.1, 2.5), np.arange(-70.0, 10.1, 2.5)
    rng = np.random.default_rng(0)
    phase = rng.uniform(0, 2 * np.pi, (len(time), 1, 1))
    wave = np.cos(np.deg2rad(4 * lon) + phase) * np.sin(np.deg2rad(3 * lat))[:, None]
    slp = 101325.0 + 900 * wave + 50 * rng.standard_normal(wave.shape)
    found = xr.Dataset(
        {"slp": (("time", "lat", "lon"), slp.astype("float32"), {"units": "Pa"})},
        {
            "time": time,
            "lat": ("lat", lat, {"units": "degrees_north"}),
            "lon": ("lon", lon, {"units": "degrees_east"}),
        },
    )
    found.to_netcdf(folder / "mine.nc")
    return folder / "mine.nc"


def iberia(folder: Path) -> Path:
    """Fine and coarse temperature and precipitation of some winters' days."""
    time = xr.date_range("1982-12-01", "1998-02-28", freq="10D", use_cftime=False)
    time = time[time.month.isin([12, 1, 2])]
    rng = np.random.default_rng(0)
    shape = (len(time), 28, 30)
    tas = 8 + 4 * rng.standard_normal((len(time), 1, 1)) + rng.standard_normal(shape)
    rain = np.maximum(rng.standard_normal(shape), 0) ** 2
    fields = {"tas": (tas, "degC"), "pr": (rain, "mm/day")}
    fields |= {f"coarse_{k}": (x + 0.1 * rng.random(shape), unit) for k, (x, unit) in fields.items()}
    found = xr.Dataset(
        {
            k: (("time", "lat", "lon"), x.astype("float32"), {"units": unit})
            for k, (x, unit) in fields.items()
        },
        {
            "time": time,
            "lat": ("lat", np.linspace(36, 44, 28), {"units": "degrees_north"}),
            "lon": ("lon", np.linspace(-10, 3, 30), {"units": "degrees_east"}),
        },
    )
    found.to_netcdf(folder / "mine.nc")
    return folder / "mine.nc"


def medical(folder: Path) -> Path:
    """MR blobs, or CT bodies under the names the configuration looks for."""
    rng = np.random.default_rng(0)
    for k in range(18):
        save(folder / f"p{k:02d}.nii.gz", blob((12, 14, 10), rng))
        save(folder / f"p{k:02d}_CT.nii.gz", body((16, 18, 9), rng))
    return folder


STAND_INS = {"molecules": molecules, "climate": climate, "iberia": iberia, "medical": medical}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_config_runs_two_steps(path: Path, tmp_path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    assert text == text.strip() + "\n"
    given = yaml.safe_load(text)
    assert given["domain"]["init_args"]["data"]
    overrides = {
        f"{stage}.{name}": value
        for stage in ("autoencoder_stage", "denoiser_stage")
        for name, value in {"max_steps": 2, "warmup_steps": 1, "batch_size": 4}.items()
    }
    overrides |= {"ignore_gate": True, "trainer.progress_bar": False}
    if path.stem.endswith("-base"):  # wide networks for GPUs: one block of each is as good here
        overrides |= {"network.init_args.depth": 1}
    if "guide" in given:
        overrides |= {"guide_stage.max_steps": 2, "guide_stage.batch_size": 4}
    if "self_training" in given:
        overrides |= {"self_training.samples": 100, "self_training.steps": 2}
        overrides |= {"self_training_stage.max_steps": 2, "self_training_stage.batch_size": 4}
    # The file stands for the data set too: what is tested is the configuration, not the reading of 130,000 rows.
    folder = tmp_path / "data"
    folder.mkdir()
    data = str(STAND_INS.get(path.stem, STAND_INS[path.parent.name])(folder))
    overrides["domain.init_args.data"] = data
    assert read_config(path, overrides)["domain"]["init_args"]["data"] == data
    model = sciLDM.fit(path, tmp_path / "run", overrides=overrides, say=lambda line: None)
    samples = model.sample(3, steps=2)
    assert (samples.sizes["number"] if path.parent.name == "climate" else len(samples)) == 3
