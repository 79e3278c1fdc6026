"""Predictions as one table: every conversion is exact, and networks see numbers of order one."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import example, given
from torch import Tensor

from sciLDM.parametrisation import X0, Eps, Parametrisation, Score, V, Velocity, convert, safe_scales
from sciLDM.schedules import (
    LMBDA_LIMIT,
    CosineSchedule,
    EDMSchedule,
    RectifiedSchedule,
    Schedule,
    VESchedule,
    VPSchedule,
)

F64 = torch.float64
KINDS = [X0(), Eps(), V(), Score(), Velocity()]
SCHEDULES = [
    VPSchedule(),
    CosineSchedule(),
    CosineSchedule(shift=-1.0),
    RectifiedSchedule(),
    EDMSchedule(),
    VESchedule(),
]


def name(value: object) -> str:
    return type(value).__name__


every_kind = pytest.mark.parametrize("kind", KINDS, ids=name)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=name)


def pair(schedule: Schedule, time: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`(t, x0, eps, x_t)` of three samples."""
    x0, eps = torch.randn(2, 3, 2, 4, dtype=F64)
    t = torch.full((3,), time, dtype=F64)
    alpha, sigma = safe_scales(schedule, t)
    return t, x0, eps, alpha[:, None, None] * x0 + sigma[:, None, None] * eps


@every_schedule
@given(time=st.floats(0, 1), source=st.sampled_from(KINDS), target=st.sampled_from(KINDS))
@example(time=0.0, source=Eps(), target=Velocity())
@example(time=1.0, source=Eps(), target=Velocity())
@example(time=1.0, source=Score(), target=X0())
def test_every_conversion_returns(
    schedule: Schedule, source: Parametrisation, target: Parametrisation, time: float
) -> None:
    t, x0, _, x_t = pair(schedule, time)
    y = source.from_x0(x0, x_t, t, schedule)
    there = convert(y, x_t, t, schedule, source, target)
    back = convert(there, x_t, t, schedule, target, source)
    assert torch.allclose(target.to_x0(there, x_t, t, schedule), x0, rtol=1e-9, atol=1e-8)
    assert torch.allclose(back, y, rtol=1e-6, atol=1e-6)


@every_schedule
@pytest.mark.parametrize("time", [0.02, 0.5, 0.97])
def test_predictions_are_what_they_are_called(schedule: Schedule, time: float) -> None:
    t, x0, eps, x_t = pair(schedule, time)
    alpha, sigma = (scale[:, None, None] for scale in schedule(t))
    h = 1e-6
    (alpha_0, sigma_0), (alpha_1, sigma_1) = schedule(t - h), schedule(t + h)
    slope = ((alpha_1 - alpha_0)[:, None, None] * x0 + (sigma_1 - sigma_0)[:, None, None] * eps) / (2 * h)
    expected = {
        "X0": x0,
        "Eps": eps,
        "V": (alpha * eps - sigma * x0) / torch.hypot(alpha, sigma),
        "Score": -(x_t - alpha * x0) / sigma**2,  # gradient of log N(x_t; alpha x0, sigma^2)
        "Velocity": slope,
    }
    for kind in KINDS:
        assert torch.allclose(
            kind.from_x0(x0, x_t, t, schedule), expected[name(kind)], rtol=1e-5, atol=1e-5
        ), kind


@every_kind
@every_schedule
def test_preconditioning_is_finite_everywhere(schedule: Schedule, kind: Parametrisation) -> None:
    for dtype in (torch.float32, F64):
        t = torch.cat([torch.tensor([0.0, 1.0]), torch.linspace(0, 1, 41)]).to(dtype)
        for coefficient in kind.network(schedule, t):
            assert coefficient.dtype == dtype
            assert bool(coefficient.isfinite().all())
        c_noise = kind.network(schedule, t)[3]
        assert float(c_noise.abs().max()) <= LMBDA_LIMIT / 4 + 1e-5


@every_kind
@every_schedule
@pytest.mark.parametrize("time", [0.01, 0.3, 0.9])
def test_networks_see_and_predict_unit_variance(
    schedule: Schedule, kind: Parametrisation, time: float
) -> None:
    x0, eps = torch.randn(2, 50_000, dtype=F64)
    t = torch.tensor([time], dtype=F64)
    alpha, sigma = schedule(t)
    c_in, c_skip, c_out, _ = kind.network(schedule, t)
    x_t = alpha * x0 + sigma * eps
    target = (x0 - c_skip * x_t) / c_out  # what the network must say for x0_hat = x0
    assert abs(float((c_in * x_t).std()) - 1) < 0.02
    assert abs(float(target.std()) - 1) < 0.02
    # and it is the prediction it is named after, up to a factor
    y = kind.from_x0(x0[None], x_t[None], t, schedule)[0]
    assert abs(float(torch.corrcoef(torch.stack([y, target]))[0, 1]) - 1) < 1e-6


def test_v_is_the_edm_preconditioning() -> None:
    t = torch.linspace(0, 1, 9, dtype=F64)
    schedule = EDMSchedule()
    sigma = schedule.sigma(t)
    c_in, c_skip, c_out, c_noise = V().network(schedule, t)
    assert torch.allclose(c_in, (1 + sigma**2).rsqrt())  # 2206.00364, Table 1 with sigma_data = 1
    assert torch.allclose(c_skip, 1 / (1 + sigma**2))
    assert torch.allclose(c_out, -sigma * (1 + sigma**2).rsqrt())  # up to the sign of F
    assert torch.allclose(c_noise, -sigma.log() / 4)


def test_a_network_can_change_schedule() -> None:
    """At equal `lmbda` the network of one schedule gives the same clean estimate under another."""
    lmbda = torch.linspace(-4, 4, 9, dtype=F64)
    x0, eps = torch.randn(2, 9, 5, dtype=F64)
    estimates = []
    for schedule in (VPSchedule(), RectifiedSchedule(), EDMSchedule()):
        t = schedule.t_of_lmbda(lmbda)
        alpha, sigma = (scale[:, None] for scale in schedule(t))
        c_in, c_skip, c_out, c_noise = (c[:, None] for c in V().network(schedule, t))
        x_t = alpha * x0 + sigma * eps
        estimates.append(c_skip * x_t + c_out * torch.tanh(c_in * x_t + c_noise))
    assert torch.allclose(estimates[0], estimates[1])
    assert torch.allclose(estimates[0], estimates[2])
