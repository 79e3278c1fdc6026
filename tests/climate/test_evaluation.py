"""Studies and scores of samples: oracle models must come out as what they are."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from sciLDM.autoencoders.grid import GridSettings
from sciLDM.domains.climate import Climate
from sciLDM.domains.climate.baselines import EOFs, Predictions
from sciLDM.domains.climate.baselines_interpolation import ConditionalGaussian, ensemble_covariance
from sciLDM.domains.climate.codec import ClimateCodec
from sciLDM.domains.climate.corpus import ClimateCorpus
from sciLDM.domains.climate.evaluation import evaluate_samples, read_reference
from sciLDM.domains.climate.evaluation_compression import compression
from sciLDM.domains.climate.evaluation_data import StudyData, spread_over
from sciLDM.domains.climate.evaluation_gaps import GapSettings, gap_filling
from sciLDM.domains.climate.evaluation_masks import observing_masks
from sciLDM.domains.climate.evaluation_scoring import compare, conformal_factor, scaled, score
from sciLDM.domains.climate.outputs import NUMBER
from sciLDM.domains.climate.report import GAPS, report_sections
from sciLDM.errors import ConfigError, DataError
from sciLDM.evaluate.hooks import Material
from sciLDM.posterior.result import Posterior
from sciLDM.rng import NoiseSource
from tests.climate.fields import make

SMALL = GridSettings(channels=2, patch=4, factors=(), widths=(8,), blocks=(1,))


def silent(_what: str, _done: int, _total: int) -> None:
    """No progress."""


def prepared(tmp_path: Path, *, frames: int = 1, **options: Any) -> tuple[Climate, ClimateCorpus]:
    data = make(400, step=5, seed=1, **options)
    domain = Climate(data, frames=frames, autoencoder=SMALL)
    corpus = domain.prepare(tmp_path, silent)
    assert isinstance(corpus, ClimateCorpus)
    return domain, corpus


class Oracle:
    """A "model" that answers with the conditional Gaussian of its training windows."""

    def __init__(self, domain: Climate, codec: ClimateCodec) -> None:
        self.codec, self.experiment = codec, SimpleNamespace(domain=domain)
        self.calibration: Any = "must be put back"
        study = StudyData.of(self)
        x, frames = study.history().anomalies, codec.frames
        starts = study.periods["train"].starts(frames)
        windows = x[starts[:, None] + np.arange(frames)].reshape(len(starts), -1)
        self.study, self.gaussian = study, ConditionalGaussian(ensemble_covariance(windows))

    def reconstruct(
        self,
        values: Any,
        operator: Any,
        *,
        noise_std: float,
        cond: Any,
        samples: int,
        seed: int,
        **_options: Any,
    ) -> xr.Dataset:
        assert self.calibration is None
        task = self.codec.task(values, operator, noise_std=noise_std, cond=cond)
        y = operator.adjoint(torch.nan_to_num(torch.as_tensor(values)))
        there = operator.adjoint(torch.isfinite(torch.as_tensor(values)).float()) > 0
        y = torch.where(there, y, torch.nan).numpy()
        y = np.moveaxis(y, 1, 2) if self.codec.frames > 1 else y[:, None]
        times = task.request.times
        rows = self.study.from_units(y[..., self.study.exists], times)
        error = noise_std / self.study.spread(times)
        shape = rows.shape
        made = self.gaussian.posterior(
            rows.reshape(len(rows), -1), error.reshape(len(rows), -1), samples, NoiseSource(seed)
        )
        split = Predictions(
            made.members.reshape(len(rows), samples, *shape[1:]),
            made.mean.reshape(shape),
            made.std.reshape(shape),
        )
        units = self.study.predictions(split, times)
        posterior = Posterior(
            self._grid(units.mean), self._grid(units.std),
            torch.stack([self._grid(units.members[:, k]) for k in range(samples)], 1),
            torch.ones(len(rows)), torch.full_like(self._grid(units.mean), torch.nan),
        )  # fmt: skip
        return self.codec.deliver(posterior, task)

    def _grid(self, rows: np.ndarray) -> torch.Tensor:
        field = np.zeros((*rows.shape[:2], *self.study.exists.shape), dtype=np.float32)
        field[..., self.study.exists] = rows
        x = torch.from_numpy(field)
        return x.transpose(1, 2) if self.codec.frames > 1 else x[:, 0]


def test_masks_are_what_they_are_called() -> None:
    places = (
        np.stack(np.meshgrid(np.arange(10), np.arange(20), indexing="ij"), -1).reshape(-1, 2).astype(float)
    )
    ids = np.arange(6)
    for kind in ("random", "stations", "swath"):
        for fraction in (0.001, 0.05, 0.3):
            found = observing_masks(kind, fraction, places, (10, 20), ids)
            assert (found.sum(1) == max(1, round(fraction * 200))).all()
            np.testing.assert_array_equal(
                found[2:4], observing_masks(kind, fraction, places, (10, 20), ids[2:4])
            )
    stations = observing_masks("stations", 0.1, places, (10, 20), ids)
    assert (stations == stations[:1]).all()
    other = observing_masks("random", 0.1, places, (10, 20), ids)
    assert not (other == other[:1]).all()
    swath = observing_masks("swath", 0.2, places, (10, 20), ids)
    for one in swath:  # a strip: every row of the grid has about as many cells of it
        per_row = one.reshape(10, 20).sum(1)
        assert per_row.min() >= 3
        assert per_row.max() <= 5
    assert not (swath[0] == swath[1]).all()
    with pytest.raises(ConfigError, match="random, stations, swath"):
        observing_masks("cloud", 0.1, places, (10, 20), ids)
    with pytest.raises(ConfigError, match="fraction"):
        observing_masks("random", 0.0, places, (10, 20), ids)


def test_spread_over() -> None:
    np.testing.assert_array_equal(spread_over(range(10), None, 4), [0, 4, 8])
    np.testing.assert_array_equal(spread_over(range(100), 3), [0, 50, 99])


def test_scores_of_a_perfect_and_of_a_narrow_ensemble() -> None:
    rng = np.random.default_rng(0)
    signal = rng.normal(size=(200, 50))
    truth = signal + rng.normal(size=(200, 50))
    members = signal[:, None] + rng.normal(size=(200, 20, 50))
    weights = np.ones(50)
    perfect = Predictions(members, signal, np.ones((200, 50)))
    row = score(perfect, truth, weights)
    assert row["spread_skill_lower"] < 1.05 * row["spread_skill"]
    assert row["coverage"] == pytest.approx(0.9, abs=0.01)
    assert row["rmse"] == pytest.approx(1.0, abs=0.02)
    assert row["crps"] == pytest.approx(1 / np.sqrt(np.pi), abs=0.01)
    assert conformal_factor(perfect, truth) == pytest.approx(1.0, abs=0.03)
    narrow = scaled(perfect, 0.5)
    assert score(narrow, truth, weights)["coverage"] < 0.7
    assert conformal_factor(narrow, truth) == pytest.approx(2.0, abs=0.06)
    few = Predictions.of(members[:, :6])  # mean and spread estimated from six members
    assert score(few, truth, weights)["coverage"] == pytest.approx(0.9, abs=0.01)
    assert conformal_factor(few, truth) == pytest.approx(1.0, abs=0.05)
    better = compare(np.full(30, 0.5), np.linspace(0.9, 1.1, 30))
    assert better["crps_ratio"] == pytest.approx(0.5)
    assert better["crps_ratio_upper"] < 0.55


def test_anomalies_and_units_are_inverse(tmp_path: Path) -> None:
    domain, corpus = prepared(tmp_path, land=True, variables=("tas",))
    model = Oracle(domain, ClimateCodec(corpus.state))
    study = model.study
    test = study.periods["test"]
    dates = type(test.times)(test.times.seconds[:20, None], test.times.calendar, test.times.dtype)
    back = study.to_units(test.anomalies[:20, None], dates)
    np.testing.assert_allclose(back[:, 0], study.row(test.values[:20]), atol=1e-3)
    np.testing.assert_allclose(study.from_units(back, dates)[:, 0], test.anomalies[:20], atol=1e-4)
    assert study.weights.mean() == pytest.approx(1.0)
    sizes = {name: len(p.values) for name, p in study.periods.items()}
    assert sizes == corpus.sizes


@pytest.mark.parametrize("frames", [1, 2])
def test_a_gaussian_oracle_scores_as_the_gaussian_baseline(tmp_path: Path, frames: int) -> None:
    domain, corpus = prepared(tmp_path, frames=frames)
    model = Oracle(domain, ClimateCodec(corpus.state))
    settings = GapSettings(members=40, windows=8, validation=6)
    study = gap_filling(
        model, masks=("random", "swath"), fractions=(0.1,), settings=settings, output=tmp_path / GAPS
    )
    assert model.calibration == "must be put back"
    rows = {(r["mask"], r["method"], r["calibrated"]): r for r in study.rows}
    told = "conditional Gaussian" if frames == 1 else "localised EnOI, 2 states"
    ours, theirs = rows["random", "latent diffusion", False], rows["random", told, False]
    radius = study.protocol["tuned radii"]["random 0.1"]["day" if frames == 1 else "window"]
    if frames == 1 or radius is None:
        assert ours["rmse"] == pytest.approx(theirs["rmse"], rel=1e-3)
        assert ours["crps"] == pytest.approx(theirs["crps"], rel=0.05)
    assert ours["crps"] < 0.8 * rows["random", "climatology", False]["crps"]
    assert rows["swath", "latent diffusion", False]["chi2"] == pytest.approx(1.0, abs=0.5)
    for key, row in rows.items():
        assert (row["factor"] == 1.0) == (not key[2])
        assert np.isfinite([row["rmse"], row["crps"], row["spread_skill"], row["coverage"]]).all()
    assert rows["random", "latent diffusion", True]["crps_ratio"] == 1.0
    assert '"protocol"' in (tmp_path / GAPS).read_text()
    assert study.table(["mask", "method", "crps"]).count("\n") == len(study.rows)


def test_synthesis_scores_know_real_data_and_copies(tmp_path: Path) -> None:
    _, corpus = prepared(tmp_path)
    codec = ClimateCodec(corpus.state)
    folder = tmp_path / "reference"
    corpus.write_reference(folder)
    test, train = read_reference(codec, folder, "runs"), read_reference(codec, folder, "train")
    assert test is not None
    assert train is not None
    assert len(train.values) == corpus.sizes["train"]
    np.testing.assert_allclose(
        train.anomalies, corpus.fields("train", np.arange(len(train.values))).values.flatten(1), atol=1e-3
    )
    own = xr.open_dataset(folder / "test-0.nc").load().rename(time=NUMBER)
    as_samples = own.assign_coords(time=(NUMBER, own[NUMBER].values)).drop_vars(NUMBER)
    rows = {r["metric"]: r for r in evaluate_samples(as_samples, codec, folder, silent).rows}
    for name in ("mean", "std", "1st percentile", "99th percentile"):
        row = rows[f"tas {name} map error"]
        assert row["value"] == pytest.approx(0.0, abs=1e-6)
        assert row["floor"] > 0
        assert rows[f"tas {name} map error, Gaussian EOF"]["value"] > 0
    assert rows["EOF spectrum error"]["value"] == pytest.approx(0.0, abs=1e-6)
    assert rows["spectral ratio, largest"]["value"] == pytest.approx(1.0)
    assert rows["seam"]["value"] == pytest.approx(1.0, abs=0.15)
    assert rows["share of copies"]["value"] == pytest.approx(0.01, abs=0.01)
    copied = xr.open_dataset(folder / "train-0.nc").load().rename(time=NUMBER)
    copied = copied.assign_coords(time=(NUMBER, copied[NUMBER].values)).drop_vars(NUMBER)
    rows = {r["metric"]: r for r in evaluate_samples(copied, codec, folder, silent).rows}
    assert rows["share of copies"]["value"] == 1.0
    assert rows["distance to the nearest training field"]["value"] < 1e-3
    assert rows["tas std map error"]["value"] == pytest.approx(rows["tas std map error"]["floor"])
    with pytest.raises(DataError, match="no test period"):
        evaluate_samples(copied, codec, tmp_path / "nowhere", silent)


def test_gaussian_eof_baseline_misses_skewness_not_variance(tmp_path: Path) -> None:
    _, corpus = prepared(tmp_path)
    codec = ClimateCodec(corpus.state)
    corpus.write_reference(tmp_path / "reference")
    train = read_reference(codec, tmp_path / "reference", "train")
    assert train is not None
    eofs = EOFs.fit(train.anomalies, StudyData(codec, {}).weights, 500)
    total = (eofs.patterns**2 * eofs.variance[:, None]).sum(0)
    np.testing.assert_allclose(total, train.anomalies.var(0, ddof=1), rtol=1e-4)


def test_report_holds_maps_spectra_and_studies(tmp_path: Path) -> None:
    domain, corpus = prepared(tmp_path)
    codec = ClimateCodec(corpus.state)
    corpus.write_reference(tmp_path / "reference")
    model = Oracle(domain, codec)
    gap_filling(
        model,
        masks=("stations",),
        fractions=(0.2,),
        settings=GapSettings(members=4, windows=3, validation=3, baselines=False),
        output=tmp_path / GAPS,
    )
    samples = (
        xr.open_dataset(tmp_path / "reference" / "test-0.nc")
        .load()
        .isel(time=slice(0, 6))
        .rename(time=NUMBER)
    )
    samples = samples.assign_coords(time=(NUMBER, samples[NUMBER].values)).drop_vars(NUMBER)
    samples.to_netcdf(tmp_path / "samples.nc")
    material = Material(tmp_path, tmp_path / "samples.nc", None, {}, codec, tmp_path / "reference")
    sections = {s.title: s.html for s in report_sections(material)}
    assert {"Maps of tas", "Mean and standard deviation", "Spectrum", "Gap filling"} <= set(sections)
    assert "<svg" in sections["Maps of tas"]
    assert "latent diffusion" in sections["Gap filling"]


def test_an_autoencoder_that_is_pca_scores_as_pca(tmp_path: Path) -> None:
    data = make(400, step=5, seed=1, shape=(8, 16))
    linear = GridSettings(channels=4, patch=4, factors=(), widths=(8,), blocks=(1,), pca=-1)
    domain = Climate(data, autoencoder=linear)
    corpus = domain.prepare(tmp_path, silent)
    assert isinstance(corpus, ClimateCorpus)
    codec = ClimateCodec(corpus.state)
    autoencoder = codec.autoencoder().eval()
    autoencoder.prepare([corpus.fields("train", np.arange(corpus.sizes["train"]))])
    model = SimpleNamespace(
        codec=codec, experiment=SimpleNamespace(domain=domain), reconstruct=None, autoencoder=autoencoder,
        stats=SimpleNamespace(mean=torch.zeros(4)),
    )  # fmt: skip
    rows = {r["method"]: r for r in compression(model, output=tmp_path / "c.json").rows}
    ours, theirs = rows["autoencoder"], rows["PCA"]
    assert ours["numbers"] == 32
    assert ours["ratio"] == 4.0
    assert ours["rmse"] == pytest.approx(theirs["rmse"], rel=0.05)
    assert 0.5 < theirs["explained"] < 1
    assert ours["spectral_ratio_max"] == pytest.approx(theirs["spectral_ratio_max"], rel=0.1)
