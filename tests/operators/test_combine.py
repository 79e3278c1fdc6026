"""Masks, matrices, and operators made of operators."""

import pytest
import torch

from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.operators import (
    AxisMap,
    BlockMean,
    Blur,
    Compose,
    Fourier,
    FunctionOperator,
    GaussianNoise,
    Identity,
    LinearMap,
    LinearOperator,
    Mask,
    NonlinearCompose,
    NonlinearStack,
    Select,
    Stack,
    StackNoise,
    ThickSlice,
    TransmissionNoise,
    compose,
    linearise,
    stack,
)

F64 = torch.float64
SHAPE = (2, 4, 6)


def field(count: int = 2) -> torch.Tensor:
    return torch.randn(count, *SHAPE, dtype=F64)


def test_a_mask_gathers_what_it_marks_and_puts_it_back() -> None:
    x, mask = field(), torch.rand(SHAPE) > 0.5
    operator = Mask(mask)
    assert torch.equal(operator(x), torch.stack([row[mask] for row in x]))
    assert torch.equal(operator.adjoint(operator(x)), x * mask)
    grid = torch.rand(4, 6) > 0.5
    assert torch.equal(Mask(grid, SHAPE)(x), Mask(grid.expand(SHAPE).contiguous())(x))


def test_the_whole_field_and_a_mask_are_one_family() -> None:
    """A calibration for gaps must not depend on how the gaps were written down."""
    x = field()
    assert torch.equal(Identity(SHAPE)(x), x)
    assert Identity(SHAPE).family == Mask(torch.ones(SHAPE, dtype=torch.bool)).family


def test_select_takes_entries_in_the_order_asked_for() -> None:
    x = field()
    assert torch.equal(Select(SHAPE, [1])(x), x[:, 1:])
    assert torch.equal(Select(SHAPE, [5, 0, 2], axis=-1)(x), x[..., [5, 0, 2]])


def test_matrices_dense_sparse_and_along_an_axis_agree() -> None:
    x = field()
    matrix = torch.randn(6, 48, dtype=F64) * (torch.rand(6, 48) > 0.7)
    expected = (x.flatten(1) @ matrix.mT).reshape(2, 2, 3)
    for layout in (matrix, matrix.to_sparse()):
        assert torch.allclose(LinearMap(layout, SHAPE, out_shape=(2, 3))(x), expected, rtol=0, atol=1e-12)
    mixing = torch.tensor([[0.5, 0.5]], dtype=F64)
    assert torch.allclose(AxisMap(mixing, SHAPE, axis=0)(x)[:, 0], x.mean(1), atol=1e-12)
    block = torch.kron(torch.eye(2), torch.full((1, 3), 1 / 3)).double()
    assert torch.allclose(AxisMap(block, SHAPE, axis=-1)(x), BlockMean(SHAPE, (1, 3))(x), atol=1e-6)


def test_compose_applies_the_last_operator_first() -> None:
    x = field()
    slices = ThickSlice(SHAPE, axis=-1, spacing=1.0, thickness=2.0)
    seen = Mask(torch.rand(slices.out_shape) > 0.5)
    both = compose(seen, slices)
    assert isinstance(both, Compose)
    assert torch.equal(both(x), seen(slices(x)))
    assert torch.equal(both.adjoint(both(x)), slices.adjoint(seen.adjoint(both(x))))
    assert (both.in_shape, both.out_shape) == (SHAPE, seen.out_shape)
    assert both.family == "Mask(ThickSlice)"


def test_stack_splits_what_it_joins() -> None:
    """Three directions of thick slices of one volume, as in multi-stack fusion."""
    parts = [ThickSlice(SHAPE, axis=1, spacing=1, thickness=2), Blur(SHAPE, 1.0), Fourier(SHAPE)]
    whole, x = stack(*parts), field()
    assert isinstance(whole, Stack)
    assert whole.out_shape == (2 * 2 * 6 + 48 + 2 * 24 * 2,)
    for part, values in zip(parts, whole.split(whole(x)), strict=True):
        assert torch.equal(part(x), values)
    assert torch.equal(whole.join(whole.split(whole(x))), whole(x))
    assert whole.family == "Blur+Fourier+ThickSlice"
    assert stack(parts[1], Blur(SHAPE, 2.0)).family == "Blur"


def test_each_part_of_a_stack_has_its_own_noise() -> None:
    whole = Stack(Mask(torch.ones(SHAPE, dtype=torch.bool)), Select(SHAPE, [0]))
    noise = StackNoise(whole, [GaussianNoise(0.3), TransmissionNoise(1e4)])
    y = whole(field().abs())
    exact, counted = whole.split(noise.std(y))
    assert torch.allclose(exact, torch.full_like(exact, 0.3))
    assert torch.allclose(counted, (whole.split(y)[1].exp() / 1e4).sqrt())
    with pytest.raises(ConfigError, match="one error model for each of 2 parts"):
        StackNoise(whole, [GaussianNoise(0.3)])


def test_a_part_that_is_not_linear_makes_the_whole_not_linear() -> None:
    """Closure quantities: wind speed from two components, after a mask."""
    speed = FunctionOperator(lambda x: x.square().sum(1, keepdim=True).sqrt(), SHAPE, family="Speed")
    chain = compose(Mask(torch.ones(1, 4, 6, dtype=torch.bool)), speed)
    several = stack(speed, Identity(SHAPE))
    assert isinstance(chain, NonlinearCompose)
    assert isinstance(several, NonlinearStack)
    assert not isinstance(chain, LinearOperator)
    assert (chain.family, several.family) == ("Mask(Speed)", "Mask+Speed")
    x, v = field(), field()
    y, ahead, behind = linearise(chain, x)
    assert torch.allclose(y, x.square().sum(1).sqrt().flatten(1))
    direction = (x * v).sum(1).flatten(1) / y  # d|x| = x . v / |x|
    assert torch.allclose(ahead(v), direction, rtol=1e-9)
    assert torch.allclose((behind(y) * v).flatten(1).sum(1), (y * direction).sum(1), rtol=1e-9)
    assert torch.equal(several.join(several.split(several(x))), several(x))
    for wrong in (Compose, Stack):
        with pytest.raises(ConfigError, match=f"use Nonlinear{wrong.__name__}"):
            wrong(speed)  # type: ignore[arg-type]


def test_errors() -> None:
    blur = Blur(SHAPE, 1.0)
    with pytest.raises(ShapeMismatch, match="outermost first"):
        compose(blur, BlockMean(SHAPE, 2))
    with pytest.raises(ShapeMismatch, match="operators of one field"):
        stack(blur, Blur((1, 4, 6), 1.0))
    with pytest.raises(ConfigError, match="at least one operator"):
        stack()
    with pytest.raises(ConfigError, match="at least one operator"):
        compose()
    with pytest.raises(ShapeMismatch, match="expected 2 observations, got 1"):
        Stack(blur, blur).join([blur(field())])
    with pytest.raises(ConfigError, match="nothing is observed"):
        Mask(torch.zeros(SHAPE, dtype=torch.bool))
    with pytest.raises(ShapeMismatch, match="does not broadcast"):
        Mask(torch.ones(3, 6, dtype=torch.bool), SHAPE)
    for entries in ([], [0, 0], [2], [-1]):
        with pytest.raises(ConfigError, match="different entries between 0 and 1"):
            Select(SHAPE, entries)
    with pytest.raises(ShapeMismatch, match=r"expected a matrix \(5, 48\)"):
        LinearMap(torch.ones(5, 47), SHAPE)
    with pytest.raises(ConfigError, match="finite real entries"):
        LinearMap(torch.full((5, 48), torch.nan), SHAPE)
    with pytest.raises(ShapeMismatch, match="6 columns for axis 2"):
        AxisMap(torch.ones(2, 5), SHAPE, axis=-1)
