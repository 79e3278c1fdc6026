"""The structured start is the exact denoiser of its own covariance, and finds that covariance in data."""

from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

import sciLDM
from sciLDM.denoiser import NetDenoiser
from sciLDM.errors import ConfigError, DataError, ShapeMismatch
from sciLDM.fitting import fit
from sciLDM.gaussian_start import FactorStart, GaussianStart
from sciLDM.gaussian_start.factor_fit import Moments, debiased
from sciLDM.guidance.posterior import DenseGaussian, Evaluations
from sciLDM.guidance.posterior.covariance_start import StartGaussian
from sciLDM.nets import DiTNetwork
from sciLDM.objectives import RandomContext
from sciLDM.oracles import GaussianDenoiser
from sciLDM.parametrisation import V
from sciLDM.schedules import CosineSchedule
from tests.posterior.line_domain import Subset, curves
from tests.tiny import silent, stage

F64 = torch.float64
SHAPES = [(5,), (2, 3), (2, 1, 3)]
NOISE = [(0.02, 0.9998), (0.5, 0.8), (0.999, 0.05)]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def known(channels: int, shape: tuple[int, ...], rank: int = 2) -> tuple[FactorStart, torch.Tensor]:
    """A start with a covariance drawn at random, and that covariance written out, channels before cells."""
    cells, start = prod(shape), FactorStart(channels, shape, rank=rank).double()
    basis = torch.linalg.qr(random(cells, channels, channels))[0]
    variances = random(cells, channels, seed=1).exp()
    loadings = random(rank, cells, channels, seed=2)
    start.mean.copy_(random(channels * cells, seed=3))
    start.basis.copy_(basis)
    start.variances.copy_(variances.flatten())
    start.loadings.copy_(loadings.flatten(1))
    covariance = torch.zeros(channels, cells, channels, cells, dtype=F64)
    for f in range(cells):
        covariance[:, f, :, f] = basis[f] @ variances[f].diag() @ basis[f].T
    across = torch.einsum("fca,rfa->rcf", basis, loadings)
    covariance += torch.einsum("rcf,rdg->cfdg", across, across)
    return start, covariance.reshape(channels * cells, -1)


def drawn(
    mean: torch.Tensor, covariance: torch.Tensor, shape: tuple[int, ...], count: int, seed: int = 4
) -> torch.Tensor:
    z = mean + random(count, len(mean), seed=seed) @ torch.linalg.cholesky(covariance).T
    return z.view(count, -1, *shape).float()


@pytest.mark.parametrize("shape", SHAPES)
def test_estimate_and_posterior_covariance_are_those_of_the_dense_formula(shape: tuple[int, ...]) -> None:
    start, covariance = known(3, shape)
    x_t, identity = random(len(NOISE), 3, *shape, seed=5), torch.eye(len(covariance), dtype=F64)
    alpha, sigma = torch.tensor(NOISE, dtype=F64).T
    found = start(x_t, alpha, sigma, None).flatten(1)
    spread = start.posterior_covariance(x_t, alpha, sigma).flatten(1)
    for k, (a, s) in enumerate(NOISE):
        total = a**2 * covariance + s**2 * identity
        mean = start.mean + a * covariance @ torch.linalg.solve(total, x_t[k].flatten() - a * start.mean)
        torch.testing.assert_close(found[k], mean, rtol=1e-9, atol=1e-9)
        posterior = torch.linalg.inv(torch.linalg.inv(covariance) + a**2 / s**2 * identity)
        torch.testing.assert_close(spread[k], posterior @ x_t[k].flatten(), rtol=1e-9, atol=1e-9)


def test_both_starts_with_one_covariance_agree() -> None:
    start, covariance = known(2, (4,))
    dense = GaussianStart(8).double()
    variances, basis = torch.linalg.eigh(covariance)
    dense.mean.copy_(start.mean), dense.variances.copy_(variances), dense.basis.copy_(basis)
    x_t, (alpha, sigma) = random(3, 2, 4, seed=6), torch.tensor(NOISE, dtype=F64).T
    torch.testing.assert_close(start(x_t, alpha, sigma, None), dense(x_t, alpha, sigma, None))
    torch.testing.assert_close(
        start.posterior_covariance(x_t, alpha, sigma), dense.posterior_covariance(x_t, alpha, sigma)
    )


def test_solvers_are_given_its_posterior_covariance() -> None:
    (start, covariance), schedule = known(2, (4,)), CosineSchedule()
    denoiser, z_t, t = (
        GaussianDenoiser(start.mean, covariance, schedule),
        random(3, 2, 4),
        torch.tensor([0.1, 0.5, 0.99]),
    )
    v, counts = random(3, 2, 4, seed=9), Evaluations()
    estimate, apply = StartGaussian(start).estimate(denoiser, z_t, t.to(F64), counts)
    expected, dense = DenseGaussian(covariance).estimate(denoiser, z_t, t.to(F64), Evaluations())
    torch.testing.assert_close(estimate, expected)
    torch.testing.assert_close(apply(v), dense(v))
    assert counts.denoiser == 1


def test_an_untrained_network_with_it_is_the_exact_denoiser() -> None:
    start, covariance = known(2, (4,))
    schedule = CosineSchedule()
    net = DiTNetwork(width=16, depth=1, heads=2).build(2, (4,), ())
    denoiser = NetDenoiser(net, schedule, V(), start=start.float())
    t, x_t = torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0]), random(5, 2, 4).float()
    exact = GaussianDenoiser(start.mean, covariance, schedule)
    torch.testing.assert_close(denoiser(x_t, t), exact(x_t, t), rtol=1e-4, atol=1e-4)


def test_a_sample_does_not_depend_on_its_batch() -> None:
    start = known(3, (2, 3))[0].float()
    x_t = random(6, 3, 2, 3).float()
    alpha, sigma = torch.tensor([[0.6, 0.8], [0.6, 0.8], [0.1, 0.99], [0.99, 0.1], [0.6, 0.8], [0.0, 1.0]]).T
    together = start(x_t, alpha, sigma, None)
    for k in range(6):
        alone = start(x_t[k : k + 1], alpha[k : k + 1], sigma[k : k + 1], None)[0]
        torch.testing.assert_close(together[k], alone, rtol=1e-5, atol=1e-6)


def test_half_precision_does_not_show_where_noise_has_gone() -> None:
    start = known(3, (2, 3))[0].float()
    start.basis.copy_(start.basis.bfloat16())
    start.loadings.copy_(start.loadings.bfloat16())
    x, sigma = random(1, 3, 2, 3).float(), 1e-3
    found = start(x, torch.ones(1), torch.tensor([sigma]), None)
    assert float((found - x).abs().max()) < 0.1 * sigma


def test_the_fit_finds_blocks_and_patterns() -> None:
    shape = (4, 3)
    truth, covariance = known(2, shape, rank=1)
    z = drawn(truth.mean, covariance, shape, 20_000)
    start = FactorStart(2, shape, rank=3)
    start.fit(z.split(3_000))
    fresh = drawn(truth.mean, covariance, shape, 2_000, seed=7)
    eps = random(*fresh.shape, seed=8).float()
    for a, s in NOISE:
        alpha, sigma = torch.full((2_000,), a), torch.full((2_000,), s)
        x_t = a * fresh + s * eps
        errors = [float((d(x_t, alpha, sigma, None) - fresh).square().mean()) for d in (start, truth.float())]
        assert errors[0] < 1.01 * errors[1]


def test_no_patterns_are_seen_in_noise() -> None:
    start = FactorStart(4, (6, 5), rank=8)
    start.fit(random(40, 4, 6, 5).float().split(16))  # 120 numbers from 40 samples
    assert float(start.loadings.square().sum()) < 0.05 * 120
    spectrum = torch.linalg.eigvalsh(random(40, 120) @ random(40, 120).T / 40)
    assert float(debiased(spectrum, 3.0)[:-2].max()) == 0.0


def test_debiasing_recovers_a_spike_and_what_is_left_of_its_direction() -> None:
    size, count, found = 800, 400, []
    for seed in range(4):
        x = random(count, size, seed=seed)
        x[:, 0] *= 12.0**0.5
        values, vectors = torch.linalg.eigh(x @ x.T / count)
        direction = x.T @ vectors[:, -1] / (count * values[-1]).sqrt()
        left = (float(x[:, 0].square().mean()) - 1) * float(direction[0]) ** 2
        found.append(float(debiased(values[-1:], size / count)) / left)
    assert sum(found) / 4 == pytest.approx(1.0, rel=0.05)


def test_few_samples_are_better_than_none() -> None:
    shape = (4, 4)
    truth, covariance = known(6, shape, rank=1)
    start = FactorStart(6, shape)
    start.fit([drawn(truth.mean, covariance, shape, 12)])
    fresh = drawn(truth.mean, covariance, shape, 500, seed=7)
    for a, s in NOISE[:2]:
        alpha, sigma = torch.full((500,), a), torch.full((500,), s)
        x_t = a * fresh + s * random(*fresh.shape, seed=8).float()
        error = (start(x_t, alpha, sigma, None) - fresh).square().mean()
        assert float(error) < 0.8 * float((a * x_t - fresh).square().mean())


def test_means_of_cells_that_differ_by_chance_are_those_of_channels() -> None:
    z = random(10, 2, 400)
    z[:, 1] += torch.linspace(-1, 1, 400, dtype=F64)
    mean = Moments.of([z], 2, torch.device("cpu")).cell_mean()
    assert float(mean[:, 0].std()) < 0.15  # 0.32 as they come
    assert float((mean[:, 1] - torch.linspace(-1, 1, 400)).square().mean()) < 0.1  # of a variance of 0.33


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigError, match="fewer channels"):
        FactorStart(64, (64, 64, 64))
    with pytest.raises(DataError, match="at least 2"):
        FactorStart(2, (3,)).fit([torch.zeros(1, 2, 3)])
    with pytest.raises(ShapeMismatch, match="6 numbers"):
        FactorStart(2, (3,))(torch.zeros(1, 2, 4), torch.ones(1), torch.ones(1), None)


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "domain": {"class_path": "tests.posterior.line_domain.Line"},
        "network": {"class_path": "DiTNetwork", "init_args": {"width": 16, "depth": 1, "heads": 2}},
        "autoencoder_stage": stage(8, learning_rate=1e-3),
        "denoiser_stage": stage(2),
        "trainer": {"accelerator": "cpu", "progress_bar": False},
        "gaussian_start": True,
        **changes,
    }


@pytest.fixture
def small_latents_are_large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sciLDM.assembly.LARGEST_START", 2)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.usefixtures("small_latents_are_large")
def test_a_model_reconstructs_with_it_and_keeps_it(tmp_path: Path) -> None:
    model = fit(settings(), tmp_path / "run", say=silent)
    assert isinstance(model.denoiser.start, FactorStart)
    points = Subset([0, 3, 6, 9, 12])
    truth = 280 + 10 * curves("test", list(range(8)))
    options: dict[str, Any] = {"noise_std": 0.3, "samples": 8, "steps": 8}
    got = model.reconstruct(points(truth), points, **options)
    assert float((got.mean - truth).square().mean()) < 0.05 * float((truth - 280).square().mean())
    model.save(tmp_path / "copy")
    again = sciLDM.load(tmp_path / "copy").reconstruct(points(truth), points, **options)
    assert torch.equal(again.mean, got.mean)
    assert again.details["model"] == got.details["model"]


@pytest.mark.usefixtures("small_latents_are_large")
def test_a_context_asks_for_a_dense_covariance(tmp_path: Path) -> None:
    objective = {"context": {"class_path": "sciLDM.objectives.RandomContext"}}
    assert RandomContext().name == "context"
    with pytest.raises(ConfigError, match=r"objective\.context at most 2 work"):
        fit(settings(objective=objective), tmp_path / "run", say=silent)
