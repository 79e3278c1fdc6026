"""Classical reconstructions against direct solvers, optimality conditions and scikit-image."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.evaluate.classical import cgls, sirt, whiten, zero_filled
from sciLDM.evaluate.classical_tv import pdhg_tv, total_variation, tune_tv, tv_objective
from sciLDM.operators.base import LinearOperator, Operator
from sciLDM.operators.noise import GaussianNoise
from sciLDM.operators.observation import Observation
from sciLDM.operators.projection import ParallelBeam

F64 = torch.float64


class Dense(LinearOperator):
    """A matrix on flattened fields."""

    def __init__(self, matrix: Tensor, in_shape: tuple[int, ...]) -> None:
        super().__init__(in_shape, (len(matrix),))
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.to(x).mT

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.matrix.to(y)).reshape(-1, *self.in_shape)


class Square(Operator):
    def forward(self, x: Tensor) -> Tensor:
        return x**2


def denoising(y: Tensor, std: float | Tensor | None) -> Observation:
    shape = tuple(y.shape[1:])
    eye = Dense(torch.eye(y[0].numel()), shape)
    return Observation(y.flatten(1), eye, None if std is None else GaussianNoise(std))


def blocks(shape: tuple[int, ...], rows: int) -> Tensor:
    x = torch.zeros(rows, 1, *shape, dtype=F64)
    inner = tuple(slice(n // 4, n // 2 + 1) for n in shape)
    x[(slice(None), slice(None), *inner)] = 1.0
    x[(slice(None), slice(None), *(slice(n // 2, None) for n in shape))] -= 0.5
    return x


def test_cgls_is_least_squares_with_weights_and_gaps() -> None:
    matrix, y = torch.randn(30, 12, dtype=F64), torch.randn(3, 30, dtype=F64)
    std = 0.1 + torch.rand(30, dtype=F64)
    y[1, 4:9] = torch.nan
    found = cgls(Observation(y, Dense(matrix, (1, 3, 4)), GaussianNoise(std)), tolerance=1e-12)
    for row in range(3):
        seen = ~y[row].isnan()
        std32 = std.float().double()[seen]  # the noise model keeps float32
        exact = torch.linalg.lstsq(matrix[seen] / std32[:, None], (y[row, seen] / std32)[:, None]).solution
        assert torch.allclose(found.x[row].flatten(), exact[:, 0], atol=1e-8)
    assert int(found.iterations.max()) <= 18  # twelve unknowns


def test_cgls_finds_the_least_norm_and_rows_do_not_meet() -> None:
    matrix, y = torch.randn(8, 20, dtype=F64), torch.randn(4, 8, dtype=F64)
    y[2] = 0
    operator = Dense(matrix, (20,))
    found = cgls(Observation(y, operator), tolerance=1e-12)
    assert torch.allclose(found.x, y @ torch.linalg.pinv(matrix).mT, atol=1e-9)
    assert int(found.iterations[2]) == 0
    alone = cgls(Observation(y[1:2], operator), tolerance=1e-12)
    assert torch.allclose(alone.x, found.x[1:2], atol=1e-12)
    assert alone.iterations == found.iterations[1:2]


def test_cgls_stops_at_the_noise() -> None:
    operator = ParallelBeam((1, 16, 16), [0, 30, 60, 90, 120, 150])
    y = operator(blocks((16, 16), 2)) + 0.3 * torch.randn(2, *operator.out_shape, dtype=F64)
    observation = Observation(y, operator, GaussianNoise(0.3))
    found = cgls(observation, discrepancy=1.0)
    chi2 = ((operator(found.x) - y) / 0.3).square().flatten(1).mean(dim=1)
    assert bool((chi2 <= 1).all())
    fewer = cgls(observation, iterations=int(found.iterations.min()) - 1)
    assert bool((((operator(fewer.x) - y) / 0.3).square().flatten(1).mean(dim=1) > 1).all())


def test_sirt_falls_monotonically_to_the_weighted_least_squares() -> None:
    matrix = torch.rand(15, 6, dtype=F64) * (torch.rand(15, 6) < 0.6)
    matrix[3] = 0  # a ray that misses
    y = torch.rand(2, 15, dtype=F64)
    observation = Observation(y, Dense(matrix, (6,)))
    change = [
        float(sirt(observation, iterations=k, relaxation=1.9).change[0]) for k in (1, 2, 3, 5, 10, 40, 200)
    ]
    assert all(b <= a * (1 + 1e-12) for a, b in pairwise(change))
    rows = matrix.sum(dim=1).clamp(min=1e-9).rsqrt() * (matrix.sum(dim=1) > 0)
    exact = torch.linalg.lstsq(matrix * rows[:, None], (y * rows).mT).solution.mT
    assert torch.allclose(sirt(observation, iterations=8000).x, exact, atol=1e-5)
    assert float(sirt(observation, iterations=50, bounds=(0.0, 0.4)).x.max()) <= 0.4
    with pytest.raises(ConfigError, match="negative"):
        sirt(Observation(y, Dense(-matrix, (6,))))
    with pytest.raises(ConfigError, match="between 0 and 2"):
        sirt(observation, relaxation=2.0)


def test_zero_filled() -> None:
    q = torch.linalg.qr(torch.randn(12, 12, dtype=F64)).Q[:5]  # q q^T = I
    y = torch.randn(2, 5, dtype=F64)
    assert torch.allclose(zero_filled(Observation(y, Dense(q, (12,)))), y @ q)
    scaled = zero_filled(Observation(y, Dense(3 * q, (12,))), scaled=True)
    assert torch.allclose(scaled, y @ q / 3)


def test_whitened_norm_and_zero_noise() -> None:
    matrix = torch.randn(9, 7, dtype=F64)
    problem = whiten(Observation(torch.randn(2, 9, dtype=F64), Dense(matrix, (7,)), GaussianNoise(0.5)))
    exact = 2 * torch.linalg.matrix_norm(matrix, 2)
    assert torch.allclose(problem.norm(iterations=300), exact.expand(2), rtol=1e-3)
    y = torch.randn(1, 9, dtype=F64)
    silent = whiten(Observation(y, Dense(matrix, (7,)), GaussianNoise(0.0)))
    assert torch.allclose(silent.weights, 1e4 / y.std(correction=0).expand(1, 9), rtol=1e-5)
    with pytest.raises(ConfigError, match="LinearOperator"):
        cgls(Observation(torch.ones(1, 2), Square((2,), (2,))))


@pytest.mark.parametrize("shape", [(40,), (20, 16), (8, 10, 9)])
def test_tv_denoising_agrees_with_scikit_image(shape: tuple[int, ...]) -> None:
    from skimage.restoration import denoise_tv_chambolle

    y = blocks(shape, 1) + 0.2 * torch.randn(1, 1, *shape, dtype=F64)
    theirs = denoise_tv_chambolle(y[0, 0].numpy(), weight=0.15, eps=1e-7, max_num_iter=800)
    observation = denoising(y, None)
    ours = pdhg_tv(observation, 0.15, tolerance=1e-5)
    objective = float(tv_objective(observation, ours.x, 0.15))
    assert objective <= float(tv_objective(observation, torch.from_numpy(theirs)[None, None], 0.15)) * (
        1 + 1e-4
    )
    assert float((ours.x[0, 0] - torch.from_numpy(theirs)).abs().max()) < 5e-3


def test_tv_of_a_known_minimiser() -> None:
    # Two plateaus in one dimension, n values each: each moves by weight sigma^2 / n towards the other.
    y = torch.tensor([0.0] * 6 + [1.0] * 9, dtype=F64)[None, None]
    found = pdhg_tv(denoising(y, 0.5), 0.8, tolerance=1e-8)
    move = 0.8 * 0.5**2
    exact = torch.tensor([move / 6] * 6 + [1 - move / 9] * 9, dtype=F64)
    assert torch.allclose(found.x[0, 0], exact, atol=1e-6)
    assert torch.allclose(total_variation(y), torch.ones(1, dtype=F64))
    corner = torch.zeros(1, 2, 3, 3, dtype=F64)
    corner[:, :, 1, 1] = 1  # one slope of length sqrt(2) and two of length 1, in two channels
    assert torch.allclose(total_variation(corner), torch.full((1,), 2 * (2**0.5 + 2), dtype=F64))


def test_tv_recovers_an_image_of_blocks_from_few_views() -> None:
    x = blocks((16, 16), 3)
    x[1] *= 2
    operator = ParallelBeam((1, 16, 16), [0, 25, 50, 75, 100, 125, 150])
    y = operator(x) + 0.05 * torch.randn(3, *operator.out_shape, dtype=F64)
    y[2, :, 3] = torch.nan  # a lost view
    observation = Observation(y, operator, GaussianNoise(0.05))
    found = pdhg_tv(observation, 10.0)
    assert bool((found.change <= 1e-3).all())

    def error(image: Tensor) -> Tensor:
        return (image - x).square().flatten(1).mean(dim=1).sqrt()

    assert bool((error(found.x) < 0.25 * error(cgls(observation, discrepancy=1.0).x)).all())
    converged = pdhg_tv(observation, 10.0, tolerance=1e-4)
    gap = tv_objective(observation, found.x, 10.0) / tv_objective(observation, converged.x, 10.0) - 1
    assert bool((gap < 0.02).all())
    assert bool((gap > -1e-3).all())
    alone = pdhg_tv(Observation(y[1:2], operator, GaussianNoise(0.05)), 10.0)
    assert torch.allclose(alone.x, found.x[1:2], atol=1e-9)
    assert alone.iterations == found.iterations[1:2]
    boxed = pdhg_tv(observation, torch.tensor([10.0, 10.0, 30.0]), bounds=(0.0, 1.0))
    assert float(boxed.x.min()) >= 0
    assert float(boxed.x.max()) <= 1


def test_tune_tv_finds_the_best_weight_beyond_the_given_ones() -> None:
    x = blocks((16, 16), 4)
    y = x + 0.3 * torch.randn_like(x)
    observation = denoising(y, 0.3)
    tuned = tune_tv([observation], [x], [0.01, 0.04])
    assert len(tuned.errors) > 2
    assert tuned.errors[tuned.weight] == min(tuned.errors.values())
    assert min(tuned.errors) < tuned.weight < max(tuned.errors)
    again = pdhg_tv(observation, tuned.weight).x
    assert np.isclose(float((again - x).square().mean().sqrt()), tuned.errors[tuned.weight])
    with pytest.raises(ConfigError, match="at least two"):
        tune_tv([observation], [x], [1.0])
    with pytest.raises(ShapeMismatch, match="as many truths"):
        tune_tv([observation], [x[:2]], [1.0, 2.0])
    with pytest.raises(ConfigError, match="at least 0"):
        pdhg_tv(observation, -1.0)
