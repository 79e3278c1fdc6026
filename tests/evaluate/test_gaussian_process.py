"""Gaussian-process regression against closed forms and against fits that leave each row out."""

import math

import pytest
import torch
from torch import Tensor

from sciLDM.errors import DataError
from sciLDM.evaluate.gaussian_process import (
    RBF,
    GaussianProcess,
    _leave_one_out,
    count_similarity,
    rbf_ladder,
)

F64 = torch.float64


def smooth(count: int, noise: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = 4 * torch.rand(count, 2, generator=generator, dtype=F64)
    y = x[:, 0].sin() + 0.5 * x[:, 1].cos()
    return x, y + noise * torch.randn(count, generator=generator, dtype=F64)


def test_prediction_is_the_conditional_gaussian() -> None:
    x, y = smooth(12, 0.1)
    kernel, noise = RBF(1.3), 0.05
    process = GaussianProcess(x, y, kernel, noise)
    new = smooth(3, 0.0, seed=1)[0]
    gram, cross = kernel(x, x) + noise * torch.eye(12, dtype=F64), kernel(new, x)
    centred = y - y.mean()
    mean = y.mean() + cross @ torch.linalg.inv(gram) @ centred
    amplitude = float(centred @ torch.linalg.inv(gram) @ centred) / 12
    variance = amplitude * (1 + noise - (cross @ torch.linalg.inv(gram) * cross).sum(1))
    found = process.predict(new)
    assert torch.allclose(found[0], mean)
    assert torch.allclose(found[1], variance.sqrt())


def test_leave_one_out_leaves_one_out() -> None:
    """The closed form against a fit without each row, at a common amplitude."""
    x, y = smooth(10, 0.2)
    y, kernel, noise = y - y.mean(), RBF(0.8), 0.1
    errors, variances = [], []
    for i in range(10):
        rest = [k for k in range(10) if k != i]
        gram = kernel(x[rest], x[rest]) + noise * torch.eye(9, dtype=F64)
        cross = kernel(x[[i]], x[rest])[0]
        solved = torch.linalg.solve(gram, cross)
        errors.append(y[i] - solved @ y[rest])
        variances.append(1 + noise - solved @ cross)
    error, variance = torch.stack(errors), torch.stack(variances)
    amplitude = (error.square() / variance).mean()
    density = -0.5 * (amplitude * variance).log().sum()
    eigenvalues, vectors = torch.linalg.eigh(kernel(x, x))
    assert _leave_one_out(eigenvalues + noise, vectors, y) == pytest.approx(float(density))


def test_the_choice_finds_noise_and_width() -> None:
    x, y = smooth(300, 0.2)
    process = GaussianProcess.fit(x, y, rbf_ladder(x, (0.03, 1.0, 30.0)))
    assert process.amplitude * math.sqrt(process.noise) == pytest.approx(0.2, rel=0.5)
    new, truth = smooth(400, 0.0, seed=5)
    mean, std = process.predict(new)
    assert float((mean - truth).abs().mean()) < 0.06
    noisy = smooth(400, 0.2, seed=5)[1]
    inside = ((noisy - mean).abs() < 1.645 * std).double().mean()
    assert float(inside) == pytest.approx(0.9, abs=0.05)


def test_draws_have_the_posterior_moments() -> None:
    x, y = smooth(20, 0.1)
    process = GaussianProcess(x, y, RBF(1.0), 0.05)
    new = smooth(4, 0.0, seed=2)[0]
    draws = process.draw(new, 4000, torch.Generator().manual_seed(0))
    mean, std = process.predict(new)
    without_noise = (std.square() - process.amplitude**2 * 0.05).sqrt()
    assert torch.allclose(draws.mean(0), mean, atol=4 * float(std.max()) / 4000**0.5)
    assert torch.allclose(draws.std(0), without_noise, rtol=0.06)


def test_similarity_of_counts() -> None:
    a = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 3.0]])
    b = torch.tensor([[1.0, 1.0, 1.0], [2.0, 1.0, 0.0]])
    assert torch.allclose(count_similarity(a, b), torch.tensor([[2 / 4, 1.0], [1 / 5, 0.0]]))


def test_what_cannot_be_fitted() -> None:
    x, y = smooth(10, 0.1)
    with pytest.raises(DataError, match="at least 8 rows"):
        GaussianProcess.fit(x[:5], y[:5])
    with pytest.raises(DataError, match="finite"):
        GaussianProcess.fit(x, y.masked_fill(torch.arange(10) == 3, float("nan")))
