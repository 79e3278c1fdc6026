"""Where a token stands on an N-d grid: learned tables or rotations."""

from collections.abc import Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sciLDM.errors import ShapeMismatch

__all__ = ["LearnedPositions", "RotaryPositions", "rotate"]


@final
class LearnedPositions(nn.Module):
    """A learned vector per index and axis, summed over the axes."""

    def __init__(self, shape: Sequence[int], width: int) -> None:
        super().__init__()
        self.tables = nn.ParameterList([nn.Parameter(0.02 * torch.randn(n, width)) for n in shape])

    def forward(self, shape: Sequence[int]) -> Float[Tensor, "tokens width"]:
        """Position code of every token of a grid that is not larger than the one trained on."""
        if any(n > len(table) for n, table in zip(shape, self.tables, strict=True)):
            largest = tuple(len(table) for table in self.tables)
            raise ShapeMismatch(
                f"grid {tuple(shape)} is larger than the trained {largest}; use rotary positions to extend"
            )
        total = 0
        for axis, (n, table) in enumerate(zip(shape, self.tables, strict=True)):
            view = [1] * len(shape)
            view[axis] = n
            total = total + table[:n].view(*view, -1)
        return total.flatten(0, -2)  # type: ignore[union-attr]


@final
class RotaryPositions(nn.Module):
    """Angles of rotary position codes; the channels of a head are shared out between the axes."""

    def __init__(self, axes: int, head_width: int, *, longest: float = 100.0) -> None:
        super().__init__()
        self.axes, self.pairs, self.longest = axes, head_width // 2, longest

    def forward(self, shape: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin `[tokens, 1, pairs]` of every token's angles."""
        per_axis = self.pairs // self.axes
        speeds = self.longest ** (-torch.arange(per_axis, device=device) / max(per_axis, 1))
        grid = torch.meshgrid(
            *[torch.arange(n, device=device, dtype=torch.float32) for n in shape], indexing="ij"
        )
        angles = torch.cat([g.flatten()[:, None] * speeds for g in grid], dim=-1)
        # Pairs that do not divide between the axes stay unrotated.
        angles = torch.nn.functional.pad(angles, (0, self.pairs - angles.shape[-1]))[:, None]
        return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate channel pairs of `x` `[batch, tokens, heads, 2 * pairs]`."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
