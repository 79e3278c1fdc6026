"""Conjugate gradients against direct solutions; a row's result must not depend on what else is in the batch."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.operators import conjugate_gradient

F64 = torch.float64


def systems(count: int, size: int, seed: int, spread: float = 100.0) -> Tensor:
    """Symmetric positive definite matrices with eigenvalues between 1 and `spread`."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(count, size, size, generator=generator, dtype=F64))[0]
    values = 1 + (spread - 1) * torch.rand(count, size, generator=generator, dtype=F64)
    return basis @ torch.diag_embed(values) @ basis.mT


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@given(count=st.integers(1, 5), size=st.integers(1, 24), seed=st.integers(0, 999), start=st.booleans())
def test_solves_like_a_direct_solver(count: int, size: int, seed: int, start: bool) -> None:
    m, b = systems(count, size, seed), normal((count, size), seed)
    x0 = normal((count, size), seed + 1) if start else None
    result = conjugate_gradient(
        lambda x: (m @ x[..., None])[..., 0], b, x0=x0, tolerance=1e-11, max_iterations=200
    )
    assert torch.allclose(result.x, torch.linalg.solve(m, b), rtol=0, atol=1e-9)
    assert bool((result.residual <= 1e-11).all())


@given(seed=st.integers(0, 999), tolerance=st.floats(1e-8, 0.5))
def test_stops_at_the_residual_it_was_asked_for_and_says_which(seed: int, tolerance: float) -> None:
    m, b = systems(4, 20, seed), normal((4, 4, 5), seed)

    def apply(x: Tensor) -> Tensor:
        return (m @ x.reshape(4, 20, 1)).reshape(x.shape)

    result = conjugate_gradient(apply, b, tolerance=tolerance)
    true = (b - apply(result.x)).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)
    assert bool((true <= tolerance * 1.001).all())
    assert torch.allclose(true, result.residual, rtol=1e-3, atol=1e-12)
    for row, count in enumerate(result.iterations.tolist()):  # and no iteration more than needed
        earlier = conjugate_gradient(apply, b, tolerance=0.0, max_iterations=count - 1)
        assert float(earlier.residual[row]) > tolerance


@given(seed=st.integers(0, 999))
def test_a_row_does_not_see_the_rest_of_the_batch(seed: int) -> None:
    """Rows of very different difficulty: easy ones are frozen while the others go on."""
    m = torch.cat([systems(2, 16, seed, 1.5), systems(3, 16, seed + 1, 1e4)])
    b = normal((5, 16), seed) * torch.tensor([1e-6, 1.0, 1e6, 1.0, 0.0], dtype=F64)[:, None]
    whole = conjugate_gradient(lambda x: (m @ x[..., None])[..., 0], b, tolerance=1e-4)
    for row in range(5):
        alone = conjugate_gradient(
            lambda x, row=row: (m[row : row + 1] @ x[..., None])[..., 0], b[row : row + 1], tolerance=1e-4
        )
        assert int(alone.iterations) == int(whole.iterations[row])
        assert torch.allclose(alone.x[0], whole.x[row], rtol=1e-8, atol=1e-12 * float(b[row].norm()))
    assert int(whole.iterations[4]) == 0
    assert not bool(whole.x[4].any())


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1.0, 1e15])
def test_the_units_of_the_right_hand_side_do_not_matter(scale: float) -> None:
    """Squares of 1e-30 are zero in float32; the answer must scale all the same."""
    m, b = systems(2, 8, 0).float(), normal((2, 8), 1).float()
    plain = conjugate_gradient(lambda x: (m @ x[..., None])[..., 0], b, tolerance=1e-5).x
    scaled = conjugate_gradient(lambda x: (m @ x[..., None])[..., 0], scale * b, tolerance=1e-5).x
    assert torch.allclose(scaled / scale, plain, rtol=1e-4, atol=1e-6)


def test_a_good_preconditioner_saves_iterations_and_changes_no_result() -> None:
    diagonal = torch.logspace(0, 5, 60, dtype=F64)
    m = torch.diag(diagonal) + 0.01 * systems(1, 60, 3)[0]
    b = normal((3, 60), 0)
    plain = conjugate_gradient(lambda x: x @ m, b, tolerance=1e-9, max_iterations=2000)
    quick = conjugate_gradient(
        lambda x: x @ m, b, tolerance=1e-9, max_iterations=2000, precondition=lambda r: r / diagonal
    )
    assert int(quick.iterations.max()) * 5 < int(plain.iterations.min())
    assert torch.allclose(quick.x, torch.linalg.solve(m, b.mT).mT, rtol=1e-6, atol=1e-9)


def test_one_tolerance_for_each_row() -> None:
    m, b = systems(1, 30, 0)[0], normal((1, 30), 0).expand(3, 30)
    asked = torch.tensor([1e-1, 1e-3, 1e-9], dtype=F64)
    result = conjugate_gradient(lambda x: x @ m, b, tolerance=asked)
    assert bool((result.residual <= asked).all())
    assert result.iterations.tolist() == sorted(result.iterations.tolist())
    assert int(result.iterations[0]) < int(result.iterations[2])


def test_a_row_with_nan_or_an_indefinite_matrix_stops_alone() -> None:
    m = torch.stack([torch.eye(6, dtype=F64) * 2, -torch.eye(6, dtype=F64), torch.eye(6, dtype=F64)])
    b = torch.ones(3, 6, dtype=F64)
    b[2, 0] = torch.nan
    result = conjugate_gradient(lambda x: (m @ x[..., None])[..., 0], b)
    assert torch.allclose(result.x[0], torch.full((6,), 0.5, dtype=F64))
    assert result.iterations.tolist() == [1, 0, 0]
    assert not bool(result.x[1].any())  # the best it has is where it began
    assert float(result.residual[1]) == 1.0


def test_a_stalled_row_keeps_its_digits() -> None:
    """Asked for more than float32 has: it must not wander off from the solution."""
    m, b = systems(1, 20, 0, 1e3)[0].float(), normal((2, 20), 0).float()
    result = conjugate_gradient(lambda x: x @ m, b, tolerance=0.0, max_iterations=500)
    exact = torch.linalg.solve(m.double(), b.double().mT).mT
    assert float((result.x - exact).norm() / exact.norm()) < 1e-4


def test_a_batch_of_scalars() -> None:
    b = torch.tensor([1.0, -4.0])
    assert torch.allclose(conjugate_gradient(lambda x: 2 * x, b).x, b / 2)


def test_errors_name_what_is_wrong() -> None:
    b = torch.ones(2, 3)
    with pytest.raises(ConfigError, match="tolerance"):
        conjugate_gradient(lambda x: x, b, tolerance=-1.0)
    with pytest.raises(ShapeMismatch, match="M must map"):
        conjugate_gradient(lambda x: x[:, :2], b)
