"""Solvers one call at a time: closed forms and stationarity."""

import math

import pytest
import torch
from torch import Tensor

from sciLDM.denoiser import Denoiser
from sciLDM.guidance.posterior import (
    DPS,
    PSLD,
    DataMap,
    DecodeEncode,
    DenseGaussian,
    GaussNewton,
    IdentityMap,
    Isotropic,
    Problem,
    Tweedie,
)
from sciLDM.operators import GaussianNoise, LinearOperator, Observation
from sciLDM.oracles import GaussianDenoiser
from tests.posterior.problems import F64, SCHEDULE, Matrix, Sinh, Squares, normal, prior, problem, times


def test_an_observation_becomes_weights() -> None:
    values = torch.tensor([[[1.0, float("nan"), 3.0]], [[5.0, 5.0, 5.0]]])
    observation = Observation(values, Matrix(torch.eye(3)), GaussianNoise(torch.tensor([0.5, 0.5, 0.0])))
    given = Problem.from_observation(observation, IdentityMap(), repeat=2)
    assert torch.equal(given.values[:2], torch.tensor([[[1.0, 0.0, 3.0]]]).expand(2, 1, 3))
    # noise-free values get 1e-4 of the spread (1 about the mean of 2), or of the size where there is no spread
    assert torch.allclose(given.weights[:, 0, 2], torch.tensor([1e4, 1e4, 2e3, 2e3]), rtol=1e-4)
    assert torch.equal(
        given.weights[:, 0, :2], torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 2.0], [2.0, 2.0]])
    )
    assert given.count.tolist() == [2, 2, 3, 3]
    off = torch.tensor([[[1.5, 77.0, 3.0]]]).expand(4, 1, 3)
    assert given.chi2(off)[:2].tolist() == pytest.approx([0.5, 0.5])


def test_tweedie_is_the_covariance_of_the_estimate() -> None:
    denoiser, z_t, t = prior(5), normal(3, 1, 5), times(-2.0, 0.0, 3.0)
    estimate, apply = Tweedie().estimate(denoiser, z_t, t, DecodeEncode(denoiser, problem(5)).evaluations)
    covariance = denoiser.axes @ torch.diag(denoiser.variances) @ denoiser.axes.mT
    _, apply_gaussian = DenseGaussian(covariance).estimate(
        denoiser, z_t, t, GaussNewton(denoiser, problem(5)).evaluations
    )
    for row, ratio in enumerate((math.exp(-2.0), 1.0, math.exp(3.0))):
        exact = torch.linalg.inv(torch.linalg.inv(covariance) + ratio**2 * torch.eye(5, dtype=F64))
        v = normal(3, 1, 5, seed=8)
        assert torch.allclose(apply(v)[row, 0], exact @ v[row, 0], atol=1e-10)
        assert torch.allclose(apply_gaussian(v)[row, 0], exact @ v[row, 0], atol=1e-10)
    assert torch.equal(estimate, denoiser(z_t, t))


def test_the_state_at_pure_noise_is_read_at_a_level_where_it_tells_something() -> None:
    """`alpha(1) = 0`: the estimate is `E[z | y]`, and finite."""
    denoiser, given = prior(6), problem()
    guided = GaussNewton(denoiser, given, tolerance=1e-8)(normal(3, 1, 6), torch.ones(3, dtype=F64))
    matrix, precision = (
        given.operator.matrix,
        torch.linalg.inv(denoiser.axes @ torch.diag(denoiser.variances) @ denoiser.axes.mT),
    )
    normal_matrix = precision + 25.0 * matrix.mT @ matrix
    exact = torch.linalg.solve(
        normal_matrix, (precision @ denoiser.mean)[:, None] + 25.0 * matrix.mT @ given.values[:, 0].mT
    )
    assert torch.allclose(
        guided[:, 0], exact.mT, atol=0.1
    )  # 5 % of the prior's spread, times the noise in the state


@pytest.mark.parametrize("covariance", [Isotropic(), Tweedie()], ids=["isotropic", "tweedie"])
def test_gauss_newton_reaches_the_minimum_of_a_nonlinear_problem(covariance: Isotropic | Tweedie) -> None:
    """At the minimum of `|w (y - H(z))|^2 + |z - D|_V^2`: `z = D + V J^T w (y - H(z))`."""
    denoiser, t, z_t = prior(5), times(0.5, 1.0, 1.5), normal(3, 1, 5)
    truth = 0.3 * normal(3, 1, 5, seed=9)
    operator = Squares(5)
    given = Problem(Sinh(), operator, operator(torch.sinh(truth)), torch.full((3, 1, 5), 5.0, dtype=F64))
    guided = GaussNewton(denoiser, given, covariance=covariance, steps=30, tolerance=1e-10, max_iterations=50)
    z = guided(z_t, t)
    estimate, apply = covariance.estimate(denoiser, z_t, t, guided.evaluations)
    _, pull = torch.func.vjp(given.whitened, z)
    assert torch.allclose(z, estimate + apply(pull(given.target - given.whitened(z))[0]), atol=1e-6)
    once = GaussNewton(denoiser, given, covariance=covariance, tolerance=1e-10)(z_t, t)
    assert not torch.allclose(once, z, atol=1e-3)


def test_decode_encode_is_exact_for_a_standard_normal_field() -> None:
    """`N(0, I)` observed at some points: `r^2 / (r^2 + s^2)` of the misfit goes to those points, nothing elsewhere."""
    size, std = 4000, 0.3
    denoiser = GaussianDenoiser(torch.zeros(8), torch.eye(8), SCHEDULE)

    class Rows(Denoiser):
        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            return denoiser(x_t.reshape(-1, 8), t.repeat_interleave(size // 8)).reshape(x_t.shape)

    class Half(LinearOperator):
        def forward(self, x: Tensor) -> Tensor:
            return x[..., ::2]

        def adjoint(self, y: Tensor) -> Tensor:
            return torch.stack([y, torch.zeros_like(y)], dim=-1).flatten(-2)

    values = normal(2, 1, size // 2, seed=3)
    given = Problem(IdentityMap(), Half((1, size), (1, size // 2)), values, torch.full_like(values, 1 / std))
    z_t, t = normal(2, 1, size), times(-1.0, 1.0)
    alpha, sigma = (c[:, None, None] for c in SCHEDULE(t))
    expected = alpha * z_t
    gain = sigma**2 / (sigma**2 + std**2)
    expected[..., ::2] += gain * (values - expected[..., ::2])
    found = DecodeEncode(Rows(SCHEDULE), given, tolerance=1e-8)(z_t, t)
    assert torch.allclose(found[..., 1::2], (alpha * z_t)[..., 1::2], rtol=0, atol=1e-12)
    assert (
        float((found - expected).norm() / (expected - alpha * z_t).norm()) < 0.03
    )  # the probe's own scatter


def test_decode_encode_leaves_no_trace_of_the_autoencoder_where_data_are_met() -> None:
    class Lossy(DataMap):
        def decode(self, z: Tensor) -> Tensor:
            return 2 * z + 0.3

        def encode(self, x: Tensor) -> Tensor:
            return 0.4 * x

    denoiser, z_t, t = prior(6), normal(3, 1, 6), times(-1.0, 0.0, 2.0)
    estimate, operator = denoiser(z_t, t), Matrix(normal(4, 6, seed=4))
    values = operator(2 * estimate + 0.3)
    given = Problem(Lossy(), operator, values, torch.full_like(values, 5.0))
    assert torch.allclose(DecodeEncode(denoiser, given)(z_t, t), estimate, atol=1e-12)


def test_decode_encode_gives_each_channel_its_own_width() -> None:
    """Kelvin beside kilopascal: the estimate does not depend on the units of a channel."""

    class Units(DataMap):
        def __init__(self, second: float) -> None:
            super().__init__()
            self.register_buffer("scale", torch.tensor([1.0, second], dtype=F64)[:, None])

        def decode(self, z: Tensor) -> Tensor:
            return self.scale * z

        def encode(self, x: Tensor) -> Tensor:
            return x / self.scale

    class All(LinearOperator):
        def forward(self, x: Tensor) -> Tensor:
            return x

        def adjoint(self, y: Tensor) -> Tensor:
            return y

    denoiser, z_t, t = prior(6), normal(2, 2, 3), times(0.0, 1.0)
    found = []
    for second in (1.0, 1e4):
        scale = torch.tensor([1.0, second], dtype=F64)[:, None]
        values = scale * normal(2, 2, 3, seed=3)
        weights = (5.0 / scale).expand_as(values).contiguous()
        given = Problem(Units(second), All((2, 3), (2, 3)), values, weights)
        found.append(DecodeEncode(denoiser, given, tolerance=1e-10)(z_t, t))
    assert torch.allclose(found[0], found[1], atol=1e-8)


def test_dps_is_the_gradient_of_each_samples_own_norm() -> None:
    """For a Gaussian prior `D = const + G z_t` and `G = alpha V / sigma^2`: `z = D + zeta V A^T r / |r|`."""
    denoiser, given, z_t, t = prior(6), problem(), normal(3, 1, 6), times(-1.0, 0.0, 2.0)
    estimate, apply = Tweedie().estimate(denoiser, z_t, t, GaussNewton(denoiser, given).evaluations)
    residual = given.values - given.operator(estimate)
    uphill = residual @ given.operator.matrix
    exact = estimate + 0.3 * apply(uphill) / residual.flatten(1).norm(dim=1)[:, None, None]
    assert torch.allclose(DPS(denoiser, given, zeta=0.3)(z_t, t), exact, atol=1e-10)
    assert torch.allclose(PSLD(denoiser, given, zeta=0.3, gamma=0.0)(z_t, t), exact, atol=1e-10)


def test_gluing_pulls_towards_a_latent_that_fits() -> None:
    denoiser, given, z_t, t = prior(6), problem(observed=1), normal(3, 1, 6), times(0.0, 0.0, 0.0)
    plain = denoiser(z_t, t)
    glued = PSLD(denoiser, given, zeta=0.0, gamma=0.2)(z_t, t)
    assert bool((given.chi2(glued) < given.chi2(plain)).all())
