"""Observed values and their errors: drawn per case, missing where NaN, exact where the noise is zero."""

import pytest
import torch

from sciLDM.errors import ConfigError, DataError, ShapeMismatch
from sciLDM.operators import (
    BlockMean,
    FunctionOperator,
    GaussianNoise,
    Identity,
    Mask,
    Observation,
    TransmissionNoise,
    simulate,
)
from sciLDM.rng import NoiseSource

SHAPE = (1, 6, 8)
NOISE = NoiseSource(0)


def fields(count: int) -> torch.Tensor:
    return NOISE.normal(range(count), SHAPE, stream="truth").abs()


def test_errors_have_the_stated_size_and_no_bias() -> None:
    x = fields(400)
    for noise in (GaussianNoise(0.2), GaussianNoise(torch.linspace(0.1, 1.0, 8)), TransmissionNoise(100.0)):
        observed = simulate(Identity(SHAPE), x, noise, source=NOISE)
        z = (observed.values - x) / noise.std(x)
        assert float(z.square().mean()) == pytest.approx(1.0, abs=0.04)  # 19200 values: sd 0.01
        assert abs(float(z.mean())) < 0.03


def test_a_case_does_not_depend_on_the_others() -> None:
    x = fields(5)
    whole = simulate(Identity(SHAPE), x, GaussianNoise(0.2), source=NOISE)
    part = simulate(Identity(SHAPE), x[[3, 1]], GaussianNoise(0.2), source=NOISE, ids=[3, 1])
    assert torch.equal(part.values, whole.values[[3, 1]])


def test_without_noise_the_data_are_exact() -> None:
    x = fields(2)
    operator = BlockMean(SHAPE, 2)
    assert torch.equal(simulate(operator, x, GaussianNoise(0.0), source=NOISE).values, operator(x))


def test_an_instrument_on_a_finer_grid_makes_the_data() -> None:
    """The inverse crime avoided: data from cells half as wide, filed under the operator that will invert them."""
    fine = NOISE.normal(range(2), (1, 12, 16), stream="truth")
    coarse = BlockMean(SHAPE, 2)
    observed = simulate(coarse, fine, GaussianNoise(0.0), source=NOISE, instrument=BlockMean((1, 12, 16), 4))
    assert observed.operator is coarse
    assert torch.allclose(observed.values, coarse(BlockMean((1, 12, 16), 2)(fine)), atol=1e-6)
    with pytest.raises(ShapeMismatch, match="both must describe the same data"):
        simulate(coarse, fine, GaussianNoise(0.0), source=NOISE, instrument=BlockMean((1, 12, 16), 2))


def test_nonlinear_instruments_are_simulated_too() -> None:
    x = fields(3)
    operator = FunctionOperator(lambda v: v.square(), SHAPE, family="Square")
    assert torch.equal(simulate(operator, x, GaussianNoise(0.0), source=NOISE).values, x.square())


def test_missing_values_are_nan_and_nothing_else() -> None:
    values = fields(2)
    values[0, 0, 2:] = torch.nan
    observed = Observation(values, Identity(SHAPE), GaussianNoise(0.1))
    assert torch.equal(observed.present, ~values.isnan())
    assert bool((GaussianNoise(0.1).std(values) == torch.tensor(0.1)).all())
    spread = TransmissionNoise(10.0).std(values)
    assert bool(torch.isfinite(spread[observed.present]).all())
    with pytest.raises(DataError, match="infinite; mark missing ones by NaN"):
        Observation(torch.full((1, *SHAPE), torch.inf), Identity(SHAPE))
    values[1] = torch.nan
    with pytest.raises(DataError, match="a case has no observed value"):
        Observation(values, Identity(SHAPE))


def test_errors() -> None:
    with pytest.raises(ConfigError, match="at least 0"):
        GaussianNoise(-0.1)
    with pytest.raises(ConfigError, match="at least 0"):
        GaussianNoise(torch.tensor([0.1, torch.nan]))
    with pytest.raises(ConfigError, match="positive count"):
        TransmissionNoise(0.0)
    with pytest.raises(ShapeMismatch, match="do not fit observations"):
        GaussianNoise(torch.ones(5)).std(fields(1))
    with pytest.raises(ShapeMismatch, match="was it built for another grid"):
        Observation(torch.zeros(1, 48), Identity(SHAPE))
    with pytest.raises(ShapeMismatch, match="2 cases, but 3 ids"):
        simulate(Identity(SHAPE), fields(2), GaussianNoise(0.1), source=NOISE, ids=[1, 2, 3])
    with pytest.raises(ShapeMismatch, match="acts on fields"):
        simulate(Mask(torch.ones(1, 4, 4, dtype=torch.bool)), fields(2), GaussianNoise(0.1), source=NOISE)
