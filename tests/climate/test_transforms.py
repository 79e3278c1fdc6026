"""Links and normalisation: exact inverses, bounds that cannot be left, statistics against closed forms."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sciLDM.domains.climate.statistics import TrainingData, fit_normaliser, resolve_harmonics
from sciLDM.domains.climate.transforms import (
    Identity,
    Logarithm,
    Logit,
    Normaliser,
    SquareRoot,
    VariableSettings,
    ZeroMass,
    link_from_dict,
    make_link,
    variable_settings,
)
from sciLDM.errors import ConfigError

LINKS = [
    (Identity(), (-1e5, 1e5)),
    (SquareRoot(2.0, 3.0), (2.0, 1e3)),
    (Logarithm(-1.0, 0.5), (-1.0, 1e4)),
    (Logit(0.0, 100.0), (0.0, 100.0)),
    (ZeroMass(3e-5, 0.5, 0.0), (0.0, 1e-2)),
    (ZeroMass(4.0, 0.33, 0.1), (0.0, 300.0)),
]


@pytest.mark.parametrize(("link", "span"), LINKS, ids=lambda v: type(v).__name__)
@given(u=st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_inverse_is_exact(link: object, span: tuple[float, float], u: list[float]) -> None:
    x = torch.tensor(u) * (span[1] - span[0]) + span[0]
    x = x.clamp(*span)
    back = link.inverse(link.forward(x))  # type: ignore[attr-defined]
    if isinstance(link, Logit):  # values within 1e-4 of a bound are taken to be at it
        share = (x - span[0]) / (span[1] - span[0])
        x = torch.where(share < 1.01e-4, torch.full_like(x, span[0]), x)
        x = torch.where(share > 1 - 1.01e-4, torch.full_like(x, span[1]), x)
    if isinstance(link, ZeroMass):
        x = torch.where(x <= link.dry, torch.zeros_like(x), x)
        assert (back[x == 0] == 0).all()
    torch.testing.assert_close(back, x, rtol=2e-4, atol=2e-4 * float(np.std(span)))


@pytest.mark.parametrize(("link", "span"), LINKS[1:], ids=lambda v: type(v).__name__)
def test_nothing_leaves_the_bounds(link: object, span: tuple[float, float]) -> None:
    u = torch.linspace(-60, 60, 1001)
    x = link.inverse(u)  # type: ignore[attr-defined]
    assert x.isfinite().all()
    assert float(x.min()) >= (0.0 if isinstance(link, ZeroMass) else span[0])
    if isinstance(link, Logit):
        assert float(x.max()) <= span[1]


@pytest.mark.parametrize(("link", "_span"), LINKS, ids=lambda v: type(v).__name__)
def test_links_come_back_from_json_and_have_gradients(link: object, _span: object) -> None:
    again = link_from_dict(link.to_dict())  # type: ignore[attr-defined]
    assert again == link
    u = torch.tensor([-2.0, -0.4, 0.0, 0.3, 2.0], requires_grad=True)
    (slope,) = torch.autograd.grad(again.inverse(u).sum(), u)
    assert slope.isfinite().all()
    assert (slope >= 0).all()


def test_rain_stays_dry_under_small_errors() -> None:
    link = ZeroMass(1.0, 0.5, 0.1)
    dry = link.forward(torch.tensor([0.0, 0.05, 0.1]))
    assert (dry == dry[0]).all()
    assert (link.inverse(dry + 0.2) == 0).all()
    assert float(link.inverse(link.forward(torch.tensor([0.11])))) == pytest.approx(0.11, rel=1e-5)
    assert float(link.inverse(torch.tensor([0.0]))) == pytest.approx(0.1)  # the smallest wet amount


def test_the_link_follows_from_names_and_values() -> None:
    sample = np.array([0.0, 1.0, 4.0], dtype=np.float32)
    assert make_link(VariableSettings(), "pr", {}, sample) == ZeroMass(2.5, 0.5, 0.0)
    assert (
        make_link(VariableSettings(), "x", {"standard_name": "precipitation_flux"}, sample).kind
        == "precipitation"
    )
    assert make_link(VariableSettings(), "tas", {}, sample) == Identity()
    assert make_link(VariableSettings(link="sqrt"), "hus", {}, sample) == SquareRoot(0.0, 2.5)
    with pytest.raises(ConfigError, match=r"expected values in \[0, 1\].*variables.clt.lower"):
        make_link(VariableSettings(link="logit"), "clt", {}, sample)
    with pytest.raises(ConfigError, match="all values are 0"):
        make_link(VariableSettings(), "pr", {}, np.zeros(4))


def test_settings_are_checked() -> None:
    assert variable_settings("pr", {"dry": 0.1}) == VariableSettings(dry=0.1)
    with pytest.raises(ConfigError, match=r"variables.pr: expected options link.*'dri'"):
        variable_settings("pr", {"dri": 0.1})
    with pytest.raises(ConfigError, match="expected auto, identity"):
        variable_settings("pr", {"link": "cube"})
    with pytest.raises(ConfigError, match="upper must be above lower"):
        VariableSettings(lower=2.0, upper=1.0)


@pytest.mark.parametrize("missing", [False, True])
def test_climatology_and_spread_against_known_ones(missing: bool) -> None:
    """A mean map, two harmonics and white noise of known size are found; the noise is not in the climatology."""
    rng = np.random.default_rng(0)
    days, phase = 3000, (np.arange(3000) / 365.25) % 1
    mean = rng.normal(size=(3, 4)) * 10 + 280
    wave = [rng.normal(size=(3, 4)) for _ in range(4)]
    basis = [
        np.cos(2 * np.pi * phase),
        np.sin(2 * np.pi * phase),
        np.cos(4 * np.pi * phase),
        np.sin(4 * np.pi * phase),
    ]
    clean = mean + sum(b[:, None, None] * w for b, w in zip(basis, wave, strict=True))
    x = (clean + 2.0 * rng.normal(size=(days, 3, 4))).astype(np.float32)[:, None]
    if missing:
        x[rng.random(x.shape) < 0.3] = np.nan
        x[:, :, 0, 0] = np.nan
    data = TrainingData(x, phase, np.arange(2900))
    data._size = 97  # several chunks
    fitted = fit_normaliser(
        data, [("tas", VariableSettings(), {})], 2, np.ones((3, 4)), lambda *_: None
    ).normaliser
    there = slice(1, None) if missing else slice(None)
    found = fitted._climatology.numpy()[0]
    for coefficient, truth in zip(found, [mean, *wave], strict=True):
        assert np.abs(coefficient - truth).ravel()[there].max() < 0.25
    assert float(fitted._spread.mean()) == pytest.approx(2.0, rel=0.03)
    z = fitted.from_units(torch.from_numpy(x), torch.from_numpy(phase).float()[:, None])
    assert float(z[torch.isfinite(z)].std()) == pytest.approx(1.0, rel=0.03)
    back = fitted.to_units(z, torch.from_numpy(phase).float()[:, None])
    np.testing.assert_allclose(back.numpy(), x, rtol=2e-6)


def test_later_data_change_nothing() -> None:
    rng = np.random.default_rng(1)
    x, phase = rng.normal(size=(400, 2, 3, 3)).astype(np.float32), np.linspace(0, 1, 400)
    later = x.copy()
    later[300:] += 1e3
    settings = [("a", VariableSettings(), {}), ("b", VariableSettings(spread="map"), {})]
    fits = [
        fit_normaliser(TrainingData(v, phase, np.arange(300)), settings, 1, np.ones((3, 3)), lambda *_: None)
        for v in (x, later)
    ]
    assert fits[0].normaliser.to_dict() == fits[1].normaliser.to_dict()
    assert fits[0].known.all()


def test_states_of_a_trajectory_have_their_own_season() -> None:
    climatology = np.zeros((1, 3, 2, 2), dtype=np.float32)
    climatology[0, 1] = 5.0  # five times the cosine of the year
    normaliser = Normaliser([Identity()], climatology, np.full((1, 1, 1), 2.0))
    x = torch.zeros(1, 1, 3, 2, 2)
    found = normaliser.to_units(x, torch.tensor([[0.0, 0.25, 0.5]]))[0, 0, :, 0, 0]
    torch.testing.assert_close(found, torch.tensor([5.0, 0.0, -5.0]), atol=1e-5, rtol=0)
    again = Normaliser.from_dict(normaliser.to_dict())
    torch.testing.assert_close(
        again.to_units(x, torch.tensor([[0.1, 0.2, 0.3]])),
        normaliser.to_units(x, torch.tensor([[0.1, 0.2, 0.3]])),
    )


def test_harmonics_only_where_the_year_is_covered() -> None:
    assert resolve_harmonics(None, np.arange(1, 13), 5.0, 86400.0) == 2
    assert resolve_harmonics(None, np.array([12, 1, 2]), 5.0, 86400.0) == 0
    assert resolve_harmonics(None, np.arange(1, 13), 1.0, 86400.0) == 0
    assert resolve_harmonics(1, np.array([1]), 0.1, 86400.0) == 1
