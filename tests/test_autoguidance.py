"""Autoguidance on Gaussians, where the guided distribution is known in closed form."""

import math

import pytest
import torch
from torch import Tensor, nn

from sciLDM.denoiser import Denoiser, NetDenoiser
from sciLDM.guidance import Autoguidance, ClassifierFree, Conditioned, reset_self_conditioning
from sciLDM.oracles import GaussianDenoiser, MixtureDenoiser
from sciLDM.parametrisation import X0
from sciLDM.rng import NoiseSource
from sciLDM.samplers import DPMSolverPP2M, Heun
from sciLDM.samplers.base import level_at
from sciLDM.samplers.grids import LogSNRGrid
from sciLDM.schedules import CosineSchedule

F64 = torch.float64
SCHEDULE = CosineSchedule()


def gaussian(mean: float, variance: float) -> GaussianDenoiser:
    return GaussianDenoiser(torch.tensor([mean], dtype=F64), torch.tensor([[variance]], dtype=F64), SCHEDULE)


def mixture(std: float) -> MixtureDenoiser:
    means = torch.tensor([[-1.0, 0.0], [1.0, 0.3]], dtype=F64)
    weights, stds = torch.tensor([0.3, 0.7], dtype=F64), torch.full((2,), std, dtype=F64)
    return MixtureDenoiser(weights, means, stds, SCHEDULE)


class Counted(Denoiser):
    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__(denoiser.schedule)
        self.denoiser, self.calls = denoiser, 0

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return self.denoiser(x_t, t)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_guided_by_an_equal_model_it_is_that_model(scale: float) -> None:
    x, t = torch.randn(5, 2, dtype=F64), torch.linspace(0.05, 0.95, 5, dtype=F64)
    assert torch.allclose(
        Autoguidance(mixture(0.3), mixture(0.3), scale)(x, t), mixture(0.3)(x, t), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.35, 0.7)], ids=["everywhere", "interval"])
def test_samples_of_a_gaussian_guided_by_a_wider_one(scale: float, interval: tuple[float, float]) -> None:
    """The flow is linear: its growth is known for each model, and over a part of the levels as well.

    With `S_i = a^2 v_i + s^2` a model of variance `v_i` grows by `sqrt(S_i(late) / S_i(early))` between two levels, and
    the guided one by `G_good^w G_bad^(1 - w)` where guidance acts. Everywhere that is `v_good^(w/2) v_bad^((1 - w)/2)`:
    a guide that is too wide makes samples narrower.
    """
    good, bad, ids = 0.5, 1.6, [0, 1, 2]

    def spread(variance: float, t: float) -> float:
        level = level_at(SCHEDULE, t)
        return math.sqrt(level.a**2 * variance + level.s**2)

    def growth(variance: float) -> float:
        return spread(variance, interval[0]) / spread(variance, interval[1])

    expected = math.sqrt(good) * (growth(good) / growth(bad)) ** (scale - 1)
    guided = Autoguidance(gaussian(0.4, good), gaussian(0.4, bad), scale, interval=interval)
    sampler, noise = Heun(steps=160, grid=LogSNRGrid(-6.0, 6.0)), NoiseSource(0)
    x = sampler(guided, (1,), noise=noise, ids=ids, dtype=F64)[:, 0]
    start = noise.normal(ids, (1,), stream="start", dtype=F64)[:, 0]
    slope = float((x[2] - x[0]) / (start[2] - start[0]))
    assert slope == pytest.approx(expected, rel=0.02)  # the interval ends between two levels
    assert float(x[1]) - slope * float(start[1]) == pytest.approx(0.4, abs=0.01)


def test_what_a_smeared_guide_confuses_becomes_rare() -> None:
    """The gap between two modes: a model that blurs it is corrected by one that blurs it more; the modes stay."""
    count = 1000
    ids, noise, sampler = list(range(count)), NoiseSource(1), DPMSolverPP2M(steps=40)

    def right_and_gap(denoiser: Denoiser) -> tuple[float, float]:
        x = sampler(denoiser, (2,), noise=noise, ids=ids, dtype=F64)[:, 0]
        return float((x > 0).double().mean()), float((x.abs() < 0.4).double().mean())

    exact, blurred, worse = mixture(0.15), mixture(0.35), mixture(0.5)
    (right, plain), (still_right, guided) = (
        right_and_gap(blurred),
        right_and_gap(Autoguidance(blurred, worse, 2.5)),
    )
    assert right_and_gap(exact)[1] < 0.005
    assert plain > 0.03
    assert guided < 0.4 * plain
    assert still_right == pytest.approx(right, abs=0.03)


def test_the_guide_costs_nothing_where_it_does_not_act() -> None:
    good, bad = Counted(gaussian(0.0, 1.0)), Counted(gaussian(1.0, 1.0))
    x, t = torch.zeros(3, 1, dtype=F64), torch.tensor([0.1, 0.5, 0.9], dtype=F64)
    guided = Autoguidance(good, bad, 2.0, interval=(0.3, 0.6))
    both = Autoguidance(good, bad, 2.0)(x, t)
    assert torch.equal(guided(x, t), torch.stack([good(x, t)[0], both[1], good(x, t)[2]]))
    bad.calls = 0
    guided(x, torch.full_like(t, 0.9))
    Autoguidance(good, bad, 1.0)(x, t)
    assert bad.calls == 0


def test_it_composes_with_conditions_and_each_model_remembers_its_own_estimate() -> None:
    class Net(nn.Module):
        def __init__(self, pull: float) -> None:
            super().__init__()
            self.pull, self.seen = pull, []

        def forward(
            self, x: Tensor, c_noise: Tensor, cond: dict[str, Tensor], mask: object, previous: Tensor | None
        ) -> Tensor:
            self.seen.append(previous)
            return self.pull * cond["a"].nan_to_num(0.0)[:, None] + 0.1 * x

    cond = {"a": torch.tensor([1.0, 2.0])}
    good, bad = Net(1.0), Net(0.5)
    guided = Autoguidance(
        ClassifierFree(NetDenoiser(good, SCHEDULE, X0()), cond, scale=3.0, self_condition=True),
        Conditioned(NetDenoiser(bad, SCHEDULE, X0()), cond, self_condition=True),
        2.0,
    )
    x, t = torch.randn(2, 1), torch.full((2,), 0.5)
    first = guided(x, t)
    expected = 2.0 * (3.0 * cond["a"][:, None] + 0.1 * x) - (0.5 * cond["a"][:, None] + 0.1 * x)
    assert torch.allclose(first, expected, atol=1e-6)
    guided(x, t)
    assert good.seen[0] is None
    assert torch.allclose(good.seen[1][:2], cond["a"][:, None] + 0.1 * x)
    assert torch.allclose(bad.seen[1], 0.5 * cond["a"][:, None] + 0.1 * x)
    reset_self_conditioning(guided)
    guided(x, t)
    assert good.seen[2] is None
    assert bad.seen[2] is None
