"""Every operator: adjoint, rows on their own, derivatives, norm. New ones are added to `make`."""

from typing import final

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import sciLDM.operators as package
from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.operators import (
    AxisMap,
    BlockMean,
    Blur,
    Compose,
    Fourier,
    FunctionLinear,
    Identity,
    LinearMap,
    LinearOperator,
    Mask,
    PointSampling,
    Select,
    Stack,
    ThickSlice,
    dot_test,
    linearise,
    operator_norm,
)

F32, F64 = torch.float32, torch.float64
NAMES = [
    "Identity",
    "Mask",
    "Select",
    "BlockMean",
    "ThickSlice",
    "Blur",
    "PointSampling",
    "Fourier",
    "LinearMap",
    "Sparse",
    "AxisMap",
    "Compose",
    "Stack",
    "FunctionLinear",
    "Derived",
]


def make(name: str, seed: int) -> LinearOperator:
    """An operator with random sizes and settings."""
    generator = torch.Generator().manual_seed(seed)

    def size(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (1,), generator=generator))

    def rand(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    three = bool(size(0, 1))
    shape = (size(1, 3), *(size(2, 4) * 2 for _ in range(3 if three else 2)))
    axis = size(1, len(shape) - 1)
    match name:
        case "Identity":
            return Identity(shape)
        case "Mask":
            seen = rand(*shape[1:]) > 0.5
            seen.view(-1)[0] = True
            return Mask(seen, shape)
        case "Select":
            return Select(shape, torch.randperm(shape[axis], generator=generator)[:2].tolist(), axis=axis)
        case "BlockMean":
            weights = rand(shape[-2], 1) + 0.1 if size(0, 1) else None
            return BlockMean(shape, [size(1, 2) for _ in shape[1:]], weights=weights)
        case "ThickSlice":
            return ThickSlice(
                shape,
                axis=axis,
                spacing=0.7,
                thickness=0.5 + float(rand(1)),
                gap=float(rand(1)),
                profile="gauss" if size(0, 1) else "box",
                offset=0.2,
            )
        case "Blur":
            widths = (2 * rand(len(shape) - 1)).tolist()
            return Blur(shape, widths, spacing=0.8, periodic=[bool(size(0, 1)) for _ in widths])
        case "PointSampling":
            axes = size(1, len(shape) - 1)
            last = torch.tensor(shape[-axes:]) - 1
            return PointSampling(shape, rand(size(1, 9), axes) * last, periodic=bool(size(0, 1)))
        case "Fourier":
            axes = 3 if three else 2
            seen = rand(*shape[-axes:]) > 0.6
            seen.view(-1)[0] = True
            coils = torch.complex(rand(2, *shape[-axes:]), rand(2, *shape[-axes:])) if size(0, 1) else None
            return Fourier(shape, seen, axes=axes, coils=coils)
        case "LinearMap" | "Sparse":
            columns = torch.Size(shape).numel()
            matrix = rand(6, columns) - 0.5
            matrix = (matrix * (matrix > 0.3)).to_sparse() if name == "Sparse" else matrix
            return LinearMap(matrix, shape, out_shape=(2, 3))
        case "AxisMap":
            return AxisMap(rand(3, shape[axis]), shape, axis=axis)
        case "Compose":
            inner = make("ThickSlice", seed)
            return Compose(Mask(rand(*inner.out_shape) < 2), inner, make_on("Blur", inner.in_shape))
        case "Stack":
            inner = make("PointSampling", seed)
            return Stack(inner, make_on("Fourier", inner.in_shape), make_on("Blur", inner.in_shape))
        case "FunctionLinear":
            return FunctionLinear(lambda x: 3 * x.flip(-1), lambda y: 3 * y.flip(-1), shape)
        case "Derived":
            return FunctionLinear(lambda x: x.cumsum(-1).roll(1, -2), None, shape)
    raise AssertionError(name)


def make_on(name: str, shape: tuple[int, ...]) -> LinearOperator:
    return Fourier(shape) if name == "Fourier" else Blur(shape, 0.7)


def field(operator: LinearOperator, count: int, seed: int, dtype: torch.dtype = F64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *operator.in_shape, generator=generator, dtype=dtype)


def dense(operator: LinearOperator) -> Tensor:
    """The operator as a matrix, column by column."""
    size = torch.Size(operator.in_shape).numel()
    return operator(torch.eye(size, dtype=F64).reshape(size, *operator.in_shape)).flatten(1).mT


def test_every_linear_operator_of_the_package_is_tested_here() -> None:
    elsewhere = {"LinearOperator", "ParallelBeam", "FanBeam", "ConeBeam"}
    found = {
        name
        for name in package.__all__
        if isinstance(getattr(package, name), type) and issubclass(getattr(package, name), LinearOperator)
    }
    assert found - elsewhere <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15)
@given(seed=st.integers(0, 9999))
def test_the_adjoint_belongs_to_the_operator(name: str, seed: int) -> None:
    operator = make(name, seed)
    assert dot_test(operator, seed=seed, dtype=F32) < 1e-5
    assert dot_test(operator, seed=seed) < 1e-10


@pytest.mark.parametrize("name", NAMES)
def test_the_adjoint_is_the_transposed_matrix(name: str) -> None:
    """Column by column, so that nothing can hide from an inner product."""
    operator = make(name, 1)
    matrix = dense(operator)
    size = matrix.shape[0]
    back = operator.adjoint(torch.eye(size, dtype=F64).reshape(size, *operator.out_shape)).flatten(1)
    assert torch.allclose(back, matrix, rtol=0, atol=1e-12)
    assert operator_norm(operator, iterations=100) == pytest.approx(
        float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-2
    )


@pytest.mark.parametrize("name", NAMES)
def test_rows_do_not_mix_and_the_precision_is_kept(name: str) -> None:
    operator = make(name, 2)
    x = field(operator, 3, 0)
    y = operator(x)
    assert y.shape == (3, *operator.out_shape)
    assert y.dtype == F64
    assert operator(x.float()).dtype == F32
    assert torch.allclose(operator(x[1:2])[0], y[1], rtol=1e-12, atol=1e-14)
    assert torch.allclose(operator.adjoint(y[1:2])[0], operator.adjoint(y)[1], rtol=1e-12, atol=1e-14)
    noise = field(operator, 3, 1)
    assert torch.allclose(operator(2 * x - noise), 2 * y - operator(noise), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_are_the_operator_and_its_adjoint(name: str) -> None:
    """Posterior samplers differentiate through operator and decoder at once."""
    operator = make(name, 3)
    x, v = field(operator, 2, 0), field(operator, 2, 1)
    y, tangent = torch.func.jvp(operator, (x,), (v,))
    assert torch.allclose(tangent, operator(v), rtol=1e-10, atol=1e-12)
    _, pullback = torch.func.vjp(operator, x)
    assert torch.allclose(pullback(y)[0], operator.adjoint(y), rtol=1e-10, atol=1e-12)
    value, ahead, behind = linearise(operator, x)
    assert torch.equal(value, y)
    assert torch.equal(ahead(v), operator(v))
    assert torch.equal(behind(y), operator.adjoint(y))


@pytest.mark.parametrize("name", NAMES)
def test_another_grid_is_refused(name: str) -> None:
    operator = make(name, 4)
    with pytest.raises(ShapeMismatch, match="acts on fields of shape"):
        operator(torch.zeros(1, *operator.in_shape, 2))
    with pytest.raises(ShapeMismatch, match="gives observations of shape"):
        operator.adjoint(torch.zeros(1, operator.out_shape[0] + 1, *operator.out_shape[1:]))


@pytest.mark.parametrize("name", NAMES)
def test_constants_move_with_the_module(name: str) -> None:
    """`.to(dtype)` must not lose an imaginary part, a sparse layout or the result."""
    operator = make(name, 5)
    x = field(operator, 2, 0)
    before = operator(x)
    assert torch.allclose(operator.to(F64)(x), before, rtol=1e-6, atol=1e-6)
    assert dot_test(operator) < 1e-10


@pytest.mark.parametrize("name", [name for name in NAMES if name != "Sparse"])
def test_no_constant_is_left_behind_on_another_device(name: str) -> None:
    """On the meta device any tensor that stayed on the CPU is an error, as it would be on a GPU."""
    operator = make(name, 6).to("meta")
    y = operator(torch.zeros(2, *operator.in_shape, device="meta"))
    assert y.is_meta
    assert operator.adjoint(y).is_meta


@final
class Wrong(LinearOperator):
    """A mistake in the adjoint: a factor, a shift or a null space."""

    def __init__(self, mistake: str) -> None:
        super().__init__((1, 400), (1, 400))
        self.mistake = mistake

    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(-1) / 20

    def adjoint(self, y: Tensor) -> Tensor:
        right = y.flip(-1).cumsum(-1).flip(-1) / 20
        if self.mistake == "factor":
            return 1.001 * right
        if self.mistake == "shift":
            return right.roll(1, -1)
        return torch.where(torch.arange(400) == 7, 0.0, right)


@pytest.mark.parametrize("mistake", ["factor", "shift", "hole"])
@pytest.mark.parametrize("seed", range(5))
def test_the_dot_test_finds_a_wrong_adjoint(mistake: str, seed: int) -> None:
    assert dot_test(Wrong(mistake), seed=seed, dtype=F32) > 1e-4


def test_the_norm_of_nothing_is_zero_and_needs_an_iteration() -> None:
    nothing = LinearMap(torch.zeros(2, 3), (1, 3))
    assert operator_norm(nothing) == 0.0
    assert dot_test(nothing) == 0.0
    with pytest.raises(ConfigError, match="at least one iteration"):
        operator_norm(nothing, iterations=0)
