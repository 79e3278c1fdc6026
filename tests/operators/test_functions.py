"""Operators from functions: the adjoint is checked where it comes in, not where it does harm."""

import pytest
import torch
from torch import Tensor, nn

from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.operators import (
    FunctionLinear,
    FunctionOperator,
    dot_test,
    from_callables,
    from_deepinv,
    linearise,
)

F64 = torch.float64
SHAPE = (1, 8, 8)


def forward(x: Tensor) -> Tensor:
    return x.cumsum(-1)[..., ::2]


def adjoint(y: Tensor) -> Tensor:
    spread = torch.stack([y, torch.zeros_like(y)], dim=-1).flatten(-2)
    return spread.flip(-1).cumsum(-1).flip(-1)


def test_a_right_pair_is_taken() -> None:
    operator = from_callables(forward, adjoint, SHAPE, family="Sums")
    assert (operator.out_shape, operator.family) == ((1, 8, 4), "Sums")
    assert dot_test(operator) < 1e-14


@pytest.mark.parametrize(
    "wrong",
    [lambda y: 1.01 * adjoint(y), lambda y: adjoint(y).flip(-1), lambda y: y.repeat_interleave(2, -1)],
    ids=["factor", "order", "nearly"],
)
def test_a_wrong_adjoint_is_refused_with_the_remedy(wrong: object) -> None:
    with pytest.raises(ConfigError, match=r"adjoint does not belong.*got [0-9.e-]+\. .*from_callables"):
        from_callables(forward, wrong, SHAPE)  # type: ignore[arg-type]


def test_a_missing_adjoint_is_derived() -> None:
    given, derived = from_callables(forward, adjoint, SHAPE), from_callables(forward, None, SHAPE)
    y = torch.randn(3, 1, 8, 4, dtype=F64)
    assert torch.allclose(derived.adjoint(y), given.adjoint(y), rtol=0, atol=1e-14)


@pytest.mark.parametrize("function", [lambda x: x + 1, lambda x: x.square(), lambda x: x.abs()])
def test_a_function_that_is_not_linear_is_refused(function: object) -> None:
    with pytest.raises(ConfigError, match="expected a linear function"):
        from_callables(function, None, SHAPE)  # type: ignore[arg-type]


def test_shapes_and_complex_numbers_are_caught_where_they_come_in() -> None:
    with pytest.raises(ShapeMismatch, match="its adjoint gives"):
        from_callables(forward, lambda y: y, SHAPE)
    with pytest.raises(ConfigError, match="view_as_real"):
        from_callables(torch.fft.fft2, torch.fft.ifft2, SHAPE)
    with pytest.raises(ShapeMismatch, match="batch of 2 observations"):
        FunctionOperator(lambda x: x.sum(), SHAPE)
    with pytest.raises(ShapeMismatch, match="typical: expected one field"):
        FunctionOperator(lambda x: x, SHAPE, typical=torch.zeros(1, 8, 9))


@pytest.mark.parametrize(
    "function", [lambda x: x - x.mean(), lambda x: x + x.flip(0), lambda x: x / x.norm()]
)
def test_rows_that_see_each_other_are_refused(function: object) -> None:
    with pytest.raises(ConfigError, match="row by row"):
        FunctionOperator(function, SHAPE)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="row by row"):
        FunctionOperator(function, SHAPE, typical=torch.full(SHAPE, 280.0))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="row by row"):
        from_callables(function, None, SHAPE)  # type: ignore[arg-type]


def test_a_nonlinear_operator_is_used_through_its_jacobian() -> None:
    """Thermal radiance, `sigma T^4`, of temperatures near 280 K: `J = 4 sigma T^3`."""
    operator = FunctionOperator(
        lambda x: 5.67e-8 * x**4, SHAPE, family="Radiance", typical=torch.full(SHAPE, 280.0)
    )
    x = 280 + 10 * torch.randn(2, *SHAPE, dtype=F64)
    v = torch.randn_like(x)
    y, ahead, behind = linearise(operator, x)
    slope = 4 * 5.67e-8 * x**3
    assert torch.allclose(y, 5.67e-8 * x**4)
    assert torch.allclose(ahead(v), slope * v)
    assert torch.allclose(behind(v), slope * v)
    with pytest.raises(ShapeMismatch, match="acts on fields"):
        linearise(operator, x[..., :4])


class Physics(nn.Module):
    """What the bridge needs of `deepinv.physics.LinearPhysics`."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.arange(1.0, 9.0))
        self.factor = factor

    def A(self, x: Tensor) -> Tensor:
        return x * self.kernel.to(x)

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.factor * y * self.kernel.to(y)


class NonlinearPhysics:
    """`deepinv.physics.Physics` has no adjoint."""

    def A(self, x: Tensor) -> Tensor:
        return x.exp()


def test_the_bridge_from_deepinv() -> None:
    operator = from_deepinv(Physics(1.0), SHAPE)
    assert isinstance(operator, FunctionLinear)
    assert operator.family == "deepinv.Physics"
    assert dot_test(operator) < 1e-14
    assert [name for name, _ in operator.named_buffers()] == ["module.kernel"]  # so `.to(device)` moves it
    with pytest.raises(ConfigError, match="adjoint does not belong"):
        from_deepinv(Physics(0.9), SHAPE)
    assert isinstance(from_deepinv(NonlinearPhysics(), SHAPE), FunctionOperator)
    with pytest.raises(ConfigError, match="a physics with a method A"):
        from_deepinv(object(), SHAPE)


def test_real_deepinv_physics() -> None:
    deepinv = pytest.importorskip("deepinv")
    physics = deepinv.physics.Inpainting(img_size=SHAPE, mask=0.5)
    assert dot_test(from_deepinv(physics, SHAPE), dtype=torch.float32) < 1e-6
