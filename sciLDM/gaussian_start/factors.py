r"""A structured covariance, for latents of any size: each cell has its own, and a few patterns span all cells.

    x = m + L f + e,    f ~ N(0, I),    e ~ N(0, Psi),    C = Psi + L L^T,

`Psi` block-diagonal with one `channels x channels` block a cell, `L` a few columns: factor analysis. In the blocks'
eigenbasis `D = alpha^2 Psi + sigma^2 I` is diagonal, and

    (D + alpha^2 L L^T)^-1 = D^-1 - alpha^2 D^-1 L (I + alpha^2 L^T D^-1 L)^-1 L^T D^-1.

Latents of aligned data (crops around one organ, phantoms, a map) are far from stationary: cells in the background have
next to no variance, and which channels go together depends on the place. On the two such data sets tried, blocks
alone left less error than models diagonal in spatial frequencies, and patterns add what lies between cells.
"""

from collections.abc import Iterable
from math import prod
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import ConfigError
from sciLDM.gaussian_start.factor_fit import LEAST_VARIANCE, Moments, patterns
from sciLDM.gaussian_start.start import LatentStart
from sciLDM.types import Cond

__all__ = ["FactorStart"]

LARGEST_BLOCKS = 2**26
"""Most numbers in the blocks' eigenbases, 256 MiB."""
_PATTERNS, _PATTERN_NUMBERS = 96, 2**21
_LEAST_REST = 0.05
"""Share of a cell's variance that patterns leave to it, at least."""


@final
class FactorStart(LatentStart):
    """`E[x | x_t]` of a Gaussian with a covariance for each cell and `L L^T` between cells.

    Args:
        channels: Latent channels.
        shape: Cells an axis, one to three axes.
        rank: Most patterns. Fewer are used where samples do not support them; None allows 96, and fewer for latents of
            more than 22 thousand numbers, so that they take 8 MiB at most.

    Raises:
        ConfigError: Blocks that are too large together.
    """

    basis: Tensor
    variances: Tensor
    loadings: Tensor

    def __init__(self, channels: int, shape: tuple[int, ...], *, rank: int | None = None) -> None:
        cells = prod(shape)
        size = channels * cells
        super().__init__(size)
        if size * channels > LARGEST_BLOCKS:
            raise ConfigError(
                f"gaussian_start: {cells:,} cells of {channels} channels need {size * channels:,} numbers, at most "
                f"{LARGEST_BLOCKS:,} are allowed; use fewer channels or a coarser latent, or set it to false"
            )
        if rank is None:
            rank = max(1, min(_PATTERNS, _PATTERN_NUMBERS // size))
        self.channels = channels
        self.register_buffer("basis", torch.eye(channels).repeat(cells, 1, 1))
        self.register_buffer("variances", torch.ones(size))  # cell by cell, in the basis of each
        self.register_buffer("loadings", torch.zeros(rank, size))

    @torch.no_grad()
    def fit(self, latents: Iterable[Tensor]) -> None:
        """Two moments, then the patterns in a few more passes; see `factor_fit`.

        Raises:
            DataError: Fewer than two latents.
        """
        found = Moments.of(latents, self.channels, self.mean.device)
        mean, covariance = found.cell_mean(), found.shrunk(found.best_weight())
        variances, axes = torch.linalg.eigh(covariance)
        scale = variances.clamp(min=LEAST_VARIANCE).sqrt()
        whiten, colour = axes / scale[:, None], axes * scale[:, None]
        strength = patterns(latents, mean, whiten.float(), len(self.loadings), found.count).double()
        # A cell keeps the covariance it was measured to have: what patterns explain is taken from its block.
        rest, within = torch.linalg.eigh(torch.eye(self.channels).to(mean) - strength @ strength.mT)
        rest = (within * rest.clamp(min=_LEAST_REST)[:, None]) @ within.mT
        variances, basis = torch.linalg.eigh(colour @ rest @ colour.mT)
        self.mean.copy_(mean.T.flatten())
        self.basis.copy_(basis)
        self.variances.copy_(variances.clamp(min=LEAST_VARIANCE).flatten())
        self.loadings.copy_((basis.mT @ colour @ strength).flatten(0, 1).T)

    def forward(
        self,
        x_t: Float[Tensor, "batch channel *shape"],
        alpha: Float[Tensor, "batch"],
        sigma: Float[Tensor, "batch"],
        cond: Cond | None,
    ) -> Float[Tensor, "batch channel *shape"]:
        return self.estimate(x_t, alpha, sigma)

    def correction(
        self,
        v: Float[Tensor, "batch size"],
        alpha: Float[Tensor, "batch"],
        sigma: Float[Tensor, "batch"],
        cond: Cond | None = None,
    ) -> Float[Tensor, "batch size"]:
        basis, variances, loadings = self.basis.to(v), self.variances.to(v), self.loadings.to(v)
        a, s = alpha[:, None] ** 2, sigma[:, None] ** 2
        inverse = 1 / (a * variances + s)
        u = inverse * _turned(v, basis)
        # Rows of one noise level, as all are in sampling, share their small system.
        levels, row = torch.unique(torch.stack([alpha, sigma], dim=1), dim=0, return_inverse=True)
        systems = torch.stack([self._system(level, variances, loadings) for level in levels])
        between = torch.linalg.solve(systems[row], (u @ loadings.T).double()).to(v)
        u = u - a * inverse * (between @ loadings)
        change = s * ((variances - 1) * u + (u @ loadings.T) @ loadings)
        return _turned_back(change, basis)

    def _system(self, level: Tensor, variances: Tensor, loadings: Tensor) -> Tensor:
        """`I + alpha^2 L^T D^-1 L`, in float64."""
        a, s = level.square()
        gram = (loadings * (a / (a * variances + s))) @ loadings.T
        return gram.double() + torch.eye(len(loadings), dtype=torch.float64, device=gram.device)


def _turned(v: Float[Tensor, "batch size"], basis: Float[Tensor, "cell channel axis"]) -> Tensor:
    """Each cell in its own basis, cells one after another."""
    by_cell = v.view(len(v), basis.shape[1], -1)
    return torch.einsum("bcf,fca->bfa", by_cell, basis).flatten(1)


def _turned_back(v: Float[Tensor, "batch size"], basis: Float[Tensor, "cell channel axis"]) -> Tensor:
    by_cell = v.view(len(v), *basis.shape[::2])
    return torch.einsum("bfa,fca->bcf", by_cell, basis).flatten(1)
