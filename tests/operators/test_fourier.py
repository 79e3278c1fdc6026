"""Fourier sampling against the sum that defines it."""

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.operators import Fourier, operator_norm

F64 = torch.float64


def transform(size: int) -> Tensor:
    """The centred orthonormal transform of one axis, `exp(-2 pi i k r / n) / sqrt(n)` with 0 at `n // 2`."""
    place = torch.arange(size, dtype=F64) - size // 2
    return torch.exp(-2j * math.pi * place[:, None] * place / size) / math.sqrt(size)


def smooth_coils(count: int, *grid: int) -> Tensor:
    """Maps whose squares add up to one."""
    maps = torch.randn(count, *grid, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    return maps / maps.abs().square().sum(0).sqrt()


@given(rows=st.integers(1, 7), columns=st.integers(1, 7), channels=st.integers(1, 2))
def test_is_the_sum_that_defines_it(rows: int, columns: int, channels: int) -> None:
    """Even and odd sizes: where the origins lie decides the phase."""
    x = torch.randn(2, channels, rows, columns, dtype=F64)
    expected = torch.einsum("kr,bcrs,ls->bckl", transform(rows), x.to(torch.complex128), transform(columns))
    y = torch.view_as_complex(Fourier((channels, rows, columns))(x))
    assert torch.allclose(y, expected.flatten(2), rtol=0, atol=1e-10)


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("coils", [False, True])
def test_unitary_when_fully_sampled(axes: int, coils: bool) -> None:
    grid = (4, 5, 6)
    maps = smooth_coils(3, *grid[-axes:]) if coils else None
    operator = Fourier((2, *grid), axes=axes, coils=maps)
    x = torch.randn(2, 2, *grid, dtype=F64)
    assert torch.allclose(operator.adjoint(operator(x)), x, rtol=0, atol=1e-6)
    assert torch.allclose(
        operator(x).flatten(1).norm(dim=1), x.flatten(1).norm(dim=1), rtol=1e-6
    )  # so white noise in is white noise out
    assert operator_norm(operator) == pytest.approx(1.0, rel=1e-5)


def test_zero_frequency_is_in_the_middle_of_the_mask() -> None:
    mask = torch.zeros(6, 7, dtype=torch.bool)
    mask[3, 3] = True
    y = Fourier((1, 6, 7), mask)(torch.ones(1, 1, 6, 7))
    assert torch.allclose(y, torch.tensor([math.sqrt(42.0), 0.0]).expand_as(y), atol=1e-5)


def test_sampled_lines_broadcast_over_the_other_axis_and_over_slices() -> None:
    lines = torch.tensor([True, False, False, True, True, False, True, False])
    x = torch.randn(2, 1, 3, 5, 8, dtype=F64)
    part = Fourier((1, 3, 5, 8), lines[None])
    whole = torch.view_as_complex(Fourier((1, 3, 5, 8))(x)).reshape(2, 1, 3, 5, 8)
    assert part.out_shape == (1, 3, 5 * 4, 2)
    assert torch.allclose(
        torch.view_as_complex(part(x)).reshape(2, 1, 3, 5, 4), whole[..., lines], atol=1e-10
    )


def test_coils_weigh_the_image() -> None:
    maps = smooth_coils(3, 4, 6)
    x = torch.randn(2, 1, 4, 6, dtype=F64)
    seen = torch.einsum(
        "kr,crs,brs,ls->bckl", *(a.to(torch.complex128) for a in (transform(4), maps, x[:, 0], transform(6)))
    )
    y = torch.view_as_complex(Fourier((1, 4, 6), coils=maps)(x))
    assert torch.allclose(y[:, 0], seen.flatten(2), rtol=0, atol=1e-6)


def test_a_real_field_needs_only_half_of_the_frequencies() -> None:
    """Opposite frequencies are conjugate, so the operator on half of them still determines the field."""
    half = torch.ones(5, 5, dtype=torch.bool)
    half.view(-1)[13:] = False  # the middle, 12, is its own opposite
    operator = Fourier((1, 5, 5), half)
    columns = operator(torch.eye(25, dtype=F64).reshape(25, 1, 5, 5)).flatten(1)
    assert int(torch.linalg.matrix_rank(columns)) == 25


def test_errors() -> None:
    with pytest.raises(ConfigError, match="last 2 or 3 axes"):
        Fourier((1, 8, 8), axes=1)
    with pytest.raises(ConfigError, match="last 2 or 3 axes"):
        Fourier((1, 8, 8), axes=3)
    with pytest.raises(ConfigError, match=r"the zero frequency is at \(4, 4\)"):
        Fourier((1, 8, 8), torch.zeros(8, 8, dtype=torch.bool))
    with pytest.raises(ShapeMismatch, match="does not broadcast"):
        Fourier((1, 8, 8), torch.ones(8, 7, dtype=torch.bool))
    with pytest.raises(ShapeMismatch, match="expected complex coil maps"):
        Fourier((1, 8, 8), coils=smooth_coils(2, 8, 7))
