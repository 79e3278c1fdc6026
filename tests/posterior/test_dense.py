"""The Jacobian written out, and errors of the autoencoder with a measured correlation: closed forms."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sciLDM.errors import DataError
from sciLDM.guidance.posterior import DataMap, DenseGaussian, GaussNewton, Problem
from sciLDM.guidance.posterior.dense import DenseGaussNewton, DenseGaussNewtonSolver
from sciLDM.operators import LinearOperator, Operator
from sciLDM.oracles import GaussianDenoiser
from sciLDM.posterior.error_model import AutoencoderError
from sciLDM.posterior.reconstruct import Settings, reconstruct
from sciLDM.rng import NoiseSource
from sciLDM.schedules import CosineSchedule
from tests.posterior.linear import DIM, POINTS, Exact, MatrixOperator, picking

F64 = torch.float64
SCHEDULE = CosineSchedule()
NOISE = NoiseSource(21)


def normal(*shape: int, stream: str) -> Tensor:
    return NOISE.normal([0], shape, stream=stream, dtype=F64)[0]


class Matrix(LinearOperator):
    """`x -> A x` on fields `[1, n]`."""

    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__((1, matrix.shape[1]), (1, matrix.shape[0]))
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix.mT

    def adjoint(self, y: Tensor) -> Tensor:
        return y @ self.matrix


class Cubes(Operator):
    """`x -> x + 0.1 x^3`, point by point."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * x**3


class Decoder(DataMap):
    """`scale W z` with a scale for each row (or one for all); counts its calls."""

    def __init__(self, scales: Tensor) -> None:
        super().__init__()
        self.scales, self.weight, self.calls = scales.view(-1, 1, 1), normal(9, 6, stream="decoder"), 0

    def decode(self, z: Tensor) -> Tensor:
        self.calls += 1
        return self.scales * (z @ self.weight.mT)

    def encode(self, x: Tensor) -> Tensor:
        return (x / self.scales) @ torch.linalg.pinv(self.weight).mT


def prior() -> GaussianDenoiser:
    factor = normal(6, 6, stream="prior") / 6**0.5
    return GaussianDenoiser(
        torch.zeros(6, dtype=F64), factor @ factor.mT + 0.2 * torch.eye(6, dtype=F64), SCHEDULE
    )


def gaussian(denoiser: GaussianDenoiser) -> DenseGaussian:
    return DenseGaussian((denoiser.axes * denoiser.variances) @ denoiser.axes.mT)


def problem(scales: tuple[float, ...] = (1.0,), observed: int = 4) -> Problem:
    """Two cases of three rows each, the second with a missing value."""
    values = torch.stack([normal(1, observed, stream=f"values {k}") for k in (0, 0, 0, 1, 1, 1)])
    weights = torch.full_like(values, 5.0)
    values[3:, :, 1], weights[3:, :, 1] = 0.0, 0.0
    return Problem(
        Decoder(torch.tensor(scales, dtype=F64)),
        Matrix(normal(observed, 9, stream="operator")),
        values,
        weights,
    )


@pytest.mark.parametrize(
    "scales", [(1.0,), (1.0, 1.0, 1.0, 3.0, 3.0, 3.0)], ids=["one decoder", "one for each case"]
)
def test_it_is_the_step_that_conjugate_gradients_converge_to(scales: tuple[float, ...]) -> None:
    denoiser, given = prior(), problem(scales)
    dense = DenseGaussNewton(denoiser, given, covariance=gaussian(denoiser))
    exact = GaussNewton(denoiser, given, covariance=gaussian(denoiser), tolerance=1e-12, max_iterations=60)
    z_t = torch.stack([normal(1, 6, stream=f"state {k}") for k in range(6)])
    for ratio in (-2.0, 0.0, 3.0):
        t = SCHEDULE.t_of_lmbda(torch.full((6,), ratio, dtype=F64))
        assert torch.allclose(dense(z_t, t), exact(z_t, t), atol=1e-9)
    assert dense.evaluations.denoiser == 3
    assert dense.evaluations.decoder_derivatives == 0


def test_a_decoder_is_looked_at_once_and_another_one_again() -> None:
    denoiser, given = prior(), problem()
    solver = DenseGaussNewtonSolver(gaussian(denoiser))
    z_t = torch.stack([normal(1, 6, stream=f"state {k}") for k in range(6)])
    t = SCHEDULE.t_of_lmbda(torch.zeros(6, dtype=F64))
    first, calls = solver.guide(denoiser, given)(z_t, t), given.data.calls
    again = solver.guide(denoiser, given)(z_t, t)
    assert torch.allclose(first, again, atol=1e-12)
    assert given.data.calls - calls < calls
    other = replace(given, data=Decoder(torch.tensor([2.0], dtype=F64)))
    fresh = DenseGaussNewton(denoiser, other, covariance=gaussian(denoiser))
    assert torch.allclose(solver.guide(denoiser, other)(z_t, t), fresh(z_t, t), atol=1e-12)


def test_rows_do_not_know_of_each_other() -> None:
    denoiser, given = prior(), problem()
    z_t = torch.stack([normal(1, 6, stream=f"state {k}") for k in range(6)])
    t = SCHEDULE.t_of_lmbda(torch.linspace(-3, 4, 6, dtype=F64))
    together = DenseGaussNewton(denoiser, given, covariance=gaussian(denoiser))(z_t, t)
    for k in range(6):
        own = replace(given, values=given.values[k : k + 1], weights=given.weights[k : k + 1])
        alone = DenseGaussNewton(denoiser, own, covariance=gaussian(denoiser))(z_t[k : k + 1], t[k : k + 1])
        assert torch.allclose(alone[0], together[k], atol=1e-10)


def test_correlated_noise_is_whitened() -> None:
    """Next to no information in the state: the prior's mean given data with a full noise covariance."""
    denoiser, given = prior(), problem()
    given = replace(given, values=given.values[:3], weights=given.weights[:3])
    factor = normal(4, 4, stream="noise") / 2
    noise = factor @ factor.mT + 0.5 * torch.eye(4, dtype=F64)
    std = noise.diagonal().sqrt()
    correlation = noise / std / std[:, None]
    whitener = torch.linalg.inv(torch.linalg.cholesky(correlation)).expand(3, 4, 4)
    given = replace(given, weights=(1 / std).expand(3, 1, 4), whitener=whitener)
    t = SCHEDULE.t_of_lmbda(torch.full((3,), -2.9, dtype=F64))
    alpha, sigma = (float(c[0]) for c in SCHEDULE(t))
    z_t = torch.zeros(3, 1, 6, dtype=F64)
    covariance = gaussian(denoiser)
    a = given.operator.matrix @ given.data.weight
    prior_covariance = (covariance.axes * covariance.variances) @ covariance.axes.mT
    precision = torch.linalg.inv(prior_covariance) + (alpha / sigma) ** 2 * torch.eye(6, dtype=F64)
    precision = precision + a.mT @ torch.linalg.inv(noise) @ a
    exact = torch.linalg.solve(precision, a.mT @ torch.linalg.solve(noise, given.values[0, 0]))
    found = DenseGaussNewton(denoiser, given, covariance=covariance)(z_t, t)
    assert torch.allclose(found[0, 0], exact, atol=1e-9)


def test_an_operator_that_bends_is_straightened_at_the_centre() -> None:
    denoiser, given = prior(), problem()
    operator = Cubes((1, 9), (1, 9))
    values = 0.01 * torch.stack([normal(1, 9, stream=f"long {k}") for k in range(6)])
    given = Problem(given.data, operator, values, torch.full_like(values, 2.0))
    straight = replace(given, operator=Matrix(torch.eye(9, dtype=F64)))
    t = SCHEDULE.t_of_lmbda(torch.full((6,), -2.0, dtype=F64))
    z_t = torch.zeros(6, 1, 6, dtype=F64)
    bent, flat = (
        DenseGaussNewton(denoiser, p, covariance=gaussian(denoiser))(z_t, t) for p in (given, straight)
    )
    assert torch.allclose(bent, flat, rtol=1e-3, atol=1e-6)


def test_correlation_is_measured_and_drawn() -> None:
    """Errors on the last two axes correlate as they did where they were measured; blocks before them do not."""
    factor = normal(12, 12, stream="errors") / 12**0.5 + 0.3 * torch.eye(12, dtype=F64)
    truth = factor @ factor.mT
    std = truth.diagonal().sqrt()
    correlation = truth / std / std[:, None]
    drawn = NOISE.normal(range(4000), (2, 12), stream="draws", dtype=F64) @ factor.mT
    pairs = [(part.view(-1, 1, 2, 3, 4), torch.zeros(len(part), 1, 2, 3, 4)) for part in drawn.split(500)]
    model = AutoencoderError(1, (2, 3, 4))
    model.measure_correlation(pairs, most=12)
    assert float((model.root[0] @ model.root[0].mT - correlation).abs().max()) < 0.05
    covariance = model.covariance(2 * torch.ones(3000, 1, 2, 3, 4))
    errors = covariance.draw(NOISE.normal(range(3000), (1, 2, 3, 4), stream="again")).flatten(1).double()
    found = torch.cov(errors.mT) / 4
    assert float((found[:12, :12] - correlation).abs().max()) < 0.1
    assert float(found[:12, 12:].abs().max()) < 0.1
    v = NOISE.normal(range(3000), (1, 2, 3, 4), stream="vector")
    applied = covariance(v).flatten(1).double()
    blocks = v.view(3000, 2, 12).double() @ (4 * correlation)
    assert float((applied - blocks.flatten(1)).norm() / blocks.norm()) < 0.1


def test_large_grids_keep_no_dense_correlation() -> None:
    model = AutoencoderError(1, (32, 32))
    model.measure_correlation([(torch.ones(2, 1, 40, 40), torch.zeros(2, 1, 40, 40))], most=100)
    assert len(model.root) == 0
    assert "root" not in model.state_dict()
    with pytest.raises(DataError, match="no fields"):
        model.measure_correlation([])


def test_a_reconstruction_with_correlated_errors_has_the_exact_mean_and_spread() -> None:
    """`x = W z + e`, neighbouring `e` correlated by 0.8, few points seen: both stages must know of it."""
    exact = Exact(error=0.3)
    place = torch.arange(POINTS, dtype=F64)
    correlation = 0.8 ** (place - place[:, None]).abs()
    exact.error.register_buffer("root", torch.linalg.cholesky(correlation).float()[None])
    operator = picking(0, 3, 4, 9)
    scale, std = 2.0, 0.1
    mean, covariance = exact.moments(scale)
    independent = scale**2 * 0.3 * torch.eye(POINTS, dtype=F64)
    covariance = covariance - independent + scale**2 * 0.3 * correlation
    a = operator.matrix.double()
    y = (a @ mean + torch.linalg.cholesky(a @ covariance @ a.mT) @ normal(4, stream="observed")).float()[None]
    gain = covariance @ a.mT @ torch.linalg.inv(a @ covariance @ a.mT + std**2 * torch.eye(4, dtype=F64))
    expected = mean + gain @ (y[0].double() - a @ mean)
    deviation = (covariance - gain @ a @ covariance).diagonal().sqrt()
    solver = DenseGaussNewtonSolver(DenseGaussian(exact.covariance))
    task = exact.task(operator, y, std, [scale])
    got = reconstruct(task, exact.prior, Settings(samples=1500, batch_size=500, solver=solver))
    assert float(((got.mean[0, 0] - expected) / deviation).abs().max()) < 0.1
    assert float((got.std[0, 0] / deviation - 1).abs().max()) < 0.08
    assert isinstance(operator, MatrixOperator)
    assert exact.covariance.shape == (DIM, DIM)
