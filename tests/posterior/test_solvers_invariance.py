"""Solvers: what must not matter, what is counted, what is refused."""

import pytest
import torch
from torch import Tensor, nn

from sciLDM.denoiser import Denoiser, NetDenoiser
from sciLDM.errors import ConfigError, DataError, ShapeMismatch
from sciLDM.guidance import Conditioned
from sciLDM.guidance.posterior import (
    DPS,
    DataMap,
    DecodeEncode,
    DenseGaussian,
    GaussNewton,
    Hybrid,
    IdentityMap,
    Isotropic,
    Problem,
    Replacement,
    ReplacementSolver,
)
from sciLDM.guidance.posterior.whitening import Whitening
from sciLDM.operators import GaussianNoise, Observation
from sciLDM.oracles import GaussianDenoiser
from sciLDM.parametrisation import X0
from sciLDM.posterior.sampling import default_sampler
from sciLDM.rng import NoiseSource
from tests.posterior.problems import (
    F64,
    SCHEDULE,
    Attention,
    Matrix,
    Pointwise,
    Sinh,
    Squares,
    every,
    normal,
    prior,
    problem,
    times,
)


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
