"""The default reconstruction on problems whose posterior is known, without Monte-Carlo error.

Prior `N(m, C)` with the exact denoiser, `y = A W z + noise`: the posterior is Gaussian, and a deterministic sampler of
a linear denoiser is an affine map of its starting noise. One run with the unit vectors as noise gives mean and
covariance of what it samples. "Any direction" is the worst ratio of standard deviations over all of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from sciLDM.guidance.posterior import (
    DataMap,
    DecodeEncodeSolver,
    DenseGaussian,
    DPSSolver,
    GaussNewton,
    GaussNewtonSolver,
    HybridSolver,
    IdentityMap,
    Isotropic,
    PosteriorSolver,
    Problem,
    PSLDSolver,
    Tweedie,
)
from sciLDM.guidance.posterior.solver import Evaluations
from sciLDM.operators import LinearOperator
from sciLDM.oracles import GaussianDenoiser
from sciLDM.posterior.sampling import default_sampler
from sciLDM.rng import NoiseSource
from sciLDM.schedules import CosineSchedule, EDMSchedule, RectifiedSchedule, Schedule, VESchedule, VPSchedule

F64 = torch.float64


class Matrix(LinearOperator):
    """`x -> A x` on fields `[1, n]`."""

    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__((1, matrix.shape[1]), (1, matrix.shape[0]))
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.to(x).mT

    def adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix.to(y)


class LinearMap(DataMap):
    """`decode(z) = W z`, `encode` its pseudo-inverse."""

    weight: Tensor
    inverse: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("inverse", torch.linalg.pinv(weight))

    def decode(self, z: Tensor) -> Tensor:
        return z @ self.weight.to(z).mT

    def encode(self, x: Tensor) -> Tensor:
        return x @ self.inverse.to(x).mT


class UnitStart(NoiseSource):  # pyright: ignore[reportGeneralTypeIssues]
    """Unit vectors as the start, and nothing for the last sample; no other noise may be asked for."""

    def normal(
        self,
        ids: Sequence[int],
        shape: tuple[int, ...],
        *,
        stream: int | str = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        assert stream == "start"
        return torch.eye(len(ids), dtype=dtype)[:, None, : shape[-1]]


@dataclass
class Case:
    """A problem and its answer."""

    denoiser: GaussianDenoiser
    prior: Tensor
    matrix: Tensor
    data: DataMap
    values: Tensor
    noise: float
    mean: Tensor
    covariance: Tensor

    def problem(self, rows: int, dtype: torch.dtype = F64) -> Problem:
        values = self.values.to(dtype).expand(rows, 1, -1)
        return Problem(self.data, Matrix(self.matrix), values, torch.full_like(values, 1 / self.noise))


def case(
    dim: int,
    observed: int,
    noise: float,
    *,
    rank: int | None = None,
    decoder: bool = False,
    schedule: Schedule | None = None,
    seed: int = 0,
) -> Case:
    """Prior variances from 0.3 to 1.65 along random axes; `A` (and `W`, twice as tall) with normal entries."""
    generator = torch.Generator().manual_seed(1000 * seed + 10 * dim + observed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=F64)

    axes = torch.linalg.qr(normal(dim, dim))[0]
    variances = torch.linspace(-1.2, 0.5, dim, dtype=F64).exp()
    prior, centre = (axes * variances) @ axes.mT, 0.5 * normal(dim)
    width = 2 * dim if decoder else dim
    weight = normal(width, dim) / math.sqrt(dim) if decoder else torch.eye(dim, dtype=F64)
    matrix = normal(observed, width) / math.sqrt(width)
    if rank is not None:
        matrix = normal(observed, rank) @ normal(rank, width) / math.sqrt(rank * width)
    whole = matrix @ weight
    truth = centre + (axes * variances.sqrt()) @ normal(dim)
    values = whole @ truth + noise * normal(observed)
    precision = torch.linalg.inv(prior)
    covariance = torch.linalg.inv(precision + whole.mT @ whole / noise**2)
    mean = covariance @ (precision @ centre + whole.mT @ values / noise**2)
    denoiser = GaussianDenoiser(centre, prior, schedule or CosineSchedule())
    data = LinearMap(weight) if decoder else IdentityMap()
    return Case(denoiser, prior, matrix, data, values, noise, mean, covariance)


@dataclass
class Errors:
    """Worst errors: of the mean in posterior deviations, of the deviations of the components, of any direction's."""

    mean: float
    std: float
    direction: float
    evaluations: Evaluations


def errors(given: Case, solver: PosteriorSolver, dtype: torch.dtype = torch.float32) -> Errors:
    dim = len(given.mean)
    guided = solver.guide(given.denoiser, given.problem(dim + 1, dtype))
    samples = default_sampler()(guided, (1, dim), noise=UnitStart(0), ids=range(dim + 1), dtype=dtype)
    samples = samples.to(F64)[:, 0]
    response = samples[:-1] - samples[-1]
    covariance = response.mT @ response
    exact = given.covariance.diagonal().sqrt()
    whitening = torch.linalg.inv(torch.linalg.cholesky(given.covariance))
    ratios = torch.linalg.eigvalsh(whitening @ covariance @ whitening.mT).clamp(min=0).sqrt()
    return Errors(
        mean=float(((samples[-1] - given.mean) / exact).abs().max()),
        std=float((covariance.diagonal().sqrt() / exact - 1).abs().max()),
        direction=float((ratios - 1).abs().max()),
        evaluations=guided.evaluations,
    )


PROBLEMS = [
    (dim, observed, noise)
    for dim, observed in [(2, 2), (2, 1), (8, 8), (8, 3), (32, 32), (64, 64), (64, 16)]
    for noise in (0.01, 0.1, 1.0)
]


@pytest.mark.parametrize(("dim", "observed", "noise"), PROBLEMS)
def test_default_is_within_three_percent_in_twenty_calls(dim: int, observed: int, noise: float) -> None:
    """In float32, as users run it. Most of the 2 % is the sampler's own, at any noise."""
    found = errors(case(dim, observed, noise), HybridSolver())
    assert found.mean < 0.01
    assert found.std < 0.02
    assert found.direction < 0.03
    assert found.evaluations.denoiser <= 20
    assert found.evaluations.denoiser_vjp <= 100


@pytest.mark.parametrize(
    ("dim", "observed", "noise"), [(2, 1, 0.01), (8, 4, 0.01), (8, 16, 0.1), (64, 32, 0.03)]
)
def test_the_same_through_a_linear_decoder(dim: int, observed: int, noise: float) -> None:
    found = errors(case(dim, observed, noise, decoder=True), HybridSolver())
    assert found.mean < 0.01
    assert found.std < 0.02
    assert found.direction < 0.03
    assert found.evaluations.denoiser <= 20


@pytest.mark.parametrize("noise", [0.03, 1.0])
def test_more_observations_than_rank(noise: float) -> None:
    found = errors(case(16, 48, noise, rank=5), HybridSolver())
    assert max(found.mean, found.std, found.direction) < 0.03


@pytest.mark.parametrize(
    "schedule",
    [VPSchedule(), RectifiedSchedule(), EDMSchedule(), VESchedule()],
    ids=lambda s: type(s).__name__,
)
def test_every_schedule(schedule: Schedule) -> None:
    found = errors(case(8, 5, 0.05, schedule=schedule), HybridSolver())
    assert max(found.mean, found.std, found.direction) < 0.03


@pytest.mark.parametrize(("dim", "observed", "noise"), [(8, 8, 0.01), (64, 16, 0.1)])
def test_a_fitted_gaussian_covariance_needs_no_derivative_of_the_denoiser(
    dim: int, observed: int, noise: float
) -> None:
    given = case(dim, observed, noise)
    latents = given.denoiser.sample(NoiseSource(4), list(range(20_000))).reshape(-1, 1, dim)
    exact = errors(given, GaussNewtonSolver(covariance=DenseGaussian(given.prior)))
    fitted = errors(given, GaussNewtonSolver(covariance=DenseGaussian.fit(latents)))
    assert exact.evaluations.denoiser_vjp == fitted.evaluations.denoiser_vjp == 0
    assert max(exact.mean, exact.std, exact.direction) < 0.03
    assert fitted.std < 0.03
    assert fitted.mean < 0.06  # 20 000 latents leave 1 % of error in every variance


def test_the_fast_hybrid_keeps_to_its_documented_errors() -> None:
    for dim, observed, noise in [(8, 3, 0.1), (64, 16, 0.01)]:
        fast, slow = (
            errors(case(dim, observed, noise), s) for s in (HybridSolver(switch=2.0), HybridSolver())
        )
        assert fast.mean < 0.05
        assert fast.std < 0.09
        assert fast.evaluations.denoiser_vjp < 0.8 * slow.evaluations.denoiser_vjp


def test_a_wrong_covariance_shows() -> None:
    """The measure itself: `V = r^2 I` is wrong for this prior, and the errors say so."""
    assert errors(case(8, 3, 0.1), GaussNewtonSolver(covariance=Isotropic())).mean > 0.3


@pytest.mark.parametrize("covariance", ["tweedie", "gaussian"])
@pytest.mark.parametrize("decoder", [False, True])
def test_the_guided_estimate_is_the_posterior_mean_at_every_level(covariance: str, decoder: bool) -> None:
    """`E[z | z_t, y]`, with `z_t` taken as one more observation of `z`."""
    given = case(6, 4, 0.1, decoder=decoder)
    model = Tweedie() if covariance == "tweedie" else DenseGaussian(given.prior)
    guided = GaussNewton(given.denoiser, given.problem(3), covariance=model, tolerance=1e-9)
    whole = given.matrix @ (
        given.data.weight if isinstance(given.data, LinearMap) else torch.eye(6, dtype=F64)
    )
    precision = torch.linalg.inv(given.prior)
    for lmbda in (-2.9, -1.0, 0.0, 2.0, 5.0):
        t = given.denoiser.schedule.t_of_lmbda(torch.full((3,), lmbda, dtype=F64))
        alpha, sigma = (float(c[0]) for c in given.denoiser.schedule(t))
        z_t = torch.randn(3, 1, 6, dtype=F64, generator=torch.Generator().manual_seed(1))
        exact = torch.linalg.solve(
            precision + (alpha / sigma) ** 2 * torch.eye(6, dtype=F64) + whole.mT @ whole / given.noise**2,
            (
                (precision @ given.denoiser.mean)[:, None]
                + alpha / sigma**2 * z_t[:, 0].mT
                + (whole.mT @ given.values / given.noise**2)[:, None]
            ),
        ).mT
        assert torch.allclose(guided(z_t, t)[:, 0], exact, rtol=0, atol=1e-6)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    given, noise, ids = case(6, 4, 0.03, decoder=True), NoiseSource(2), [4, 0, 7]
    sampler = default_sampler(8)

    def samples(solver: PosteriorSolver, wanted: list[int]) -> Tensor:
        guided = solver.guide(given.denoiser, given.problem(len(wanted)))
        return sampler(guided, (1, 6), noise=noise, ids=wanted, dtype=F64)

    for solver in (HybridSolver(), HybridSolver(switch=1.0), DecodeEncodeSolver(), DPSSolver(), PSLDSolver()):
        alone = torch.cat([samples(solver, [i]) for i in ids])
        assert torch.allclose(samples(solver, ids), alone, rtol=0, atol=1e-9)


def test_samples_scatter_as_their_covariance_says() -> None:
    """Monte Carlo, through ordinary noise: nothing hangs on the unit vectors."""
    given = case(4, 2, 0.1)
    guided = HybridSolver().guide(given.denoiser, given.problem(4000, torch.float32))
    samples = default_sampler()(guided, (1, 4), noise=NoiseSource(0), ids=range(4000))[:, 0].to(F64)
    std = given.covariance.diagonal().sqrt()
    assert float(((samples.mean(0) - given.mean) / std).abs().max()) < 4 / math.sqrt(4000)
    assert float((samples.std(0) / std - 1).abs().max()) < 0.016 + 3 / math.sqrt(8000)
