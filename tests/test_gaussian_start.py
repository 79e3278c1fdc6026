"""The linear start is the exact denoiser of a Gaussian, with and without known cells."""

import torch

from sciLDM.conditions import FieldMap
from sciLDM.denoiser import NetDenoiser
from sciLDM.gaussian_start import GaussianStart
from sciLDM.nets import DiTNetwork
from sciLDM.parametrisation import V
from sciLDM.schedules import CosineSchedule


def gaussian(count: int = 200_000) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    factor = torch.randn(6, 6, generator=generator) / 2
    mean = torch.randn(6, generator=generator)
    z = mean + torch.randn(count, 6, generator=generator) @ factor.T
    return z.view(count, 2, 3), mean, factor @ factor.T


def start(context: str | None = None) -> GaussianStart:
    found = GaussianStart(6, context)
    found.fit(gaussian()[0].split(70_000))
    return found


def test_an_untrained_network_is_the_exact_gaussian_denoiser() -> None:
    _, mean, covariance = gaussian(2)
    net = DiTNetwork(width=16, depth=1, heads=2).build(2, (3,), ())
    schedule = CosineSchedule()
    denoiser = NetDenoiser(net, schedule, V(), start=start())
    t, x_t = torch.tensor([0.1, 0.5, 0.9]), torch.randn(3, 2, 3)
    alpha, sigma = schedule(t)
    for a, s, x, found in zip(alpha, sigma, x_t, denoiser(x_t, t), strict=True):
        gain = a * covariance @ torch.linalg.inv(a**2 * covariance + s**2 * torch.eye(6))
        torch.testing.assert_close(found.flatten(), mean + gain @ (x.flatten() - a * mean), atol=0.03, rtol=0)


def test_known_cells_condition_the_others() -> None:
    _, mean, covariance = gaussian(2)
    found = start("context")
    known = torch.full((1, 2, 3), torch.nan)
    known[:, :, 0] = torch.tensor([0.7, -1.2])
    x_t, alpha, sigma = torch.randn(1, 2, 3), torch.tensor([0.02]), torch.tensor([1.0])
    estimate = found(x_t, alpha, sigma, {"context": known}).flatten()
    there = known.flatten().isfinite()
    torch.testing.assert_close(estimate[there], known.flatten()[there], atol=1e-3, rtol=0)
    # Noise rules the rest, so that only the known cells speak of it.
    gain = covariance[~there][:, there] @ torch.linalg.inv(covariance[there][:, there])
    expected = mean[~there] + gain @ (known.flatten()[there] - mean[there])
    torch.testing.assert_close(estimate[~there], expected, atol=0.1, rtol=0)


def test_both_ways_of_solving_agree() -> None:
    found = start("context")
    x_t, alpha, sigma = torch.randn(2, 2, 3), torch.tensor([0.8, 0.3]), torch.tensor([0.6, 0.95])
    open_cells = torch.full((2, 2, 3), torch.nan)
    weak = open_cells.clone()
    weak[0, 0, 0] = 0.5  # one sample has a known cell, the other has none
    torch.testing.assert_close(
        found(x_t, alpha, sigma, {"context": weak})[1], found(x_t, alpha, sigma, {"context": open_cells})[1]
    )


def test_the_condition_stays_the_networks_too() -> None:
    net = DiTNetwork(width=16, depth=1, heads=2).build(2, (3,), (FieldMap("context", channels=2),))
    denoiser = NetDenoiser(net, CosineSchedule(), V(), start=start("context"))
    known = torch.full((1, 2, 3), torch.nan)
    known[:, :, 0] = 1.0
    assert denoiser(torch.randn(1, 2, 3), torch.tensor([0.5]), {"context": known}).isfinite().all()
