"""Linear maps whose derivatives torch does not know in every mode: they are the map itself and its adjoint."""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

__all__ = ["linear_map"]

Map = Callable[[Tensor], Tensor]


def linear_map(x: Tensor, apply: Map, adjoint: Map) -> Tensor:
    """`apply(x)`, differentiable to any order forwards and backwards. Both maps act row by row."""
    return _Linear.apply(x, apply, adjoint)


@final
class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, apply: Map, adjoint: Map) -> Tensor:
        return apply(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, ctx.map, ctx.map_adjoint = inputs

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Linear.apply(gradient, ctx.map_adjoint, ctx.map), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, apply: None, adjoint: None) -> Tensor:
        return _Linear.apply(tangent, ctx.map, ctx.map_adjoint)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, apply: Map, adjoint: Map
    ) -> tuple[Tensor, int]:
        rows = x.movedim(in_dims[0] or 0, 0)
        return _Linear.apply(rows.flatten(0, 1), apply, adjoint).unflatten(0, rows.shape[:2]), 0
