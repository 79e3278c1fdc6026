r"""Maps of large grids made of maps of small boxes, `y = sum_k put_k f_k(take_k x)`, at the memory of one box.

Derivatives are those of the same sum: each box is computed again when its derivative is asked for, so nothing is kept
from the way forwards but `x`. Reverse and forward mode, one order.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import torch
from torch import Tensor

__all__ = ["Box", "Piece", "piecewise", "take"]

Box: TypeAlias = tuple[tuple[int, int], ...]
"""First cell and end along each axis of the grid."""


@final
@dataclass(frozen=True)
class Piece:
    """Some boxes of equal size, computed as one batch.

    Attributes:
        read: Boxes of `x`; their rows follow each other, box by box.
        write: Where the results are added, one box for each.
        apply: From `[box * batch, channel, *read]` to `[box * batch, channel, *write]`.
    """

    read: Sequence[Box]
    write: Sequence[Box]
    apply: Callable[[Tensor], Tensor]


def piecewise(x: Tensor, pieces: Sequence[Piece], shape: Sequence[int]) -> Tensor:
    """The sum of the pieces, in their order.

    Args:
        x: `[batch, channel, *grid]`.
        pieces: What it is made of.
        shape: `(channel, *grid)` of the result.
    """
    return _Piecewise.apply(x, tuple(pieces), tuple(shape))


def take(x: Tensor, boxes: Sequence[Box]) -> Tensor:
    """Boxes of a grid, one after the other along the batch."""
    return torch.cat([_cut(x, box) for box in boxes]) if len(boxes) > 1 else _cut(x, boxes[0])


def _add(out: Tensor, boxes: Sequence[Box], parts: Tensor) -> None:
    """The transpose of `take`."""
    for box, part in zip(boxes, parts.chunk(len(boxes)), strict=True):
        _cut(out, box).add_(part)


def _cut(x: Tensor, box: Box) -> Tensor:
    for axis, (first, end) in enumerate(box):
        x = x.narrow(2 + axis, first, end - first)
    return x


@final
class _Piecewise(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, pieces: Sequence[Piece], shape: tuple[int, ...]) -> Tensor:
        out = x.new_zeros(len(x), *shape)
        for piece in pieces:
            _add(out, piece.write, piece.apply(take(x, piece.read)))
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.pieces, ctx.shape = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        total = torch.zeros_like(x)
        for piece in ctx.pieces:
            pullback = torch.func.vjp(piece.apply, take(x, piece.read))[1]
            _add(total, piece.read, pullback(take(gradient, piece.write))[0])
        return total, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, pieces: None, shape: None) -> Tensor:
        (x,) = ctx.saved_tensors
        total = x.new_zeros(len(x), *ctx.shape)
        for piece in ctx.pieces:
            point, direction = take(x, piece.read), take(tangent, piece.read)
            _add(total, piece.write, torch.func.jvp(piece.apply, (point,), (direction,))[1])
        return total
