"""Scales are stored and inverted; what they clip is counted; another modality is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("pydicom")

from sciLDM.domains.medical.hounsfield import Hounsfield, to_attenuation, to_hounsfield
from sciLDM.domains.medical.intensity import (
    IntensitySettings,
    Scale,
    check_modality,
    from_network,
    to_network,
)
from sciLDM.errors import ConfigError, DataError
from sciLDM.operators import ParallelBeam, dot_test


@given(
    low=st.floats(-1e4, 1e4),
    span=st.floats(1e-2, 1e6),
    share=st.floats(0, 1),
)
def test_scale_is_inverted_where_nothing_is_clipped(low: float, span: float, share: float) -> None:
    scale = Scale(low, low + span, top=2.0)
    value = np.array([low + share * span])
    assert scale.decode(scale.encode(value)) == pytest.approx(value, abs=2e-6 * span + 1e-6 * abs(low))
    rows = torch.tensor([low]), torch.tensor([low + span])
    x = torch.from_numpy(value).double()[None, None]
    assert torch.allclose(from_network(to_network(x, *rows), *rows), x, atol=1e-6 * span, rtol=1e-6)


def test_percentiles_ignore_what_is_missing_and_how_bright_it_is() -> None:
    values = np.random.default_rng(0).uniform(0, 100, (20, 20, 20))
    whole = IntensitySettings().scale(values, "mr")
    damaged = values.copy()
    damaged[:, :, ::2] = np.nan
    seen = IntensitySettings().scale(damaged, "mr")
    assert seen.high == pytest.approx(whole.high, rel=0.01)
    brighter = IntensitySettings().scale(values * 5000, "mr")
    assert np.allclose(brighter.encode(values * 5000), whole.encode(values), atol=1e-5)


def test_share_of_clipped_voxels() -> None:
    hu = np.concatenate([np.full(90, 40.0), np.full(6, 3000.0), np.full(4, -2000.0)])
    scale = IntensitySettings(window=(-1000.0, 1000.0)).scale(hu, "ct")
    assert scale.clipped(hu) == pytest.approx(0.10)
    assert scale.encode(hu).max() == 1
    assert (
        IntensitySettings().scale(hu[:96], "ct").clipped(hu[:96]) == 0
    )  # the default window holds 12-bit HU
    mr = np.append(np.linspace(0, 100, 1000), 1000.0)
    assert IntensitySettings(headroom=1.0).scale(mr, "mr").clipped(mr) == pytest.approx(1 / 1001)


def test_constant_and_wrong_modality() -> None:
    with pytest.raises(DataError, match="constant volume: all values are 7"):
        IntensitySettings().scale(np.full((4, 4, 4), 7.0), "mr")
    with pytest.raises(DataError, match="not CT in HU, since its smallest value is 0"):
        check_modality(np.linspace(0, 4000, 100), "ct")
    with pytest.raises(DataError, match="look like CT"):
        check_modality(np.linspace(-1000, 1000, 100), "mr")
    with pytest.raises(DataError, match="the DICOM header says PT, expected MR"):
        check_modality(np.linspace(0, 1, 100), "mr", "PT")
    check_modality(np.linspace(-1000, 1000, 100), "other")
    with pytest.raises(ConfigError, match="window"):
        IntensitySettings(window=(5.0, 5.0))


def test_hounsfield_projection_is_that_of_attenuation() -> None:
    projector = ParallelBeam((1, 3, 12, 12), [0.0, 40.0, 110.0], spacing=2.0)
    operator = Hounsfield(projector, mu_water=0.02)
    hu = torch.randn(2, 1, 3, 12, 12, dtype=torch.float64) * 300
    hu = hu.float()
    assert torch.allclose(to_hounsfield(to_attenuation(hu, 0.02), 0.02), hu, atol=1e-2)
    line_integrals = projector(to_attenuation(hu, 0.02))
    assert torch.allclose(operator.from_line_integrals(line_integrals), operator(hu), atol=1e-4)
    assert torch.allclose(operator.to_line_integrals(operator(hu)), line_integrals, atol=1e-4)
    # Water 24 mm wide at 0.02 per mm: the middle ray at 0 degrees sees 0.48.
    assert float(operator.water()[0, 0, 1, 0].max()) == pytest.approx(0.48, rel=1e-3)
    assert dot_test(operator) < 1e-4
    with pytest.raises(ConfigError, match="mu_water"):
        Hounsfield(projector, mu_water=0.0)
