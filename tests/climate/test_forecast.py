"""Forecasts block by block: a latent process that is known, so that every lead can be told exactly."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from sciLDM.autoencoders import LatentStats
from sciLDM.autoencoders.grid import GridSettings
from sciLDM.conditions import FieldMap
from sciLDM.domains.climate import Climate, ConditionSettings
from sciLDM.domains.climate.codec import ClimateCodec
from sciLDM.domains.climate.corpus import ClimateCorpus
from sciLDM.domains.climate.forecast import ForecastSettings, Rollout, forecast, forecast_blocks
from sciLDM.domains.climate.forecast_study import ForecastStudySettings, forecast_study
from sciLDM.errors import ConfigError, DataError
from tests.climate.fields import make

SMALL = GridSettings(channels=2, patch=4, factors=(), widths=(8,), blocks=(1,), pca=-1)


def silent(_what: str, _done: int, _total: int) -> None:
    """No progress."""


class Damped:
    """A "model" whose normalised latents follow `z_{t+1} = damping z_t + spread e`."""

    def __init__(
        self, domain: Climate, corpus: ClimateCorpus, *, damping: float = 0.5, spread: float = 0.0
    ) -> None:
        self.codec = ClimateCodec(corpus.state)
        self.experiment = SimpleNamespace(domain=domain)
        self.autoencoder = self.codec.autoencoder().eval()
        # At principal-component quality, before any training.
        self.autoencoder.prepare([corpus.fields("train", np.arange(corpus.sizes["train"]))])
        self.stats = LatentStats(2)
        self.stats.mean.copy_(torch.tensor([0.3, -0.2]))
        self.stats.std.copy_(torch.tensor([2.0, 0.5]))
        self.reconstruct: Any = None
        self.damping, self.spread = damping, spread
        self.requests: list[Any] = []

    def sample_latents(self, request: Any, ids: Any, noise: Any, **_options: Any) -> torch.Tensor:
        self.requests.append(request)
        z = request.cond["context"].clone()
        eps = noise.normal(list(ids), tuple(z.shape[1:]))
        for k in range(1, z.shape[2]):
            ahead = self.damping * z[:, :, k - 1] + self.spread * eps[:, :, k]
            z[:, :, k] = torch.where(z[:, :, k].isnan(), ahead, z[:, :, k])
        return self.stats.denormalise(z)


def model_of(tmp_path: Path, **options: Any) -> tuple[Damped, xr.Dataset]:
    data = make(300, step=2, seed=3)
    domain = Climate(data, frames=4, autoencoder=SMALL, conditions=ConditionSettings(context=True))
    corpus = domain.prepare(tmp_path, silent)
    assert isinstance(corpus, ClimateCorpus)
    return Damped(domain, corpus, **options), data


def test_the_codec_declares_the_context(tmp_path: Path) -> None:
    model, _ = model_of(tmp_path)
    (known,) = [c for c in model.codec.conditions if isinstance(c, FieldMap)]
    assert (known.name, known.channels, known.dropout) == ("context", 2, 0.0)
    with pytest.raises(ConfigError, match="frames"):
        Climate(make(60), conditions=ConditionSettings(context=True)).prepare(tmp_path, silent)


@pytest.mark.parametrize("context", [1, 2, 3])
def test_every_lead_follows_from_the_last_known_state(tmp_path: Path, context: int) -> None:
    model, data = model_of(tmp_path)
    initial = data.isel(time=slice(100, 110))
    settings = ForecastSettings(context=context, autoencoder_error=False)
    made = forecast(model, initial, steps=7, members=2, settings=settings)  # type: ignore[arg-type]
    assert dict(made.sizes) == {"number": 2, "time": 7, "lat": 8, "lon": 12}
    np.testing.assert_array_equal(made["time"].values, data["time"].values[110:117])
    assert made["forecast_reference_time"].values == data["time"].values[109]
    rollout = Rollout(model, settings)  # type: ignore[arg-type]
    last = torch.from_numpy(initial["tas"].values[-1]).reshape(1, 1, 1, 8, 12)
    times = model.codec.asked.step.after(_times(model, initial, 9), 1)
    z = rollout.encode(last, times)[:, :, 0]
    for lead in range(1, 8):
        code = model.stats.denormalise((0.5**lead * z)[:, :, None].expand(-1, -1, 4, -1, -1))
        when = _times(model, data, 109 + lead)
        phase = torch.from_numpy(when.phase).float()[:, None].expand(1, 4)
        field = model.codec.to_units(model.autoencoder.decode(code), {"phase": phase})[0, 0, 0]
        np.testing.assert_allclose(made["tas"].values[1, lead - 1], field.detach().numpy(), atol=2e-3)
    assert len(model.requests) == -(-7 // (4 - context))
    assert all("context" in r.always for r in model.requests)


def _times(model: Damped, data: xr.Dataset, k: int) -> Any:
    from sciLDM.domains.climate.calendar import Times

    return Times.of(data["time"].values[k : k + 1])


def test_known_states_are_given_as_normalised_latents(tmp_path: Path) -> None:
    model, data = model_of(tmp_path)
    next(iter(forecast_blocks(model, data.isel(time=slice(0, 3)), steps=2, members=3)))  # type: ignore[arg-type]
    context = model.requests[0].cond["context"]
    assert context.shape == (3, 2, 4, 2, 3)
    assert context[:, :, :2].isfinite().all()
    assert context[:, :, 2:].isnan().all()
    fields = model.codec.fields(_normalised(model, data, 1))
    code, _ = model.autoencoder.code(fields)
    torch.testing.assert_close(context[0, :, 0], model.stats.normalise(code)[0, :, 0], atol=1e-4, rtol=1e-4)


def _normalised(model: Damped, data: xr.Dataset, k: int) -> torch.Tensor:
    x = torch.from_numpy(data["tas"].values[k]).reshape(1, 1, 1, 8, 12).expand(1, 1, 4, 8, 12)
    phase = torch.from_numpy(_times(model, data, k).phase).float()[:, None].expand(1, 4)
    return model.codec.normaliser.from_units(x, phase)


def test_a_member_does_not_depend_on_the_others_and_blocks_differ(tmp_path: Path) -> None:
    model, data = model_of(tmp_path, spread=1.0)
    initial = data.isel(time=slice(50, 52))
    few, many = (forecast(model, initial, steps=5, members=n, seed=4) for n in (2, 5))  # type: ignore[arg-type]
    np.testing.assert_allclose(few["tas"].values, many["tas"].values[:2], atol=1e-3)
    other = forecast(model, initial, steps=5, members=2, seed=5)  # type: ignore[arg-type]
    assert np.abs(other["tas"].values - few["tas"].values).max() > 0.1
    parts = list(forecast_blocks(model, initial, steps=5, members=2, seed=4))  # type: ignore[arg-type]
    assert [p.sizes["time"] for p in parts] == [2, 2, 1]
    np.testing.assert_array_equal(parts[1]["tas"].values, few["tas"].values[:, 2:4])


def test_bad_starts_are_refused(tmp_path: Path) -> None:
    model, data = model_of(tmp_path)
    with pytest.raises(DataError, match="must follow each other"):
        forecast(model, data.isel(time=[0, 3]), steps=1)  # type: ignore[arg-type]
    gap = data.isel(time=slice(0, 2)).copy(deep=True)
    gap["tas"][1, 0, 0] = np.nan
    with pytest.raises(DataError, match="fill them first"):
        forecast(model, gap, steps=1)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no variables"):
        forecast(model, data.rename(tas="psl"), steps=1)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="mismatched grids"):
        forecast(model, data.isel(lat=slice(0, 4), time=slice(0, 2)), steps=1)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="1 to 3 known states"):
        forecast(model, data, steps=1, settings=ForecastSettings(context=4))  # type: ignore[arg-type]
    plain = Climate(make(60), autoencoder=SMALL).prepare(tmp_path, silent)
    model.codec = ClimateCodec(plain.state)
    with pytest.raises(ConfigError, match="RandomContext"):
        forecast(model, data, steps=1)  # type: ignore[arg-type]


def test_the_study_puts_the_baselines_beside_the_model(tmp_path: Path) -> None:
    model, _ = model_of(tmp_path, damping=0.9, spread=0.3)
    settings = ForecastStudySettings(leads=2, members=6, cases=8, validation=6)
    study = forecast_study(model, settings=settings, output=tmp_path / "f.json")  # type: ignore[arg-type]
    rows = {(r["lead"], r["method"], r["calibrated"]): r for r in study.rows}
    names = {
        "latent diffusion",
        "climatology",
        "persistence",
        "damped persistence",
        "linear inverse model",
        "analogs",
    }
    assert {k[1] for k in rows} == names
    assert {k[0] for k in rows} == {1, 2}
    assert rows[1, "persistence", False]["spread_skill"] == 0
    assert (1, "persistence", True) not in rows
    # The waves travel regularly: a model of their dynamics beats what ignores them.
    assert rows[1, "linear inverse model", False]["crps"] < rows[1, "climatology", False]["crps"]
    assert rows[2, "latent diffusion", True]["crps_ratio"] == 1.0
    assert study.protocol["cases"] == {"validation": 6, "test": 8}
