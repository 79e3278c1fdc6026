"""Synthesis from few days: what is drawn from the truth lies within the sampling error, other things do not."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr

from sciLDM.autoencoders.grid import GridSettings
from sciLDM.domains.climate import Climate
from sciLDM.domains.climate.codec import ClimateCodec
from sciLDM.domains.climate.corpus import ClimateCorpus
from sciLDM.domains.climate.outputs import samples_dataset
from sciLDM.domains.climate.settings import SplitSettings
from sciLDM.domains.climate.synthesis_study import SynthesisSettings, synthesis_study, thinned
from sciLDM.errors import ConfigError
from tests.climate.fields import dates

ROWS, COLUMNS = 5, 6
SPLIT = SplitSettings(train=("2001", "2003-06"), validation=("2003-07", "2003-12"), test=("2004", "2004-12"))


def fields(phase: np.ndarray, rng: np.random.Generator, *, width: float = 1.0) -> np.ndarray:
    """A season, waves and noise, without memory."""
    x = np.linspace(0, np.pi, COLUMNS)
    wave = rng.normal(size=(len(phase), 1, 1)) * np.sin(x) + rng.normal(size=(len(phase), 1, 1)) * np.cos(x)
    noise = rng.normal(size=(len(phase), ROWS, COLUMNS))
    return 280 + 6 * np.cos(2 * np.pi * phase)[:, None, None] + width * (3 * wave + noise)


def data() -> xr.Dataset:
    time = dates(4 * 365 + 1)
    phase = np.arange(len(time)) / 365.25 % 1
    coords = {
        "time": ("time", time, {"standard_name": "time", "axis": "T"}),
        "lat": ("lat", 40.0 + 2 * np.arange(ROWS), {"units": "degrees_north", "axis": "Y"}),
        "lon": ("lon", 3.0 * np.arange(COLUMNS), {"units": "degrees_east", "axis": "X"}),
    }
    values = fields(phase, np.random.default_rng(0)).astype(np.float32)
    return xr.Dataset({"tas": (("time", "lat", "lon"), values, {"units": "K"})}, coords)


class Sampler:
    """A "model" that draws from the truth, narrower than it, or from its own training days."""

    def __init__(self, few: xr.Dataset, folder: Path, *, width: float = 1.0, copies: bool = False) -> None:
        domain = Climate(
            few,
            split=SPLIT,
            autoencoder=GridSettings(channels=2, patch=3, factors=(), widths=(8,), blocks=(1,)),
        )
        corpus = domain.prepare(folder, lambda _w, _d, _n: None)
        assert isinstance(corpus, ClimateCorpus)
        self.codec, self.experiment = ClimateCodec(corpus.state), SimpleNamespace(domain=domain)
        self.few, self.width, self.copies = few, width, copies

    def reconstruct(self, *_arguments: Any, **_options: Any) -> None:
        raise AssertionError("not needed")

    def sample(self, count: int, *, steps: int | None, seed: int) -> xr.Dataset:
        assert steps is None
        times = self.codec.asked.drawn.take(np.arange(count) % len(self.codec.asked.drawn))
        rng = np.random.default_rng(seed + 99)
        made = fields(times.phase, rng, width=self.width)
        if self.copies:
            made = self.few["tas"].values[np.arange(count) % len(self.codec.asked.drawn)]
        times = type(times)(times.seconds[:, None], times.calendar, times.dtype)
        return samples_dataset(
            self.codec.template, made[:, None, None].astype(np.float32), times, range(count), film=False
        )


SETTINGS = SynthesisSettings(modes=6, resamples=60)


def test_few_days_in_blocks_and_all_of_what_is_held_out() -> None:
    whole = data()
    early = int((whole.time < np.datetime64("2004-01-01")).sum())
    for block, share in ((5, 0.05), (1, 0.05), (5, 1.0)):
        few = thinned(whole, "2004", share=share, block=block)
        kept = (few.time < np.datetime64("2004-01-01")).values
        assert kept.sum() == pytest.approx(share * early, abs=block)
        assert few.time[~kept].equals(whole.time[early:])
        gaps = np.diff(few.time.values[kept]).astype("timedelta64[D]").astype(int)
        if share < 1:
            assert (gaps == 1).mean() == pytest.approx(1 - 1 / block, abs=0.05)
            assert np.ptp(gaps[gaps > 1]) <= 1
    with pytest.raises(ConfigError, match="shorter blocks"):
        thinned(whole, "2004", share=0.001, block=5)


def test_the_truth_lies_within_and_others_do_not(tmp_path: Path) -> None:
    whole = data()
    few = thinned(whole, "2004", share=0.2)

    def rows(name: str, **options: Any) -> dict[str, dict[str, Any]]:
        model = Sampler(few, tmp_path / name, **options)
        study = synthesis_study(model, whole, settings=SETTINGS, output=tmp_path / f"{name}.json")
        assert study.protocol["held-out states"] == 366
        return {r["fields"]: r for r in study.rows}

    true = rows("true")
    ours = true["latent diffusion"]
    for name in ("mean", "std", "p1", "p99", "eof"):
        assert ours[f"{name}_within"] > 0.7
        assert true["held-out"][f"{name}_error"] == 0
        assert true["held-out"][f"{name}_within"] > 0.9
    assert ours["distance_ratio"] == pytest.approx(1.0, abs=0.05)
    assert ours["copies"] < 0.04
    narrow = rows("narrow", width=0.7)["latent diffusion"]
    assert narrow["std_within"] < 0.3
    assert narrow["eof_within"] < 0.2
    assert narrow["std_error"] > 2 * ours["std_error"]
    assert rows("copies", copies=True)["latent diffusion"]["copies"] == 1.0
