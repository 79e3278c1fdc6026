"""Weights live in x0 space: one number per noise level, whatever the network predicts."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from sciLDM.errors import ConfigError
from sciLDM.parametrisation import X0, Eps, Score, V, Velocity
from sciLDM.schedules import CosineSchedule, EDMSchedule, RectifiedSchedule, Schedule, VPSchedule
from sciLDM.weighting import EDMWeight, MinSNR, SigmoidWeight, UniformEps, UniformV, UniformX0, Weighting

F64 = torch.float64
WEIGHTS = [UniformX0(), UniformEps(), UniformV(), MinSNR(), EDMWeight(), EDMWeight(0.5), SigmoidWeight(-1.0)]


def weight(weighting: Weighting, lmbda: float) -> float:
    return float(weighting(torch.tensor(lmbda, dtype=F64)))


@pytest.mark.parametrize("schedule", [VPSchedule(), CosineSchedule(), RectifiedSchedule(), EDMSchedule()])
@given(time=st.floats(0.02, 0.98))
def test_named_losses_are_the_plain_loss_of_their_prediction(schedule: Schedule, time: float) -> None:
    """`w |x0_hat - x|^2` equals `|y_hat - y|^2` (per unit of `alpha^2 + sigma^2` for v): the bug class of min-SNR
    with v-prediction cannot arise, because the weight never sees the parametrisation."""
    t = torch.full((1,), time, dtype=F64)
    x0, guess, eps = torch.randn(3, 1, 6, dtype=F64)
    alpha, sigma = schedule(t)
    x_t, lmbda = alpha * x0 + sigma * eps, schedule.lmbda(t)
    error = (guess - x0).square().sum()
    for kind, weighting in [(X0(), UniformX0()), (Eps(), UniformEps()), (V(), UniformV())]:
        plain = (kind.from_x0(guess, x_t, t, schedule) - kind.from_x0(x0, x_t, t, schedule)).square().sum()
        assert torch.allclose(weighting(lmbda) * error, plain, rtol=1e-8)


@pytest.mark.parametrize("weighting", WEIGHTS, ids=lambda w: type(w).__name__)
def test_the_loss_does_not_depend_on_the_parametrisation(weighting: Weighting) -> None:
    schedule, t = CosineSchedule(), torch.tensor([0.4], dtype=F64)
    x0, guess, eps = torch.randn(3, 1, 6, dtype=F64)
    alpha, sigma = schedule(t)
    x_t = alpha * x0 + sigma * eps
    losses = []
    for kind in (X0(), Eps(), V(), Score(), Velocity()):
        prediction = kind.from_x0(guess, x_t, t, schedule)  # the same belief, put in this kind's terms
        estimate = kind.to_x0(prediction, x_t, t, schedule)
        losses.append(float(weighting(schedule.lmbda(t)) * (estimate - x0).square().sum()))
    assert max(losses) - min(losses) < 1e-9 * max(losses)


@given(lmbda=st.floats(-9, 9), gamma=st.floats(0.1, 20), sigma_data=st.floats(0.2, 3), bias=st.floats(-4, 4))
def test_published_formulas(lmbda: float, gamma: float, sigma_data: float, bias: float) -> None:
    snr, sigma = math.exp(2 * lmbda), math.exp(-lmbda)
    assert weight(MinSNR(gamma), lmbda) == pytest.approx(min(snr, gamma))
    assert weight(EDMWeight(sigma_data), lmbda) == pytest.approx(
        (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    )
    assert weight(SigmoidWeight(bias), lmbda) == pytest.approx(snr / (1 + math.exp(2 * lmbda - bias)))
    assert weight(EDMWeight(), lmbda) == pytest.approx(weight(UniformV(), lmbda))


@pytest.mark.parametrize("weighting", WEIGHTS, ids=lambda w: type(w).__name__)
def test_weights_are_positive_and_finite_even_at_the_ends(weighting: Weighting) -> None:
    for dtype in (torch.float32, F64):
        values = weighting(torch.tensor([-float("inf"), -50.0, 0.0, 50.0, float("inf")], dtype=dtype))
        assert values.dtype == dtype
        assert bool((values.isfinite() & (values > 0)).all())


def test_impossible_options_are_refused() -> None:
    for build in (lambda: MinSNR(0.0), lambda: EDMWeight(-1.0)):
        with pytest.raises(ConfigError, match="> 0"):
            build()
