"""What a configuration names for the denoiser: a network whose channels, shape and conditions the data decide."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

from torch import nn

from sciLDM.conditions import Condition
from sciLDM.errors import ConfigError
from sciLDM.nets.dit import DiT
from sciLDM.nets.masked import Boundary
from sciLDM.nets.unet import UNet

__all__ = ["DiTNetwork", "Network", "UNetNetwork"]


class Network(ABC):
    """A network yet to be built: everything about it that the data do not decide."""

    @abstractmethod
    def build(self, channels: int, shape: Sequence[int], conditions: Sequence[Condition]) -> nn.Module:
        """The network, freshly initialised, called as `net(x, noise_level, cond, mask, previous)`.

        Args:
            channels: Latent channels, in and out.
            shape: The largest latent grid.
            conditions: Declared conditions.

        Raises:
            ConfigError: The options cannot serve this grid.
        """


@final
@dataclass(frozen=True)
class DiTNetwork(Network):
    """Diffusion transformer; see `sciLDM.nets.DiT`.

    Attributes:
        width: Model width; an even multiple of `heads`.
        depth: Number of blocks.
        heads: Attention heads.
        patch: Latent cells per token along each axis; 1 keeps every cell a token.
        positions: `learned` (a table per axis, up to the trained size) or `rotary` (extends to larger grids).
        block_heads: Attention heads of each block, where they are not `heads` (which then says how wide a head is:
            `width / heads`); 0 for a block without attention. `scildm prune` writes it.
        block_hidden: Hidden units of each block's perceptron, where they are not `4 * width`; 0 for none.
    """

    width: int = 256
    depth: int = 6
    heads: int = 4
    patch: int = 1
    positions: Literal["learned", "rotary"] = "learned"
    block_heads: tuple[int, ...] | None = None
    block_hidden: tuple[int, ...] | None = None

    def build(self, channels: int, shape: Sequence[int], conditions: Sequence[Condition]) -> nn.Module:
        return DiT(
            channels,
            shape,
            width=self.width,
            depth=self._blocks(),
            heads=self.heads,
            patch=self.patch,
            positions=self.positions,
            conditions=conditions,
        )

    def _blocks(self) -> list[tuple[int, int]]:
        """Heads and hidden units of each block."""
        heads = [self.heads] * self.depth if self.block_heads is None else list(self.block_heads)
        hidden = [4 * self.width] * self.depth if self.block_hidden is None else list(self.block_hidden)
        for name, sizes in (("block_heads", heads), ("block_hidden", hidden)):
            if len(sizes) != self.depth or min(sizes, default=0) < 0:
                raise ConfigError(
                    f"{name}: expected {self.depth} numbers of at least 0, one a block, got {sizes}"
                )
        return list(zip(heads, hidden, strict=True))


@final
@dataclass(frozen=True)
class UNetNetwork(Network):
    """Convolutional U-Net with attention at chosen levels; see `sciLDM.nets.UNet`.

    Attributes:
        widths: Channels of each level, finest first; each further level halves the grid.
        blocks_per_level: Residual blocks on the way down at each level (one more on the way up).
        attention_levels: Levels with self-attention and attention to token conditions; 0 is the finest, -1 the
            coarsest.
        heads: Attention heads.
        boundary: What lies beyond the grid's edge, for all axes or one entry an axis: `zeros`, `reflect`,
            `replicate`, or `circular` for a periodic axis such as longitude.
    """

    widths: tuple[int, ...] = (64, 128, 256)
    blocks_per_level: int = 2
    attention_levels: tuple[int, ...] = (-1,)
    heads: int = 4
    boundary: Boundary | tuple[Boundary, ...] = "zeros"

    def build(self, channels: int, shape: Sequence[int], conditions: Sequence[Condition]) -> nn.Module:
        return UNet(
            channels,
            shape,
            widths=self.widths,
            blocks_per_level=self.blocks_per_level,
            attention_levels=self.attention_levels,
            heads=self.heads,
            boundary=self.boundary,
            conditions=conditions,
        )
