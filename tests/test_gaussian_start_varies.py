"""Variances that follow a condition: in the start, in what solvers take for the prior, and in a trained model."""

import torch

from sciLDM.denoiser import NetDenoiser
from sciLDM.gaussian_start import GaussianStart
from sciLDM.guidance import ClassifierFree, Conditioned
from sciLDM.guidance.posterior import DenseGaussian, Evaluations, StartGaussian
from sciLDM.parametrisation import V
from sciLDM.rng import NoiseSource
from sciLDM.schedules import CosineSchedule

NOISE = NoiseSource(31)
F64 = torch.float64
SEASONS = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [float("nan"), 0.0]])


def fitted() -> GaussianStart:
    """Two axes whose variances are 4 (1 + 0.5 c) and 1 (1 - 0.3 c), rotated; the condition goes round the year."""
    n = 20_000
    phase = torch.arange(n) / n * 2 * torch.pi
    c = torch.stack([phase.cos(), phase.sin()], dim=1)
    white = NOISE.normal(range(n), (2,), dtype=F64)
    x = white * torch.stack([4 * (1 + 0.5 * c[:, 0]), 1 - 0.3 * c[:, 1]], dim=1).sqrt()
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=F64)
    z = (x @ turn.mT).float().view(n, 1, 2)
    start = GaussianStart(2, "known", varies=("season", 2))
    start.fit(z.split(5000))
    c[::7] = torch.nan  # some labels are missing
    labels = [{"season": part} for part in c.split(3000)]
    start.fit_variances(zip(z.split(3000), labels, strict=True))
    return start


START = fitted()


def covariance(season: torch.Tensor) -> torch.Tensor:
    """Of one row."""
    half = START.basis * START.variances_of({"season": season[None]})[0].sqrt()
    return half @ half.mT


def test_variances_follow_the_condition() -> None:
    found = START.variances_of({"season": SEASONS})
    expected = torch.tensor([[1.0, 6.0], [1.0, 2.0], [0.7, 4.0], [1.0, 4.0]])
    assert torch.allclose(found, expected, rtol=0.08)
    assert torch.allclose(START.variances_of({}), expected[3], rtol=0.08)
    # Where the line would go below a fifth of the mean, it stops there.
    far = START.variances_of({"season": torch.tensor([[-9.0, 0.0]])})
    assert torch.allclose(far[0, 1], 0.2 * START.variances[1])


def test_few_rows_share_a_slope_and_many_have_their_own() -> None:
    size, slope = 40, torch.tensor([[0.5], [0.0]])
    own = 0.3 * NOISE.normal([0], (2, size), stream="own")[0]
    for count, per_axis in ((100, 0 * own), (100, own), (40_000, own)):
        true = slope + per_axis
        phase = torch.arange(count) * 0.61
        c = torch.stack([phase.cos(), phase.sin()], dim=1)
        z = NOISE.normal(range(count), (size,)) * (1 + c @ true).clamp(min=0.05).sqrt()
        start = GaussianStart(size, varies=("season", 2))
        start.mean.zero_()  # as if it were known
        start.fit_variances([(z.view(count, 1, size), {"season": c})])
        error = (start.slopes - true).square().mean().sqrt()
        # Two numbers of variance 2 / (n / 2) each would be off by 0.2 with 100 rows.
        assert float(error) < {100: 0.12 if per_axis.sum() == 0 else 0.31, 40_000: 0.03}[count]


def test_without_labels_nothing_follows() -> None:
    start = GaussianStart(2, varies=("season", 2))
    z = NOISE.normal(range(50), (1, 2))
    start.fit([z])
    start.fit_variances([(z, {"season": torch.full((50, 2), torch.nan)})])
    assert torch.equal(start.variances_of({"season": SEASONS}), start.variances.expand(4, 2))


def test_the_estimate_is_that_of_the_gaussian_of_each_row() -> None:
    c = SEASONS[[0, 2, 0]]
    x_t = NOISE.normal(range(3), (1, 2), stream="state")
    alpha, sigma = torch.tensor([0.8, 0.6, 0.8]), torch.tensor([0.6, 0.8, 0.6])
    known = torch.tensor([[[float("nan"), 0.5]]] * 3)
    for cond in ({"season": c}, {"season": c, "known": known}):
        got = START(x_t, alpha, sigma, cond).flatten(1)
        for k in range(3):
            prior = covariance(c[k])
            rate = torch.full((2,), float(alpha[k] / sigma[k]))
            y = x_t[k, 0] / sigma[k] - rate * START.mean
            if "known" in cond:
                rate[1], y[1] = 1e3, 1e3 * (0.5 - START.mean[1])
            gain = prior * rate @ torch.linalg.inv(rate[:, None] * prior * rate + torch.eye(2))
            assert torch.allclose(got[k], START.mean + gain @ y, atol=2e-3)


def test_solvers_take_each_row_for_what_its_condition_says() -> None:
    schedule = CosineSchedule()
    inner = NetDenoiser(Still(), schedule, V(), start=START)
    v, z_t = NOISE.normal(range(4), (1, 2), stream="direction"), torch.zeros(4, 1, 2)
    t = torch.tensor([0.3, 0.3, 0.6, 0.6])
    alpha, sigma = schedule(t)
    for denoiser in (Conditioned(inner, {"season": SEASONS}), ClassifierFree(inner, {"season": SEASONS})):
        for model in (DenseGaussian.of(START), StartGaussian(START)):
            found = model.estimate(denoiser, z_t, t, Evaluations())[1](v)[:, 0]
            for k in range(4):
                left = torch.linalg.inv(
                    torch.linalg.inv(covariance(SEASONS[k])) + (alpha[k] / sigma[k]) ** 2 * torch.eye(2)
                )
                assert torch.allclose(found[k], left @ v[k, 0], atol=1e-4)
    plain = DenseGaussian.of(START).estimate(Conditioned(inner), z_t, t, Evaluations())[1](v)
    assert torch.allclose(plain, DenseGaussian(START.covariance).estimate(
        Conditioned(inner), z_t, t, Evaluations())[1](v), atol=1e-5)  # fmt: skip


class Still(torch.nn.Module):
    """A network that adds nothing."""

    def forward(self, x: torch.Tensor, *_rest: object) -> torch.Tensor:
        return torch.zeros_like(x)
