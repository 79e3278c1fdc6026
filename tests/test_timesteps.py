"""Training times: quantile functions of the distributions they are named after."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from sciLDM.errors import ConfigError
from sciLDM.schedules import CosineSchedule, EDMSchedule, RectifiedSchedule, Schedule, VESchedule, VPSchedule
from sciLDM.timesteps import (
    LogitNormalTime,
    LogUniformTime,
    NormalLmbdaTime,
    ProgressiveTime,
    TimeSampler,
    UniformTime,
)

SCHEDULES = [VPSchedule(), CosineSchedule(), RectifiedSchedule(), EDMSchedule(), VESchedule()]
SAMPLERS = [
    UniformTime(),
    LogitNormalTime(0.3, 1.2),
    LogUniformTime(),
    NormalLmbdaTime(),
    ProgressiveTime(UniformTime()),
    ProgressiveTime(LogitNormalTime()),
]
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
U = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000


def quantiles(values: Tensor) -> list[float]:
    return torch.quantile(values, torch.tensor([0.25, 0.5, 0.75], dtype=values.dtype)).tolist()


@every_schedule
@every_sampler
@given(progress=st.floats(0, 1), u=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=5))
def test_times_are_ordered_and_in_range(
    schedule: Schedule, sampler: TimeSampler, progress: float, u: list[float]
) -> None:
    """Also for u of exactly 0 or 1, which single precision can produce."""
    t = sampler(torch.tensor(sorted(u)), schedule, progress)
    low, high = schedule.t_range
    assert bool(t.isfinite().all())
    assert low * (1 - 1e-6) <= float(t.min())
    assert float(t.max()) <= high * (1 + 1e-6)
    assert bool((t.diff() >= 0).all())


@every_schedule
def test_uniform_in_time_and_in_lmbda(schedule: Schedule) -> None:
    low, high = schedule.t_range
    assert quantiles(UniformTime()(U, schedule)) == pytest.approx(
        [low + q * (high - low) for q in (0.25, 0.5, 0.75)], abs=1e-3
    )
    ends = schedule.lmbda(torch.tensor([low, high], dtype=torch.float64)).tolist()
    lmbda = schedule.lmbda(LogUniformTime()(U, schedule))
    expected = [ends[1] + q * (ends[0] - ends[1]) for q in (0.25, 0.5, 0.75)]
    assert quantiles(lmbda) == pytest.approx(expected, abs=0.01)


def test_limits_of_lmbda_are_kept() -> None:
    schedule = CosineSchedule()
    lmbda = schedule.lmbda(LogUniformTime(-2.0, 3.0)(U, schedule))
    assert (float(lmbda.min()), float(lmbda.max())) == pytest.approx((-2.0, 3.0), abs=0.01)
    assert quantiles(lmbda) == pytest.approx([-0.75, 0.5, 1.75], abs=0.01)


def test_normal_distributions_have_the_stated_mean_and_spread() -> None:
    logit = torch.logit(LogitNormalTime(0.4, 0.8)(U, RectifiedSchedule()))
    assert (float(logit.mean()), float(logit.std())) == pytest.approx((0.4, 0.8), abs=0.01)
    for schedule in (CosineSchedule(), VPSchedule(), EDMSchedule()):
        lmbda = schedule.lmbda(NormalLmbdaTime(1.2, 1.2)(U, schedule))
        assert (float(lmbda.mean()), float(lmbda.std())) == pytest.approx((1.2, 1.2), abs=0.02)


@every_schedule
def test_progress_goes_from_low_to_high_noise(schedule: Schedule) -> None:
    base = UniformTime()
    sampler = ProgressiveTime(base, start=0.2, until=0.5)
    tops = [float(sampler(U, schedule, p).max()) for p in (0.0, 0.1, 0.3, 0.5)]
    assert tops == sorted(tops)
    low, high = schedule.t_range
    assert tops[0] == pytest.approx(low + 0.2 * (high - low), abs=1e-3)
    for p in (0.5, 0.8, 1.0):
        assert torch.equal(sampler(U, schedule, p), base(U, schedule))


def test_impossible_options_are_refused() -> None:
    for build in (
        lambda: LogitNormalTime(0.0, 0.0),
        lambda: NormalLmbdaTime(0.0, -1.0),
        lambda: LogUniformTime(3.0, -3.0),
        lambda: ProgressiveTime(UniformTime(), start=0.0),
    ):
        with pytest.raises(ConfigError, match="needs"):
            build()
