"""Solvers one call at a time: closed forms, stationarity, what must not matter, what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sciLDM.denoiser import Denoiser, NetDenoiser
from sciLDM.errors import ConfigError, DataError, ShapeMismatch
from sciLDM.guidance import Conditioned
from sciLDM.guidance.posterior import (
    DPS,
    PSLD,
    DataMap,
    DecodeEncode,
    DenseGaussian,
    GaussNewton,
    Hybrid,
    IdentityMap,
    Isotropic,
    PosteriorDenoiser,
    Problem,
    Replacement,
    ReplacementSolver,
    Tweedie,
)
from sciLDM.guidance.posterior.whitening import Whitening
from sciLDM.operators import GaussianNoise, LinearOperator, Observation, Operator
from sciLDM.oracles import GaussianDenoiser
from sciLDM.parametrisation import X0
from sciLDM.posterior.sampling import default_sampler
from sciLDM.rng import NoiseSource
from sciLDM.schedules import CosineSchedule

F64 = torch.float64
SCHEDULE = CosineSchedule()


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


class Squares(Operator):
    """`x -> x^2 + x`, point by point."""

    def __init__(self, size: int) -> None:
        super().__init__((1, size), (1, size))

    def forward(self, x: Tensor) -> Tensor:
        return x**2 + x


class Sinh(DataMap):
    """A decoder that bends; exactly invertible."""

    def decode(self, z: Tensor) -> Tensor:
        return torch.sinh(z)

    def encode(self, x: Tensor) -> Tensor:
        return torch.asinh(x)


class Attention(DataMap):
    """A decoder with fused attention, which has no forward-mode derivative of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(4, 12)

    def decode(self, z: Tensor) -> Tensor:
        q, k, v = (part[:, None] for part in self.project(z.mT).chunk(3, dim=-1))
        return z + 0.3 * F.scaled_dot_product_attention(q, k, v)[:, 0].mT

    def encode(self, x: Tensor) -> Tensor:
        return x


class Pointwise(Operator):
    """Every second point of a field `[4, 6]`."""

    def __init__(self) -> None:
        super().__init__((4, 6), (4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, ::2]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def prior(dim: int, seed: int = 5) -> GaussianDenoiser:
    factor = normal(dim, dim, seed=seed) / math.sqrt(dim)
    return GaussianDenoiser(
        normal(dim, seed=seed + 1), factor @ factor.mT + 0.2 * torch.eye(dim, dtype=F64), SCHEDULE
    )


def problem(
    dim: int = 6, observed: int = 4, *, rows: int = 3, data: DataMap | None = None, std: float = 0.2
) -> Problem:
    values = normal(rows, 1, observed, seed=3)
    return Problem(
        data or IdentityMap(), Matrix(normal(observed, dim, seed=4)), values, torch.full_like(values, 1 / std)
    )


def times(*lmbda: float, dtype: torch.dtype = F64) -> Tensor:
    return SCHEDULE.t_of_lmbda(torch.tensor(lmbda, dtype=dtype))


def every(denoiser: Denoiser, given: Problem) -> list[PosteriorDenoiser]:
    return [
        GaussNewton(denoiser, given),
        GaussNewton(denoiser, given, covariance=Isotropic(), steps=2),
        DecodeEncode(denoiser, given),
        Hybrid(denoiser, given, switch=1.0),
        DPS(denoiser, given, zeta=0.3),
        PSLD(denoiser, given, zeta=0.3),
    ]


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


@pytest.mark.parametrize("index", range(6))
def test_rows_do_not_know_of_each_other(index: int) -> None:
    """Also not at different times, where one row may be on either side of a switch."""
    denoiser, given, z_t, t = prior(6), problem(), normal(3, 1, 6), times(-4.0, -1.0, 3.0)
    together = every(denoiser, given)[index](z_t, t)
    for row in range(3):
        own = Problem(given.data, given.operator, given.values[row : row + 1], given.weights[row : row + 1])
        alone = every(denoiser, own)[index](z_t[row : row + 1], t[row : row + 1])
        assert torch.allclose(together[row], alone[0], rtol=0, atol=1e-8)


@pytest.mark.parametrize("index", range(6))
def test_a_missing_value_is_as_if_never_asked_for(index: int) -> None:
    denoiser, full, z_t, t = prior(6), problem(), normal(3, 1, 6), times(-1.0, 0.0, 3.0)
    weights, values = full.weights.clone(), full.values.clone()
    weights[..., 1], values[..., 1] = 0.0, 0.0
    keep = [0, 2, 3]
    masked = Problem(full.data, full.operator, values, weights)
    fewer = Problem(
        full.data, Matrix(full.operator.matrix[keep]), full.values[..., keep], full.weights[..., keep]
    )
    found, expected = (every(denoiser, given)[index](z_t, t) for given in (masked, fewer))
    assert torch.allclose(found, expected, atol=2e-3)  # the solver's tolerance


@pytest.mark.parametrize("index", range(6))
def test_gradients_are_switched_on_where_they_are_needed_only(index: int) -> None:
    """Under `no_grad` and autocast, as samplers and users call it; and nothing keeps a graph."""
    net = nn.Sequential(nn.Linear(6, 16), nn.SiLU(), nn.Linear(16, 6))
    plain = nn.Module()
    plain.forward = lambda x, c_noise, cond, mask, previous: net(x)  # type: ignore[method-assign]
    plain.net = net
    denoiser = Conditioned(NetDenoiser(plain, SCHEDULE, X0()), self_condition=True)
    given = problem()
    given = Problem(Sinh(), given.operator, given.values.float(), given.weights.float())
    z_t, t = normal(3, 1, 6).float(), times(-1.0, 0.0, 2.0, dtype=torch.float32)
    guided = every(denoiser, given)[index]
    with torch.no_grad():
        found = guided(z_t, t)
    assert not found.requires_grad
    assert bool(found.isfinite().all())
    guided.reset()
    assert denoiser.memory.recall(3, 1) is None
    assert torch.allclose(found, guided(z_t, t), atol=1e-5)
    assert all(p.grad is None for p in net.parameters())


def test_jacobians_are_taken_in_full_precision_under_autocast() -> None:
    given = problem()
    given = Problem(IdentityMap(), given.operator, given.values.float(), given.weights.float())
    denoiser, z_t, t = prior(6), normal(3, 1, 6).float(), times(0.0, 1.0, 2.0, dtype=torch.float32)
    expected = GaussNewton(denoiser, given, covariance=Isotropic())(z_t, t) - denoiser(z_t, t)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prior_estimate = denoiser(z_t, t)
        found = GaussNewton(denoiser, given, covariance=Isotropic())(z_t, t) - prior_estimate
    assert float((found - expected).abs().max()) < 0.1 * float(expected.abs().max())


def test_gauss_newton_goes_through_fused_attention() -> None:
    data, operator = Attention(), Pointwise()
    target = operator(data.decode(normal(2, 4, 6, seed=2).float())).detach()
    given = Problem(data, operator, target, torch.full_like(target, 20.0))
    denoiser = GaussianDenoiser(torch.zeros(24), torch.eye(24), SCHEDULE)
    z_t, t = normal(2, 4, 6).float(), times(0.0, 0.0, dtype=torch.float32)
    guided = GaussNewton(denoiser, given, covariance=Isotropic(), steps=3)
    with torch.no_grad():
        before, after = given.chi2(denoiser(z_t, t)), given.chi2(guided(z_t, t))
    assert bool((after < 0.01 * before).all())


def test_a_second_trajectory_is_as_the_first() -> None:
    """What a solver remembers is replaced where a trajectory starts, with or without `reset()`."""
    denoiser, given = prior(6), problem(data=Sinh())
    for guided in (GaussNewton(denoiser, given, max_iterations=3), Hybrid(denoiser, given, switch=1.0)):
        first, again = (
            default_sampler(6)(guided, (1, 6), noise=NoiseSource(0), ids=[0, 1, 2], dtype=F64)
            for _ in range(2)
        )
        assert torch.equal(first, again)
        guided.reset()
        assert torch.equal(
            first, default_sampler(6)(guided, (1, 6), noise=NoiseSource(0), ids=[0, 1, 2], dtype=F64)
        )


def test_work_is_counted() -> None:
    calls = {"denoiser": 0, "decode": 0}
    exact = prior(6)

    class Counted(Denoiser):
        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            calls["denoiser"] += 1
            return exact(x_t, t)

    class Plain(DataMap):
        def decode(self, z: Tensor) -> Tensor:
            calls["decode"] += 1
            return z

        def encode(self, x: Tensor) -> Tensor:
            return x

    given = problem(data=Plain())
    for guided in every(Counted(SCHEDULE), given):
        calls.update(denoiser=0, decode=0)
        default_sampler(5)(guided, (1, 6), noise=NoiseSource(0), ids=[0, 1, 2], dtype=F64)
        work = guided.evaluations
        assert work.denoiser == calls["denoiser"] == 5
        assert calls["decode"] <= work.decoder + work.decoder_derivatives
        assert work.network == work.denoiser + work.denoiser_vjp


def test_known_cells_are_kept_and_the_rest_is_sampled() -> None:
    """With independent cells the unknown ones come out as without an observation."""
    denoiser = GaussianDenoiser(torch.zeros(6), torch.eye(6), SCHEDULE)
    cells = torch.tensor([True, False, True, False, False, True])
    values = torch.where(cells, normal(2, 1, 6, seed=3), 0.0)
    given = Problem(IdentityMap(), Matrix(torch.eye(6)), values, 10.0 * cells.expand(2, 1, 6).to(F64))
    guided = ReplacementSolver(cells).guide(denoiser, given)
    settings = {"noise": NoiseSource(0), "ids": [0, 1], "dtype": F64}
    found, free = (default_sampler(10)(d, (1, 6), **settings) for d in (guided, denoiser))
    assert torch.equal(found[..., cells], values[..., cells])
    assert torch.allclose(found[..., ~cells], free[..., ~cells])
    other = Replacement(denoiser, given, cells=cells, known=torch.ones(2, 1, 6, dtype=F64))
    assert torch.equal(other(normal(2, 1, 6), times(0.0, 1.0))[..., cells], torch.ones(2, 1, 3, dtype=F64))


def test_whitening_is_the_inverse_root_of_the_predictive_covariance() -> None:
    factor = normal(2, 7, 4, seed=6) * torch.tensor([100.0, 1.0, 0.1, 0.0], dtype=F64)
    gram = factor @ factor.mT
    like, variance = normal(2, 1, 7), torch.tensor([0.7, 0.01], dtype=F64)[:, None, None]
    for rank in (7, 12, 5):  # of rank 3: 5 are enough
        whitening = Whitening.sketch(lambda u: (gram @ u.mT).mT, like, rank)
        twice = whitening(whitening(like, variance), variance)
        predictive = torch.eye(7, dtype=F64) + variance * gram
        assert torch.allclose((predictive @ twice.mT).mT, like, atol=1e-6)
    with_one = Whitening.sketch(lambda u: (gram @ u.mT).mT, like, 1)
    before, after = (
        [torch.linalg.cond(m) for m in many]
        for many in (
            torch.eye(7, dtype=F64) + gram,
            [
                torch.stack([scaled(with_one, gram[row], column, row) for column in torch.eye(7, dtype=F64)])
                for row in range(2)
            ],
        )
    )
    assert all(b < a / 100 for a, b in zip(before, after, strict=True))


def scaled(whitening: Whitening, gram: Tensor, column: Tensor, row: int) -> Tensor:
    """One column of `S (I + K) S`."""
    one = torch.ones(2, 1, 1, dtype=F64)
    w = whitening(column.expand(2, 1, 7), one)
    return whitening(w + (gram @ w.mT).mT, one)[row, 0]


def test_wrong_input_is_refused() -> None:
    given, denoiser = problem(), prior(6)
    with pytest.raises(ShapeMismatch, match="expected values and weights"):
        Problem(given.data, given.operator, given.values[..., :2], given.weights[..., :2])
    with pytest.raises(DataError, match="must be finite"):
        Problem(given.data, given.operator, given.values * float("nan"), given.weights)
    observation = Observation(torch.zeros(1, 1, 4), given.operator)
    with pytest.raises(ConfigError, match="noise is unknown"):
        Problem.from_observation(observation, given.data)
    with pytest.raises(ConfigError, match="repeat"):
        Problem.from_observation(
            Observation(torch.zeros(1, 1, 4), given.operator, GaussianNoise(1.0)), given.data, repeat=0
        )
    with pytest.raises(ConfigError, match="switch > 0"):
        Hybrid(denoiser, given, switch=0.0)
    with pytest.raises(ConfigError, match="steps >= 1"):
        GaussNewton(denoiser, given, steps=0)
    with pytest.raises(ConfigError, match="tolerance > 0"):
        DecodeEncode(denoiser, given, tolerance=0.0)
    with pytest.raises(ConfigError, match="zeta"):
        DPS(denoiser, given, zeta=-1.0)
    with pytest.raises(ConfigError, match="symmetric"):
        DenseGaussian(normal(3, 3))
    with pytest.raises(ConfigError, match="negative eigenvalue"):
        DenseGaussian(-torch.eye(3))
    with pytest.raises(ConfigError, match="at least 2 latents"):
        DenseGaussian.fit(torch.zeros(1, 3))
    with pytest.raises(ConfigError, match="has no adjoint"):
        Replacement(
            denoiser,
            Problem(IdentityMap(), Squares(4), given.values, given.weights),
            cells=torch.ones(4).bool(),
        )
    with pytest.raises(ShapeMismatch, match="do not fit"):
        Replacement(denoiser, problem(), cells=torch.ones(7).bool())
