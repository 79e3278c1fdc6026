"""What a user sets about a grid autoencoder."""

from collections.abc import Sequence
from dataclasses import dataclass

from sciLDM.autoencoders.bottleneck import Bottleneck, KLBottleneck, SaturatingBottleneck
from sciLDM.errors import ConfigError
from sciLDM.nets.convolutional import Edge
from sciLDM.nets.grid_coder import GridLayout

__all__ = ["GridSettings"]


@dataclass(frozen=True)
class GridSettings:
    """Size and losses of a grid autoencoder.

    A factor is one number for all axes, or a list with one number an axis: `factors: [[1, 2, 2], 2]` keeps the first
    axis at the first level.

    Raises:
        ConfigError: A value out of range.
    """

    channels: int = 8
    """Latent channels."""

    patch: int | tuple[int, ...] = 2
    """Cells that become the channels of one cell before the first convolution; 1 convolves at full resolution."""

    factors: tuple[int | tuple[int, ...], ...] = (2,)
    """By how much each further level shrinks the grid; patch and factors multiply."""

    widths: tuple[int, ...] = (32, 64)
    """Channels of each level, finest first: one more than factors."""

    blocks: tuple[int, ...] = (1, 2)
    """Residual blocks of each level, in the encoder and again in the decoder."""

    noise: float = 0.05
    """Standard deviation of the noise added to codes in training, so that the decoder forgives a denoiser's errors."""

    bound: float = 8.0
    """Where codes saturate; small bounds cost extremes."""

    kl_weight: float | None = None
    """Weight of a KL divergence in place of noise and bound; null for those."""

    pca: int | None = None
    """Principal components that the autoencoder starts from: -1 for as many as there are latents, null for none. Only
    for data of one fixed grid."""

    block_pca: bool = False
    """Start from the principal components of blocks of cells instead: for fields of any size."""

    l1: float = 1.0
    """Weight of the mean absolute error, in standard deviations of the data."""

    mse: float = 0.0
    """Weight of the mean square error, in variances of the data."""

    gradient: float = 0.2
    """Weight of the absolute error of first differences."""

    spectral: float = 0.0
    """Weight of the error of the logarithmic power spectrum."""

    sharpen: float = 0.0
    """Share of the power of each wavenumber that decoded fields are given after the training (`spectral_gain`), at the
    cost of a little error: for complete data of one fixed grid. 0 leaves them as they are."""

    data_range: float = 1.0
    """Range of the data in their own units, for the peak signal-to-noise ratio."""

    def __post_init__(self) -> None:
        def check(name: str, good: bool, expected: str) -> None:
            if not good:
                raise ConfigError(f"autoencoder.{name} must be {expected}, got {getattr(self, name)!r}")

        check("channels", self.channels >= 1, "at least 1")
        check("widths", len(self.widths) == len(self.factors) + 1, f"{len(self.factors) + 1} numbers")
        check("blocks", len(self.blocks) == len(self.widths), f"{len(self.widths)} numbers")
        check("widths", min(self.widths) >= 1, "positive")
        check("blocks", min(self.blocks) >= 0, "0 or more")
        for name in ("noise", "l1", "mse", "gradient", "spectral"):
            check(name, getattr(self, name) >= 0, "0 or more")
        check("bound", self.bound > 0, "positive")
        check("data_range", self.data_range > 0, "positive")
        check("kl_weight", self.kl_weight is None or self.kl_weight >= 0, "0 or more, or null")
        check("sharpen", 0 <= self.sharpen <= 1, "in [0, 1]")
        check("pca", self.pca is None or self.pca == -1 or self.pca >= 1, "positive, -1 or null")
        check("block_pca", not (self.block_pca and self.pca is not None), "false with pca")
        check("l1", self.l1 + self.mse > 0, "positive, unless mse is")

    def layout(self, shape: Sequence[int], edges: Edge | Sequence[Edge]) -> GridLayout:
        """The geometry for a grid.

        Raises:
            ConfigError: Options that do not fit each other or the grid.
        """
        axes = len(shape)
        steps = tuple(
            (step,) * axes if isinstance(step, int) else tuple(step) for step in (self.patch, *self.factors)
        )
        edges = (edges,) * axes if isinstance(edges, str) else tuple(edges)
        return GridLayout(tuple(shape), edges, steps, tuple(self.widths), tuple(self.blocks))

    def bottleneck(self) -> Bottleneck:
        """What lies between encoder and decoder."""
        if self.kl_weight is not None:
            return KLBottleneck(self.kl_weight)
        return SaturatingBottleneck(self.noise, bound=self.bound)
