"""The exact part of `scildm doctor`: fitted Gaussians, and what samplers make of them, against independent answers."""

import json
import math
from typing import ClassVar, final

import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from sciLDM.errors import DataError
from sciLDM.evaluate.doctor_gaussian import LatentGaussian, Slope
from sciLDM.evaluate.doctor_response import guided_response, left_by_the_end, response
from sciLDM.evaluate.doctor_study import solver_rows
from sciLDM.oracles import GaussianDenoiser
from sciLDM.rng import NoiseSource
from sciLDM.samplers import DDIM, DDPM, DPMSolverPP2M, DPMSolverPP2MSDE, Heun, LogSNRGrid, ReverseSDE, Sampler
from sciLDM.samplers.base import Run
from sciLDM.schedules import CosineSchedule, EDMSchedule, Schedule, VESchedule

F64 = torch.float64
MEAN = torch.tensor([0.4, -0.2, 0.0], dtype=F64)
VARIANCES = torch.tensor([0.04, 0.7, 2.5], dtype=F64)
SAMPLERS = [
    DDIM(steps=12), DPMSolverPP2M(steps=12), DPMSolverPP2MSDE(steps=12), DDPM(steps=12), ReverseSDE(steps=8),
    Heun(steps=10, churn=8.0),
]  # fmt: skip


def known(mean: Tensor = MEAN, variances: Tensor = VARIANCES, **slopes: Slope) -> LatentGaussian:
    one = torch.ones_like(mean)
    return LatentGaussian(mean, variances, one, len(mean), 0 * one, 0.02, 1000, (), slopes)


def draws(count: int, variances: Tensor, seed: int = 0) -> Tensor:
    """Latents `[count, channel, cell]` with these variances along random directions."""
    g = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(len(variances), len(variances), generator=g, dtype=F64)).Q
    z = torch.randn(count, len(variances), generator=g, dtype=F64) * variances.sqrt()
    return (z @ axes.T).reshape(count, 2, -1)


@pytest.mark.parametrize("schedule", [CosineSchedule(), EDMSchedule()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_the_response_is_what_sampling_gives(sampler: Sampler, schedule: Schedule) -> None:
    """Against the plain route: a dense oracle, random noise, many samples."""
    mean, std, affine = response(sampler, schedule, MEAN, VARIANCES)
    assert affine
    angle = torch.linalg.qr(torch.tensor([[1.0, 2, 0], [0, 1, 1], [1, 0, 1]], dtype=F64)).Q
    dense = GaussianDenoiser(angle @ MEAN, angle @ VARIANCES.diag() @ angle.T, schedule)
    found = sampler(dense, (3,), noise=NoiseSource(1), ids=range(3000), dtype=F64) @ angle
    assert torch.allclose(found.std(0), std, rtol=4 / math.sqrt(6000))
    assert bool(((found.mean(0) - mean).abs() < 4 * std / math.sqrt(3000)).all())


@pytest.mark.parametrize("lmbda_max", [0.5, 1.5, 3.0])
def test_what_the_grids_end_leaves_no_number_of_steps_removes(lmbda_max: float) -> None:
    sampler = DPMSolverPP2M(steps=400, grid=LogSNRGrid(lmbda_min=-5.0, lmbda_max=lmbda_max))
    left, lmbda = left_by_the_end(sampler, CosineSchedule(), VARIANCES)
    std = response(sampler, CosineSchedule(), MEAN, VARIANCES)[1]
    assert lmbda == pytest.approx(lmbda_max, abs=1e-3)
    assert torch.allclose(std / VARIANCES.sqrt(), left, rtol=2e-3)
    assert float(left[0]) == pytest.approx(math.sqrt(0.04 / (0.04 + math.exp(-2 * lmbda_max))), rel=1e-3)


@pytest.mark.parametrize("sampler", SAMPLERS, ids=lambda s: type(s).__name__)
def test_temperature_scales_every_direction_exactly(sampler: Sampler) -> None:
    plain = response(sampler, CosineSchedule(), MEAN, VARIANCES)
    cold = type(sampler)(
        steps=sampler.steps, temperature=0.8, **({"churn": 8.0} if isinstance(sampler, Heun) else {})
    )
    mean, std, _ = response(cold, CosineSchedule(), MEAN, VARIANCES)
    assert torch.allclose(std, 0.8 * plain[1], rtol=1e-9)
    assert torch.allclose(mean, plain[0], rtol=1e-9)


@final
class Clipping(Sampler):
    """What an affine map cannot be."""

    documented_steps: ClassVar[int] = 10

    def integrate(self, run: Run, y: Tensor) -> Tensor:
        return run.denoise(y, run.levels[-1]).clamp(-0.2, 0.2)


def test_a_sampler_that_clips_is_found_out() -> None:
    sampler = Clipping(steps=3, grid=LogSNRGrid())
    assert not response(sampler, VESchedule(), MEAN, VARIANCES)[2]
    assert not solver_rows(sampler, VESchedule(), known(), [3])[0]["affine"]


def test_solver_rows_split_the_bias_and_ignore_the_temperature() -> None:
    sampler = DPMSolverPP2MSDE(grid=LogSNRGrid(lmbda_min=-3.0, lmbda_max=1.5), temperature=0.5)
    rows = {r["steps"]: r for r in solver_rows(sampler, CosineSchedule(), known(), [5, 20, 400])}
    assert rows[400]["spread"] == pytest.approx(rows[400]["end"], rel=2e-3)
    assert rows[400]["end"] < 0.985
    assert rows[5]["solver"] < 0.95
    assert rows[5]["narrowest"] <= rows[5]["spread"] <= rows[5]["widest"]
    assert rows[5]["tails"] < rows[20]["tails"] < 0.02
    exact = solver_rows(DPMSolverPP2M(), CosineSchedule(), known(), [400])[0]
    assert exact["tails"] == pytest.approx(0.02, abs=2e-4)
    assert exact["mean"] < 1e-3


@pytest.mark.parametrize("scale", [1.0, 2.0, 4.0])
def test_guidance_in_one_dimension_is_that_of_the_ode(scale: float) -> None:
    """`dM / dtheta = v` of the guided estimate, integrated by another method, for the mean and for the spread."""
    shift = 0.6
    gaussian = known(torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64))
    slope = Slope(torch.tensor([shift], dtype=F64), shift**2)
    got = guided_response(
        DPMSolverPP2M(steps=300, grid=LogSNRGrid(-8.0, 8.0)), CosineSchedule(), gaussian, slope, scale
    )
    conditional = 1 - shift**2

    def velocity(theta: float, y: list[float], target: float) -> list[float]:
        a, s = math.cos(theta), math.sin(theta)
        full = target + a * conditional / (a**2 * conditional + s**2) * (y[0] - a * target)
        return [(a * y[0] - full - (scale - 1) * (full - a * y[0])) / s]

    ends = [
        float(solve_ivp(velocity, (math.pi / 2 - 1e-6, 1e-4), [start], args=(target,), rtol=1e-8).y[0, -1])
        for start, target in ((0.0, shift), (1.0, 0.0))
    ]
    assert got[0] == pytest.approx(ends[0] / shift, rel=0.01)
    assert got[1] == pytest.approx(ends[1] / math.sqrt(conditional), rel=0.01)
    assert got[2] == pytest.approx(got[1], rel=1e-6)


def test_a_fit_finds_mean_spectrum_and_shape() -> None:
    variances = torch.tensor([0.1, 0.5, 1.0, 3.0], dtype=F64)
    z = draws(20_000, variances) + 0.3
    found = LatentGaussian.fit(z)
    assert torch.allclose(found.variances, variances, rtol=0.05)
    assert float(found.mean.square().sum()) == pytest.approx(4 * 0.09, rel=0.1)
    assert float(found.kurtosis.abs().max()) < 0.15
    assert found.tails == pytest.approx(0.02, abs=2e-3)
    heavy = z * torch.empty(20_000, 1, 1, dtype=F64).exponential_(generator=torch.Generator().manual_seed(0))
    assert float(LatentGaussian.fit(heavy).kurtosis.min()) > 5


def test_sizes_are_fitted_apart() -> None:
    """Padding must not pass for latents without variance."""
    large, small = (
        draws(3000, torch.full((6,), 2.0, dtype=F64)),
        draws(1000, torch.full((4,), 0.5, dtype=F64), 1),
    )
    z = torch.cat([large, torch.nn.functional.pad(small, (0, 1))])
    mask = torch.ones(4000, 3, dtype=torch.bool)
    mask[3000:, 2] = False
    found = LatentGaussian.fit(z, mask)
    assert found.first == 6
    assert torch.allclose(found.variances[:6], torch.tensor(2.0, dtype=F64), rtol=0.15)
    assert torch.allclose(found.variances[6:], torch.tensor(0.5, dtype=F64), rtol=0.2)
    assert found.weights.tolist() == [0.75] * 6 + [0.25] * 4
    assert "3 cells: 3,000; 2 cells: 1,000" in found.notes[0]


def test_cells_are_pooled_where_no_two_latents_are_alike() -> None:
    g = torch.Generator().manual_seed(0)
    mask = torch.rand(500, 40, generator=g) < 0.5
    z = torch.randn(500, 2, 40, generator=g) * torch.tensor([1.0, 0.2])[:, None] * mask[:, None]
    found = LatentGaussian.fit(z, mask)
    assert torch.allclose(found.variances, torch.tensor([0.04, 1.0], dtype=F64), rtol=0.1)
    assert "independent" in found.notes[0]


def test_more_directions_than_latents_are_shrunk_not_lost() -> None:
    g = torch.Generator().manual_seed(0)
    z = torch.randn(300, 3, 1000, generator=g)
    z[:, 0] += 5 * torch.randn(300, 1, generator=g)  # one strong direction: a common level of a channel
    found = LatentGaussian.fit(z)
    assert float(found.weights.sum()) == pytest.approx(3000)
    assert len(found.variances) == 300  # 299 and one that stands for the rest
    total = float(z.flatten(1).double().var(0, correction=0).sum())
    assert float((found.weights * found.variances).sum()) == pytest.approx(total, rel=1e-6)
    strong = float(z[:, 0].double().mean(1).var(correction=0)) * 1000
    assert float(found.variances.max()) == pytest.approx(strong, rel=0.02)
    assert float(found.variances.min()) > 0


def test_slopes_are_regressions_on_the_label() -> None:
    z = draws(8000, torch.ones(4, dtype=F64))
    g = torch.Generator().manual_seed(3)
    label = 2 * z.flatten(1)[:, 0] + 10
    z = z + 0.0
    noisy = label + torch.randn(8000, generator=g, dtype=F64) * 2
    noisy[:100] = float("nan")
    labels = {"property": noisy, "constant": torch.ones(8000), "class": torch.ones(8000, dtype=torch.long)}
    found = LatentGaussian.fit(z, None, labels).slopes
    assert set(found) == {"property"}
    assert float(found["property"].shift.norm()) == pytest.approx(math.sqrt(0.5), rel=0.05)
    assert found["property"].explained == pytest.approx(0.5 / 4, rel=0.1)


def test_state_is_plain_and_gives_the_same_diagnosis() -> None:
    z = draws(500, torch.tensor([0.1, 0.5, 1.0, 3.0], dtype=F64))
    found = LatentGaussian.fit(z, None, {"a": z[:, 0, 0]})
    again = LatentGaussian.from_state(json.loads(json.dumps(found.state())))
    for before, after in zip(
        *(solver_rows(Heun(), CosineSchedule(), x, [5, 30]) for x in (found, again)), strict=True
    ):
        assert after["spread"] == pytest.approx(before["spread"], rel=1e-4)
    assert torch.allclose(again.slopes["a"].shift, found.slopes["a"].shift, rtol=1e-3, atol=1e-4)
    for damaged in ({}, {"format": 2}, {**found.state(), "mean": "x"}):
        with pytest.raises(DataError, match="damaged"):
            LatentGaussian.from_state(damaged)


def test_too_few_or_broken_latents_are_refused() -> None:
    for z in (torch.zeros(3, 2, 2), torch.full((50, 2, 2), float("nan"))):
        with pytest.raises(DataError, match="at least 16 finite"):
            LatentGaussian.fit(z)
