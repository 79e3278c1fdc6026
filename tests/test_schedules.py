"""Schedules: monotone, invertible, exact at both ends, with true derivatives."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from sciLDM.errors import ConfigError
from sciLDM.schedules import (
    CosineSchedule,
    EDMSchedule,
    RectifiedSchedule,
    Schedule,
    VESchedule,
    VPSchedule,
    bisect_lmbda,
)

F64 = torch.float64
SCHEDULES = [
    VPSchedule(),
    CosineSchedule(),
    CosineSchedule(shift=-1.5),
    RectifiedSchedule(),
    RectifiedSchedule(shift=-1.5),
    EDMSchedule(),
    VESchedule(),
]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
times = st.floats(1e-4, 1 - 1e-4)


@every_schedule
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_noise_rises_and_signal_never_does(schedule: Schedule, dtype: torch.dtype) -> None:
    t = torch.linspace(0, 1, 1001, dtype=dtype)
    alpha, sigma = schedule(t)
    assert alpha.dtype == sigma.dtype == dtype
    assert bool((sigma.diff() >= 0).all())
    assert bool((alpha.diff() <= 0).all())
    assert bool((schedule.lmbda(t).diff() < 0).all())


@every_schedule
@given(t=times)
def test_lmbda_is_inverted(schedule: Schedule, t: float) -> None:
    exact = torch.tensor(t, dtype=F64)
    lmbda = schedule.lmbda(exact)
    assert torch.allclose(schedule.t_of_lmbda(lmbda), exact, rtol=1e-9, atol=1e-12)
    assert torch.allclose(bisect_lmbda(schedule, lmbda), exact, rtol=1e-9, atol=1e-12)
    single = schedule.t_of_lmbda(schedule.lmbda(exact.float()))
    assert torch.allclose(single.double(), exact, rtol=1e-4, atol=1e-5)


@every_schedule
@given(t=times)
def test_derivatives_are_those_of_the_scales(schedule: Schedule, t: float) -> None:
    h = 1e-5 * t * (1 - t)
    stencil = torch.tensor([t - h, t + h], dtype=F64)
    for scale, slope in zip(
        schedule(stencil), schedule.derivatives(torch.tensor([t], dtype=F64)), strict=True
    ):
        assert torch.allclose(slope, scale.diff() / stencil.diff(), rtol=1e-4, atol=1e-5)


@every_schedule
def test_single_precision_keeps_its_digits_at_low_noise(schedule: Schedule) -> None:
    t = torch.logspace(-6, -1, 30, dtype=torch.float32)
    assert torch.allclose(schedule.sigma(t).double(), schedule.sigma(t.double()), rtol=2e-6)


@every_schedule
def test_the_range_is_where_training_is_worth_while(schedule: Schedule) -> None:
    low, high = schedule.t_range
    assert 0 <= low < high <= 1
    lmbda = schedule.lmbda(torch.tensor([low, high], dtype=F64))
    assert 4 < float(lmbda[0]) < 7.001
    assert -7.001 < float(lmbda[1]) < -4


def test_ends_are_exact_in_single_precision() -> None:
    ends = torch.tensor([0.0, 1.0])
    for schedule in (
        CosineSchedule(),
        CosineSchedule(shift=-2.0),
        RectifiedSchedule(),
        RectifiedSchedule(shift=1.0),
    ):
        alpha, sigma = schedule(ends)
        assert alpha.tolist() == [1.0, 0.0]
        assert sigma.tolist() == [0.0, 1.0]
        assert torch.equal(schedule.t_of_lmbda(torch.tensor([float("inf"), -float("inf")])), ends)
    assert float(VPSchedule().sigma(ends)[0]) == 0.0


@every_schedule
def test_levels_beyond_the_schedule_are_held_inside(schedule: Schedule) -> None:
    t = schedule.t_of_lmbda(torch.tensor([60.0, -60.0], dtype=F64))
    assert torch.allclose(t, torch.tensor([0.0, 1.0], dtype=F64))


@given(t=times)
def test_variance_is_preserved_and_shifts_add_to_lmbda(t: float) -> None:
    time = torch.tensor(t, dtype=F64)
    for schedule in (VPSchedule(), CosineSchedule(), CosineSchedule(shift=-2.0)):
        alpha, sigma = schedule(time)
        assert abs(float(alpha**2 + sigma**2) - 1) < 1e-12
    for kind in (CosineSchedule, RectifiedSchedule):
        assert abs(float(kind(shift=-2.0).lmbda(time) - kind().lmbda(time)) + 2.0) < 1e-9
    alpha, sigma = RectifiedSchedule(shift=-2.0)(time)
    assert abs(float(alpha + sigma) - 1) < 1e-12


def test_vp_and_edm_are_the_published_ones() -> None:
    t = torch.tensor([0.3, 1.0], dtype=F64)
    assert torch.allclose(
        VPSchedule().alpha(t).log(), -0.25 * t**2 * 19.9 - 0.5 * t * 0.1
    )  # 2011.13456, Eq. 33
    steps = torch.arange(18, dtype=F64)
    published = (80 ** (1 / 7) + steps / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7  # 2206.00364, Eq. 5
    assert torch.allclose(EDMSchedule().sigma(1 - steps / 17), published)


def test_impossible_ranges_are_refused() -> None:
    for build in (lambda: VPSchedule(2.0, 1.0), lambda: EDMSchedule(0.0), lambda: VESchedule(1.0, 0.5)):
        with pytest.raises(ConfigError, match="needs 0 <"):
            build()
