r"""Operators made of operators: one after another, or several looks at one field.

`Compose` and `Stack` are linear and have an adjoint; with a part that is not linear, use `NonlinearCompose` and
`NonlinearStack`. `compose` and `stack` choose.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.operators.base import LinearOperator, Operator, check_fields, check_observations
from sciLDM.operators.noise import Noise

__all__ = ["Compose", "NonlinearCompose", "NonlinearStack", "Stack", "StackNoise", "compose", "stack"]


@final
class Compose(LinearOperator):
    """`A_1 A_2 ... A_k`: the last operator acts on the field first.

    Args:
        operators: Outermost first; each takes what the next one gives.

    Raises:
        ConfigError: Fewer than one operator, or one that is not linear.
        ShapeMismatch: An operator that does not take what the next one gives.
    """

    def __init__(self, *operators: Operator) -> None:
        _check_chain(operators)
        _check_linear(operators, "Compose")
        super().__init__(operators[-1].in_shape, operators[0].out_shape, family=_nested(operators))
        self.operators = nn.ModuleList(operators)

    def forward(self, x: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch *observation"]:
        for operator in reversed(self.operators):
            x = operator(x)
        return x

    def adjoint(self, y: Float[Tensor, "batch *observation"]) -> Float[Tensor, "batch *field"]:
        for operator in self.operators:
            y = operator.adjoint(y)
        return y


@final
class NonlinearCompose(Operator):
    """`A_1(A_2(... A_k(x)))` with parts that need not be linear.

    Args:
        operators: Outermost first; each takes what the next one gives.

    Raises:
        ConfigError: Fewer than one operator.
        ShapeMismatch: An operator that does not take what the next one gives.
    """

    def __init__(self, *operators: Operator) -> None:
        _check_chain(operators)
        super().__init__(operators[-1].in_shape, operators[0].out_shape, family=_nested(operators))
        self.operators = nn.ModuleList(operators)

    def forward(self, x: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch *observation"]:
        for operator in reversed(self.operators):
            x = operator(x)
        return x


@final
class Stack(LinearOperator):
    """Several observations of one field as one flat vector: `y = (A_1 x, ..., A_k x)`.

    Args:
        operators: All of one field. `join` makes the vector from the parts' observations, `split` takes it apart, and
            `StackNoise` gives each part its own error.

    Raises:
        ConfigError: No operators, or one that is not linear.
        ShapeMismatch: Operators of different fields.
    """

    def __init__(self, *operators: Operator) -> None:
        _check_same_field(operators)
        _check_linear(operators, "Stack")
        super().__init__(operators[0].in_shape, _flat_shape(operators), family=_listed(operators))
        self.operators = nn.ModuleList(operators)

    def forward(self, x: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch value"]:
        check_fields(self, x)
        return self.join([operator(x) for operator in self.operators])

    def adjoint(self, y: Float[Tensor, "batch value"]) -> Float[Tensor, "batch *field"]:
        check_observations(self, y)
        parts = [o.adjoint(part) for o, part in zip(self.operators, self.split(y), strict=True)]
        return torch.stack(parts).sum(dim=0)

    def join(self, parts: Sequence[Tensor]) -> Float[Tensor, "batch value"]:
        """The parts' observations as one vector; a part with missing values holds NaN."""
        return _join(self.operators, parts)

    def split(self, y: Float[Tensor, "batch value"]) -> list[Tensor]:
        """The parts' observations, each in its own shape."""
        return _split(self.operators, y)


@final
class NonlinearStack(Operator):
    """`y = (A_1(x), ..., A_k(x))` with parts that need not be linear; otherwise as `Stack`.

    Args:
        operators: All of one field.

    Raises:
        ConfigError: No operators.
        ShapeMismatch: Operators of different fields.
    """

    def __init__(self, *operators: Operator) -> None:
        _check_same_field(operators)
        super().__init__(operators[0].in_shape, _flat_shape(operators), family=_listed(operators))
        self.operators = nn.ModuleList(operators)

    def forward(self, x: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch value"]:
        check_fields(self, x)
        return self.join([operator(x) for operator in self.operators])

    def join(self, parts: Sequence[Tensor]) -> Float[Tensor, "batch value"]:
        """The parts' observations as one vector; a part with missing values holds NaN."""
        return _join(self.operators, parts)

    def split(self, y: Float[Tensor, "batch value"]) -> list[Tensor]:
        """The parts' observations, each in its own shape."""
        return _split(self.operators, y)


@final
class StackNoise(Noise):
    """Each part of a stack with its own error model.

    Args:
        operator: The stack.
        noises: One for each part, in the units of its values.

    Raises:
        ConfigError: Another number of error models than of parts.
    """

    def __init__(self, operator: Stack | NonlinearStack, noises: Sequence[Noise]) -> None:
        if len(noises) != len(operator.operators):
            raise ConfigError(
                f"StackNoise: expected one error model for each of {len(operator.operators)} parts, got {len(noises)}"
            )
        self.operator, self.noises = operator, tuple(noises)

    def std(self, y: Float[Tensor, "batch value"]) -> Float[Tensor, "batch value"]:
        parts = zip(self.noises, self.operator.split(y), strict=True)
        return self.operator.join([noise.std(part) for noise, part in parts])


def compose(*operators: Operator) -> Compose | NonlinearCompose:
    """`A_1(A_2(...))`, linear when all parts are."""
    linear = [operator for operator in operators if isinstance(operator, LinearOperator)]
    return Compose(*linear) if len(linear) == len(operators) else NonlinearCompose(*operators)


def stack(*operators: Operator) -> Stack | NonlinearStack:
    """`(A_1(x), A_2(x), ...)` as one vector, linear when all parts are."""
    linear = [operator for operator in operators if isinstance(operator, LinearOperator)]
    return Stack(*linear) if len(linear) == len(operators) else NonlinearStack(*operators)


def _check_chain(operators: Sequence[Operator]) -> None:
    if not operators:
        raise ConfigError("compose: expected at least one operator")
    for outer, inner in pairwise(operators):
        if outer.in_shape != inner.out_shape:
            raise ShapeMismatch(
                f"compose: {type(outer).__name__} takes {outer.in_shape}, but {type(inner).__name__} before it gives "
                f"{inner.out_shape}; operators are named outermost first, as in A(B(x))"
            )


def _check_same_field(operators: Sequence[Operator]) -> None:
    fields = sorted({operator.in_shape for operator in operators})
    if not fields:
        raise ConfigError("stack: expected at least one operator")
    if len(fields) > 1:
        raise ShapeMismatch(f"stack: expected operators of one field, got fields of shape {fields}")


def _check_linear(operators: Sequence[Operator], name: str) -> None:
    for operator in operators:
        if not isinstance(operator, LinearOperator):
            raise ConfigError(
                f"{name}: {type(operator).__name__} is not linear; use Nonlinear{name}, or {name.lower()}(), which "
                "chooses"
            )


def _nested(operators: Sequence[Operator]) -> str:
    # A choice of places after an instrument is still that instrument, but not the same family as the bare one.
    return "(".join(o.family for o in operators) + ")" * (len(operators) - 1)


def _listed(operators: Sequence[Operator]) -> str:
    return "+".join(sorted({operator.family for operator in operators}))


def _flat_shape(operators: Sequence[Operator]) -> tuple[int]:
    return (sum(math.prod(operator.out_shape) for operator in operators),)


def _join(operators: nn.ModuleList, parts: Sequence[Tensor]) -> Tensor:
    if len(parts) != len(operators):
        raise ShapeMismatch(f"stack: expected {len(operators)} observations, got {len(parts)}")
    for operator, part in zip(_parts(operators), parts, strict=True):
        check_observations(operator, part)
    return torch.cat([part.reshape(len(part), -1) for part in parts], dim=1)


def _split(operators: nn.ModuleList, y: Tensor) -> list[Tensor]:
    shapes = [operator.out_shape for operator in _parts(operators)]
    parts = y.split([math.prod(shape) for shape in shapes], dim=1)
    return [part.reshape(len(y), *shape) for part, shape in zip(parts, shapes, strict=True)]


def _parts(operators: nn.ModuleList) -> list[Operator]:
    return [operator for operator in operators if isinstance(operator, Operator)]
