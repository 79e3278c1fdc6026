"""Mean, spread and principal components of training fields, in one pass over batches."""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.autoencoders.grid_fields import GridFields
from sciLDM.errors import DataError

__all__ = ["Components", "StreamingMoments", "StreamingPCA", "blocks_of"]


class Components(NamedTuple):
    """Principal components of weighted fields.

    Attributes:
        mean: Mean field.
        root_weight: What the fields' anomalies were multiplied by.
        directions: Orthonormal, strongest first.
        variance: Along each direction.
    """

    mean: Float[Tensor, "channel *shape"]
    root_weight: Float[Tensor, "channel *shape"]
    directions: Float[Tensor, "size modes"]
    variance: Float[Tensor, "modes"]


_EXACT = 2048
"""Largest number of values per field for which the whole covariance is kept."""


@final
class StreamingPCA:
    """Mean and leading principal components in one pass.

    Fields of up to 2,048 values: exact, from their covariance. Larger ones: a truncated SVD, updated batch by batch
    with the mean's correction (Ross et al. 2008, doi:10.1007/s11263-007-0075-7), with twice the modes asked for.

    Args:
        size: Values per field.
        modes: Components wanted.
    """

    def __init__(self, size: int, modes: int) -> None:
        self.size, self.modes, self.count = size, modes, 0
        self.mean = torch.zeros(size, dtype=torch.float64)
        self.exact = size <= _EXACT
        self._scatter = torch.zeros(size, size, dtype=torch.float64) if self.exact else None
        self._directions = torch.zeros(0, size)  # singular values times right singular vectors

    def update(self, x: Float[Tensor, "batch size"]) -> None:
        """Take in some fields."""
        x = x.double() if self.exact else x.float()
        batch, total = len(x), self.count + len(x)
        if not batch:
            return
        step = x.mean(dim=0).double() - self.mean
        centred = x - x.mean(dim=0)
        between = (self.count * batch / total) ** 0.5
        if self._scatter is not None:
            self._scatter += centred.T @ centred + between**2 * torch.outer(step, step)
        else:
            rows = torch.cat([self._directions, centred, between * step[None].float()])
            # The Gram matrix of the rows is small; its eigenvectors combine rows to directions.
            value, vector = torch.linalg.eigh((rows @ rows.T).double())
            keep = (value > 1e-10 * value[-1].clamp_min(1e-30)).nonzero().flatten()[-2 * self.modes :]
            self._directions = vector[:, keep].T.float() @ rows
        self.mean = self.mean + step * (batch / total)
        self.count = total

    def components(
        self, column_scale: Float[Tensor, "size"]
    ) -> tuple[Float[Tensor, "size modes"], Float[Tensor, "modes"]]:
        """Orthonormal directions of the fields times `column_scale`, strongest first, and the variances along them.

        Raises:
            DataError: Fewer than two fields, or values that are not finite.
        """
        if self.count < 2 or not bool(torch.isfinite(self.mean).all()):
            raise DataError(
                f"cannot find principal components of {self.count} fields (mean finite: "
                f"{bool(torch.isfinite(self.mean).all())}); give at least two, without NaN where the weight is positive"
            )
        column_scale = column_scale.double()
        if self._scatter is not None:
            scaled = self._scatter * column_scale * column_scale[:, None] / self.count
            variance, basis = torch.linalg.eigh(scaled)
            variance, basis = variance.flip(0), basis.flip(1)
        else:
            scaled = self._directions.double() * column_scale
            basis, singular, _ = torch.linalg.svd(scaled.T, full_matrices=False)
            variance = singular.square() / self.count
        keep = min(self.modes, self.count - 1, int((variance > 1e-10 * variance[0]).sum()))
        return basis[:, :keep], variance[:keep]


@final
class StreamingMoments:
    """What a grid autoencoder takes from its training data, in one pass.

    Args:
        first: The first batch; sets units for the arithmetic, and must be given to `update` too.
        modes: Principal components wanted; 0 for none.
        block: Cells of a block, to find components of blocks instead of whole fields; fields may then differ in size.
    """

    def __init__(self, first: GridFields, modes: int, *, block: Sequence[int] | None = None) -> None:
        channels = first.values.shape[1]
        self._sums = torch.zeros(3, channels, dtype=torch.float64)  # of weights, of values, of squares
        self._weight = torch.zeros(first.values.shape[1:], dtype=torch.float64)
        self.pca: StreamingPCA | None = None
        self._add(first)
        self._unit = self.channels()
        self._sums.zero_()
        self._block = block
        if modes:
            size = first.values[0].numel() if block is None else channels * prod(block)
            self.pca = StreamingPCA(size, modes)

    def update(self, fields: GridFields) -> None:
        """Take in a batch."""
        x, weight = self._add(fields)
        if self.pca is None:
            return
        offset, scale = (part.view(-1, *[1] * (x.ndim - 2)) for part in self._unit)
        x = (x - offset) / scale
        if self._block is not None:
            known = blocks_of((weight > 0).to(x), self._block).flatten(0, 1)
            whole = known.amin(dim=1) > 0
            # Where gaps are everywhere, blocks with some must do.
            used = whole if whole.double().mean() > 0.1 else known.mean(dim=1) >= 0.5
            x, known = blocks_of(x, self._block).flatten(0, 1)[used], known[used] > 0
            self.pca.update(torch.where(known, x, self.pca.mean))
            return
        # A gap says nothing: it is filled with the mean so far.
        x = torch.where(weight > 0, x, self.pca.mean.view(x.shape[1:]))
        self.pca.update(x.flatten(1))
        self._weight += weight.sum(dim=0)

    def channels(self) -> tuple[Float[Tensor, "channel"], Float[Tensor, "channel"]]:
        """Weighted mean and standard deviation of each channel.

        Raises:
            DataError: A channel without known values, or values that are not finite.
        """
        count, total, square = self._sums
        if bool((count <= 0).any()) or not bool(self._sums.isfinite().all()):
            raise DataError(
                f"cannot standardise the fields: channels with known values {(count > 0).tolist()}, finite "
                f"{total.isfinite().tolist()}; give missing values the weight 0"
            )
        mean = total / count
        std = (square / count - mean.square()).clamp_min(0.0).sqrt()
        return mean, torch.where(std > 1e-12 * mean.abs() + 1e-30, std, 1.0)

    def components(self, offset: Tensor, scale: Tensor) -> Components:
        """Principal components of the fields (or blocks of them) standardised by `offset` and `scale`."""
        assert self.pca is not None
        shape = self._weight.shape if self._block is None else (len(self._weight), *self._block)
        root = torch.ones(shape, dtype=torch.float64)
        if self._block is None:
            weight = self._weight / self._weight.mean()
            # Cells of hardly any area (at a pole) exist all the same and must be rebuilt from the coefficients.
            root = torch.where(weight > 0, weight.clamp_min(1e-2), 0.0).sqrt()
        view = (-1, *[1] * (len(shape) - 1))
        unit_offset, unit_scale = self._unit
        change = (unit_scale / scale).view(view).expand_as(root)
        mean = self.pca.mean.view_as(root) * change + ((unit_offset - offset) / scale).view(view)
        return Components(mean, root, *self.pca.components((root * change).flatten()))

    def _add(self, fields: GridFields) -> tuple[Tensor, Tensor]:
        x = fields.values.double().cpu()
        weight = torch.ones_like(x) if fields.weight is None else fields.weight.double().cpu().expand_as(x)
        x = torch.where(weight > 0, x, 0.0)
        axes = (0, *range(2, x.ndim))
        self._sums += torch.stack([(weight * x**power).sum(dim=axes) for power in range(3)])
        return x, weight


def blocks_of(
    x: Float[Tensor, "batch channel *shape"], block: Sequence[int]
) -> Float[Tensor, "batch cell value"]:
    """Blocks of cells side by side, each flattened with its channels; what fills no block at the ends is left out."""
    coarse = [n // b for n, b in zip(x.shape[2:], block, strict=True)]
    for axis, (n, b) in enumerate(zip(coarse, block, strict=True)):
        x = x.narrow(2 + axis, 0, n * b)
    x = x.reshape(*x.shape[:2], *(size for pair in zip(coarse, block, strict=True) for size in pair))
    axes = range(len(coarse))
    x = x.permute(0, *(2 + 2 * a for a in axes), 1, *(3 + 2 * a for a in axes))
    return x.reshape(x.shape[0], prod(coarse), -1)
