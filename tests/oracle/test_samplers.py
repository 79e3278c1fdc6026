"""Every schedule x parametrisation x sampler against distributions whose denoiser is exact.

With a Gaussian denoiser a sampler is an affine map of its noises. Feeding it unit vectors of noise gives that map,
hence the exact mean and covariance of its samples: no Monte-Carlo error hides a bias.
"""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from sciLDM.denoiser import NetDenoiser
from sciLDM.errors import ConfigError
from sciLDM.guidance import Conditioned
from sciLDM.oracles import GaussianDenoiser, MixtureDenoiser
from sciLDM.parametrisation import X0, Eps, Parametrisation, Score, V, Velocity, expand
from sciLDM.rng import NoiseSource
from sciLDM.samplers import (
    DDIM,
    DDPM,
    DPMSolverPP2M,
    DPMSolverPP2MSDE,
    Euler,
    Heun,
    KarrasGrid,
    LogSNRGrid,
    ReverseSDE,
    Sampler,
    UniformGrid,
)
from sciLDM.samplers.base import CLEAN, level_at
from sciLDM.schedules import CosineSchedule, EDMSchedule, RectifiedSchedule, Schedule, VESchedule, VPSchedule

F64 = torch.float64
SCHEDULES = [VPSchedule(), CosineSchedule(), RectifiedSchedule(), EDMSchedule(), VESchedule()]
PARAMETRISATIONS = [X0(), Eps(), V(), Score(), Velocity()]
ODE_SAMPLERS = [DDIM(), Euler(), Heun(), DPMSolverPP2M()]
SDE_SAMPLERS = [DDPM(), DPMSolverPP2MSDE(), DPMSolverPP2MSDE(eta=0.5), ReverseSDE(), ReverseSDE(eta=0.5)]
SAMPLERS = ODE_SAMPLERS + SDE_SAMPLERS
GRIDS = [UniformGrid(), LogSNRGrid(), KarrasGrid()]

MEAN = torch.tensor([0.5, -1.0], dtype=F64)
COVARIANCE = torch.tensor([[1.2, 0.5], [0.5, 0.4]], dtype=F64)  # principal standard deviations 1.20 and 0.40


def name(value: object) -> str:
    eta = getattr(value, "eta", None)
    return type(value).__name__ + (f"-{eta}" if eta is not None else "")


class UnitNoise(NoiseSource):  # pyright: ignore[reportGeneralTypeIssues]
    """Noise number k of all the sampler asks for is 1 in sample k and 0 in every other; the last sample gets none."""

    streams: list[object]

    def normal(
        self,
        ids: Sequence[int],
        shape: tuple[int, ...],
        *,
        stream: int | str = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        if not hasattr(self, "streams"):
            object.__setattr__(self, "streams", [])
        if stream not in self.streams:
            self.streams.append(stream)
        start, width = self.streams.index(stream) * shape[0], shape[0]
        draws = torch.zeros(len(ids), *shape, dtype=dtype)
        for k in range(width):
            if start + k < len(ids) - 1:
                draws[start + k, k] = 1.0
        return draws


class StratifiedNoise(NoiseSource):  # pyright: ignore[reportGeneralTypeIssues]
    """Normal quantiles instead of random normals, shuffled independently for each stream: little sampling error."""

    def normal(
        self,
        ids: Sequence[int],
        shape: tuple[int, ...],
        *,
        stream: int | str = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        count = len(ids)
        quantiles = torch.special.ndtri((torch.arange(count, dtype=F64) + 0.5) / count)
        order = NoiseSource(self.seed).uniform([0], (count,), stream, dtype=F64)[0].argsort()
        return quantiles[order].reshape(count, *shape).to(dtype)


class OracleNet(nn.Module):
    """The network that a perfectly trained model of this parametrisation would be."""

    def __init__(self, exact: nn.Module, schedule: Schedule, parametrisation: Parametrisation) -> None:
        super().__init__()
        self.exact, self.schedule, self.parametrisation = exact, schedule, parametrisation

    def forward(self, x: Tensor, c_noise: Tensor, cond: object, mask: object, previous: object) -> Tensor:
        t = self.schedule.t_of_lmbda(4 * c_noise)
        c_in, c_skip, c_out, _ = self.parametrisation.network(self.schedule, t)
        x_t = x / expand(c_in, x)
        return (self.exact(x_t, t) - expand(c_skip, x) * x_t) / expand(c_out, x)


def exact_moments(sampler: Sampler, denoiser: nn.Module, noises: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the sampler's output for a linear denoiser in 2-D that uses `noises` draws."""
    samples = sampler(denoiser, (2,), noise=UnitNoise(0), ids=range(2 * noises + 1), dtype=F64)
    offset = samples[-1]
    response = samples[:-1] - offset
    return offset, response.T @ response


def draws(sampler: Sampler) -> int:
    return 1 if sampler in ODE_SAMPLERS else sampler.steps


@pytest.mark.parametrize("sampler", SAMPLERS, ids=name)
@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS, ids=name)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_gaussian_to_one_percent(
    schedule: Schedule, parametrisation: Parametrisation, sampler: Sampler
) -> None:
    assert sampler.steps == sampler.documented_steps
    net = OracleNet(GaussianDenoiser(MEAN, COVARIANCE, schedule), schedule, parametrisation)
    denoiser = Conditioned(NetDenoiser(net, schedule, parametrisation))
    mean, covariance = exact_moments(sampler, denoiser, draws(sampler))
    std = COVARIANCE.diagonal().sqrt()
    assert float(((mean - MEAN).abs() / std).max()) < 0.01
    assert float((covariance.diagonal().sqrt() / std - 1).abs().max()) < 0.01
    # Along every direction, not the axes alone: eigenvalues of the covariance relative to the true one.
    whitening = torch.linalg.inv(torch.linalg.cholesky(COVARIANCE))
    relative = torch.linalg.eigvalsh(whitening @ covariance @ whitening.T).sqrt()
    assert float((relative - 1).abs().max()) < 0.0125


@pytest.mark.parametrize("sampler", SAMPLERS, ids=name)
@pytest.mark.parametrize("parametrisation", PARAMETRISATIONS, ids=name)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_parametrisation_does_not_matter(
    schedule: Schedule, parametrisation: Parametrisation, sampler: Sampler
) -> None:
    """A perfect network of any kind gives the exact denoiser's samples, from pure noise to clean, step for step."""
    exact, ids, noise = GaussianDenoiser(MEAN, COVARIANCE, schedule), range(4), NoiseSource(1)
    network = NetDenoiser(OracleNet(exact, schedule, parametrisation), schedule, parametrisation)
    few = sampler.with_steps(5)
    through_network = few(Conditioned(network), (2,), noise=noise, ids=ids, dtype=F64)
    assert torch.allclose(
        through_network, few(exact, (2,), noise=noise, ids=ids, dtype=F64), rtol=0, atol=2e-5
    )


@pytest.mark.parametrize("sampler", SAMPLERS, ids=name)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_mixture_to_one_percent(schedule: Schedule, sampler: Sampler) -> None:
    denoiser = MixtureDenoiser(
        torch.tensor([0.3, 0.7]), torch.tensor([[-1.2], [0.6]]), torch.tensor([0.2, 0.35]), schedule
    )
    count = 2_000 if sampler in ODE_SAMPLERS else 16_000
    x = sampler(denoiser, (1,), noise=StratifiedNoise(5), ids=range(count), dtype=F64)[:, 0]
    mean, covariance = (moment.squeeze() for moment in denoiser.moments())
    std = covariance.sqrt()
    assert float((x.mean() - mean).abs() / std) < 0.01
    assert float((x.std() / std - 1).abs()) < 0.01
    assert float(((x < -0.4).to(F64).mean() - 0.3).abs()) < 0.01


@pytest.mark.parametrize("grid", GRIDS, ids=name)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_grids_start_at_noise_and_decrease(
    schedule: Schedule, grid: UniformGrid | LogSNRGrid | KarrasGrid
) -> None:
    for steps in (1, 2, 17):
        times = grid(schedule, steps)
        assert len(times) == steps
        assert float(times[0]) == 1.0
        assert bool((times.diff() < 0).all())
        assert float(times[-1]) >= 0
        assert float(schedule.sigma(times[-1])) > 0  # the clean state itself is never a call


def flow_end(denoiser: GaussianDenoiser, sampler: Sampler, z: Tensor) -> Tensor:
    """Where the probability-flow ODE takes the sampler's start, solved in closed form, and the estimate there."""
    schedule = denoiser.schedule
    times = sampler.grid(schedule, sampler.steps)
    first, last = level_at(schedule, float(times[0])), level_at(schedule, float(times[-1]))
    y = z + first.a * denoiser(first.norm * z, torch.ones(len(z), dtype=F64))
    axes, variances = denoiser.axes, denoiser.variances
    stretch = ((last.a**2 * variances + last.s**2) / (first.a**2 * variances + first.s**2)).sqrt()
    y = last.a * denoiser.mean + ((y - first.a * denoiser.mean) @ axes * stretch) @ axes.T
    return denoiser(last.norm * y, times[-1].expand(len(z)))


WHOLE = LogSNRGrid(
    -10.0, 4.0
)  # from the schedule's own noisy end: steps shrink everywhere as their number grows


@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (DDIM(grid=WHOLE), 1),
        (Euler(grid=WHOLE), 1),
        (Heun(grid=WHOLE), 2),
        (DPMSolverPP2M(grid=WHOLE), 2),
        (DPMSolverPP2MSDE(grid=WHOLE, eta=0.0), 2),
        (ReverseSDE(grid=WHOLE, eta=0.0), 2),
    ],
    ids=name,
)
@pytest.mark.parametrize("schedule", [VPSchedule(), EDMSchedule()], ids=name)
def test_order_of_convergence(schedule: Schedule, sampler: Sampler, order: int) -> None:
    check_order(schedule, sampler, order)


@pytest.mark.parametrize(
    ("sampler", "order"),
    [(DDIM(grid=UniformGrid()), 1), (Euler(grid=UniformGrid()), 1), (Heun(grid=UniformGrid()), 2)],
    ids=name,
)
@pytest.mark.parametrize("schedule", [CosineSchedule(), RectifiedSchedule()], ids=name)
def test_order_of_convergence_where_alpha_vanishes(schedule: Schedule, sampler: Sampler, order: int) -> None:
    check_order(schedule, sampler, order)


def check_order(schedule: Schedule, sampler: Sampler, order: int) -> None:
    denoiser, ids, noise = GaussianDenoiser(MEAN, COVARIANCE, schedule), range(16), NoiseSource(3)
    z = noise.normal(ids, (2,), stream="start", dtype=F64)
    errors = []
    for steps in (64, 128):
        finer = sampler.with_steps(steps)
        x = finer(denoiser, (2,), noise=noise, ids=ids, dtype=F64)
        errors.append(float((x - flow_end(denoiser, finer, z)).square().mean().sqrt()))
    measured = math.log2(errors[0] / errors[1])
    assert order - 0.1 < measured < order + 0.2, (errors, measured)


@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (DDPM(grid=WHOLE), 1),
        (DDIM(grid=WHOLE, eta=1.0), 1),
        (ReverseSDE(grid=WHOLE), 2),
        (ReverseSDE(grid=WHOLE, eta=0.5), 2),
    ],
    ids=name,
)
def test_weak_order_of_stochastic_samplers(sampler: Sampler, order: int) -> None:
    """Order of the error of mean and covariance, both exact here."""
    schedule = EDMSchedule()
    denoiser = GaussianDenoiser(MEAN, COVARIANCE, schedule)
    t = sampler.grid(schedule, 2)[-1:]
    # What is sampled exactly would still be the estimate at the last level, slightly narrower than the data.
    gain = denoiser.variances / (denoiser.variances + schedule.sigma(t) ** 2)
    target = denoiser.axes @ torch.diag(gain * denoiser.variances) @ denoiser.axes.T
    errors = []
    for steps in (48, 96):
        mean, covariance = exact_moments(sampler.with_steps(steps), denoiser, steps)
        errors.append(float((covariance - target).norm() + (mean - MEAN).norm()))
    measured = math.log2(errors[0] / errors[1])
    assert order - 0.2 < measured < order + 0.5, (errors, measured)


@pytest.mark.parametrize("sampler", [DDPM(), Euler(), Heun(), ReverseSDE(), ReverseSDE(eta=2.0)], ids=name)
@pytest.mark.parametrize("steps", [2, 5, 50])
def test_latents_of_unit_variance_are_exact_but_for_the_last_estimate(sampler: Sampler, steps: int) -> None:
    few, schedule = sampler.with_steps(steps), CosineSchedule()
    denoiser = GaussianDenoiser(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64), schedule)
    mean, covariance = exact_moments(few, denoiser, steps)
    # E[x | x_t] = a y there, and a = 1 - 2e-5 at the grid's last level
    last = level_at(schedule, float(few.grid(schedule, steps)[-1])).a
    assert torch.allclose(covariance, last**2 * torch.eye(2, dtype=F64), atol=1e-12)
    assert torch.allclose(mean, torch.zeros(2, dtype=F64), atol=1e-12)


@pytest.mark.parametrize("sampler", [*SAMPLERS, Euler(churn=20.0), Heun(churn=20.0), DDIM(eta=0.7)], ids=name)
def test_a_sample_does_not_depend_on_its_batch(sampler: Sampler) -> None:
    few = sampler.with_steps(6)
    denoiser = MixtureDenoiser(
        torch.tensor([0.3, 0.7]),
        torch.tensor([[-1.2, 0.0], [0.6, 1.0]]),
        torch.tensor([0.2, 0.35]),
        EDMSchedule(),
    )
    together = few(denoiser, (2,), noise=NoiseSource(1), ids=[5, 0, 9], dtype=F64)
    alone = torch.cat([few(denoiser, (2,), noise=NoiseSource(1), ids=[i], dtype=F64) for i in (0, 9, 5)])
    assert torch.allclose(together[[1, 2, 0]], alone, rtol=0, atol=1e-11)


@pytest.mark.parametrize("churn", [5.0, 40.0])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=name)
def test_churn_keeps_the_distribution(schedule: Schedule, churn: float) -> None:
    sampler = Heun(steps=96, churn=churn)
    mean, covariance = exact_moments(sampler, GaussianDenoiser(MEAN, COVARIANCE, schedule), sampler.steps)
    assert float(((mean - MEAN).abs() / COVARIANCE.diagonal().sqrt()).max()) < 0.01
    assert float((covariance.diagonal() / COVARIANCE.diagonal() - 1).abs().max()) < 0.02
    assert not torch.allclose(
        covariance, exact_moments(Heun(steps=96), GaussianDenoiser(MEAN, COVARIANCE, schedule), 1)[1]
    )


@pytest.mark.parametrize(
    "sampler", [Euler(temperature=0.5), DDPM(temperature=0.5), ReverseSDE(temperature=0.5)], ids=name
)
def test_temperature_scales_the_spread(sampler: Sampler) -> None:
    denoiser = GaussianDenoiser(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64), VPSchedule())
    _, covariance = exact_moments(sampler, denoiser, sampler.steps)
    # UnitNoise is scaled too, since the sampler multiplies what it draws.
    assert torch.allclose(covariance.diagonal().sqrt(), torch.full((2,), 0.5, dtype=F64), rtol=1e-3)


def test_ddpm_variance_is_exact_for_the_spread_it_is_told() -> None:
    schedule, std = CosineSchedule(), 0.3
    denoiser = GaussianDenoiser(MEAN, std**2 * torch.eye(2, dtype=F64), schedule)
    told = exact_moments(DDPM(steps=20, data_std=std), denoiser, 20)[1].diagonal().sqrt()
    small = exact_moments(DDPM(steps=20, data_std=0.0), denoiser, 20)[1].diagonal().sqrt()
    assert torch.allclose(told, torch.full((2,), std, dtype=F64), rtol=2e-3)
    assert float(small.max()) < 0.9 * std  # the usual formula: 20 steps lose more than 10 % of the spread


def test_levels_are_exact_at_both_ends() -> None:
    assert (level_at(CosineSchedule(), 1.0).a, level_at(RectifiedSchedule(), 1.0).s) == (0.0, 1.0)
    assert level_at(RectifiedSchedule(), 0.0) == CLEAN


def test_callback_hears_every_step_and_the_sample_last() -> None:
    denoiser = GaussianDenoiser(MEAN, COVARIANCE, EDMSchedule())
    for sampler in (
        DDPM(steps=4),
        DDIM(steps=4),
        Euler(steps=4),
        Heun(steps=4),
        DPMSolverPP2M(steps=4),
        ReverseSDE(steps=4),
    ):
        heard: list[tuple[int, int, Tensor]] = []
        x = sampler(
            denoiser,
            (2,),
            noise=NoiseSource(0),
            ids=[0],
            callback=lambda i, n, x0, heard=heard: heard.append((i, n, x0)),
        )
        assert [(i, n) for i, n, _ in heard] == [(1, 4), (2, 4), (3, 4), (4, 4)]
        assert torch.equal(heard[-1][2], x)


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1 step"):
        Heun(steps=0)
    with pytest.raises(ConfigError, match="temperature"):
        DDPM(temperature=-1.0)
    with pytest.raises(ConfigError, match="eta"):
        DDIM(eta=1.5)
    with pytest.raises(ConfigError, match="misses the schedule"):
        LogSNRGrid(8.0, 9.0)(EDMSchedule(), 10)
