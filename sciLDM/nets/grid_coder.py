r"""Encoder and decoder networks for fields on regular grids, and the geometry that both share.

encoder   patches -> [blocks, shrink] per level -> blocks -> latents
decoder   latents -> blocks -> [grow, blocks] per level -> patches
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import final, get_args

from jaxtyping import Float
from torch import Tensor, nn

from sciLDM.errors import ConfigError
from sciLDM.nets.convolutional import Edge, Grow, ResidualConv, Shrink, as_channels_last

__all__ = ["GridDecoder", "GridEncoder", "GridLayout"]


@final
@dataclass(frozen=True)
class GridLayout:
    """How a grid becomes a coarser one.

    Attributes:
        shape: Grid of the data.
        edges: What lies beyond the ends of each axis.
        steps: By how much each step shrinks each axis: the patches first, then the levels.
        widths: Channels of each level, finest first.
        blocks: Residual blocks of each level.

    Raises:
        ConfigError: Parts that do not fit each other.
    """

    shape: tuple[int, ...]
    edges: tuple[Edge, ...]
    steps: tuple[tuple[int, ...], ...]
    widths: tuple[int, ...]
    blocks: tuple[int, ...]

    def __post_init__(self) -> None:
        axes = len(self.shape)
        if not 1 <= axes <= 3 or min(self.shape) < 1:
            raise ConfigError(
                f"a grid autoencoder takes 1 to 3 axes of at least one cell, got shape {self.shape}"
            )
        if len(self.edges) != axes or not set(self.edges) <= set(get_args(Edge)):
            raise ConfigError(
                f"edges must be one of {', '.join(get_args(Edge))}, or one of them for each of the {axes} axes, got "
                f"{self.edges}"
            )
        if "pole" in self.edges and (self.edges.count("pole"), self.edges.count("circular")) != (1, 1):
            raise ConfigError(
                f"a 'pole' axis (latitude of a global grid) needs one 'circular' axis (longitude), got {self.edges}"
            )
        if any(len(step) != axes or min(step) < 1 for step in self.steps):
            raise ConfigError(
                f"patch and factors must be positive, one number for all axes or one for each of the {axes}, got "
                f"{self.steps}"
            )

    @property
    def scales(self) -> tuple[tuple[int, ...], ...]:
        """Data cells per cell of each level, one number an axis."""
        return tuple(zip(*(accumulate(axis, mul) for axis in zip(*self.steps, strict=True)), strict=True))

    @property
    def factor(self) -> tuple[int, ...]:
        """Data cells per latent cell, one number an axis."""
        return self.scales[-1]

    @property
    def halo(self) -> tuple[int, ...]:
        """How far influence reaches, in data cells (two convolutions a block); a multiple of the factor."""
        reach = [2 * sum(b * scale[a] for b, scale in zip(self.blocks, self.scales, strict=True))
                 for a in range(len(self.shape))]  # fmt: skip
        return tuple(-(-r // f) * f for r, f in zip(reach, self.factor, strict=True))

    def coarse(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Grid of the latents of fields of this size."""
        return tuple(-(-n // f) for n, f in zip(shape, self.factor, strict=True))


@final
class GridEncoder(nn.Module):
    """Fields to latents.

    Args:
        inputs: Channels in; the first `passed` of them are what the latents are to stand for.
        passed: Channels that the shortcuts carry; 0 for none, and an output of zero at the start.
        outputs: Channels out.
        layout: Geometry.
    """

    def __init__(self, inputs: int, passed: int, outputs: int, layout: GridLayout) -> None:
        super().__init__()
        widths, axes = layout.widths, len(layout.shape)
        self.stem = Shrink(inputs, widths[0], layout.steps[0], passed=passed)
        self.blocks = nn.ModuleList(
            [_blocks(w, n, layout) for w, n in zip(widths, layout.blocks, strict=True)]
        )
        self.shrink = nn.ModuleList(
            [Shrink(widths[k], widths[k + 1], step) for k, step in enumerate(layout.steps[1:])]
        )
        last = {"passed": widths[-1]} if passed else {"passed": 0, "gain": 0.0}
        self.head = Shrink(widths[-1], outputs, (1,) * axes, **last)

    def forward(self, x: Float[Tensor, "batch input *fine"]) -> Float[Tensor, "batch output *coarse"]:
        x = as_channels_last(self.stem(as_channels_last(x)))
        for level, blocks in enumerate(self.blocks):
            x = self.shrink[level - 1](x) if level else x
            x = blocks(x)
        return self.head(x)


@final
class GridDecoder(nn.Module):
    """Latents to fields.

    Args:
        inputs: Latent channels.
        outputs: Channels out.
        layout: Geometry.
        static: Channels of static fields, which enter at every level.
        guess: Channels of a first guess of the fields, which enters at the finest level and whose error is what comes
            out; 0 for none.
    """

    def __init__(
        self, inputs: int, outputs: int, layout: GridLayout, *, static: int = 0, guess: int = 0
    ) -> None:
        super().__init__()
        widths, axes = layout.widths, len(layout.shape)
        self.stem = Grow(inputs, widths[-1], (1,) * axes)
        self.blocks = nn.ModuleList(
            [_blocks(w, n, layout) for w, n in zip(widths, layout.blocks, strict=True)]
        )
        self.grow = nn.ModuleList(
            [Grow(widths[k + 1], widths[k], step) for k, step in enumerate(layout.steps[1:])]
        )
        self.static = nn.ModuleList(
            [Shrink(static, w, s, passed=0) for w, s in zip(widths, layout.scales, strict=True) if static]
        )
        self.guess = Shrink(guess, widths[0], layout.steps[0], passed=0) if guess else None
        self.head = Grow(
            widths[0], outputs, layout.steps[0], **({"shortcut": False, "gain": 0.0} if guess else {})
        )

    def forward(
        self,
        z: Float[Tensor, "batch latent *coarse"],
        static: Float[Tensor, "static *fine"] | None = None,
        guess: Float[Tensor, "batch guess *fine"] | None = None,
    ) -> Float[Tensor, "batch output *fine"]:
        x = self.stem(as_channels_last(z))
        for level in reversed(range(len(self.blocks))):
            if len(self.static) and static is not None:
                x = x + self.static[level](static[None])
            if level == 0 and self.guess is not None and guess is not None:
                x = x + self.guess(guess)
            x = self.blocks[level](as_channels_last(x))
            x = self.grow[level - 1](x) if level else x
        return self.head(x)


def _blocks(width: int, count: int, layout: GridLayout) -> nn.Sequential:
    return nn.Sequential(*[ResidualConv(width, layout.edges) for _ in range(count)])
