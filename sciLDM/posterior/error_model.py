r"""How far a decoded field is from the truth: the variance of `x - D(E(x))`, and random errors of that kind.

In the decoder's own normalised units, for channel `c` and grid point `i`,

    var_c(i) = a_c + b_c |grad x_hat(i)|^2,    a, b >= 0,

fitted on held-out fields: errors sit at edges. The two numbers of a channel maximise the likelihood of independent
Gaussian errors, which is iterated non-negative least squares with weights `1 / var^2`. Errors are taken as independent
from point to point, or, as an option, as smooth over the distance that was measured.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sciLDM.errors import DataError, ShapeMismatch

__all__ = ["AutoencoderError", "ErrorCovariance", "squared_gradient"]

PRIOR_GRID = 32
"""Most cells an axis of the stored prior variance; larger grids are averaged in blocks."""

_BINS, _LOWEST, _PER_DECADE = 128, -12.0, 8
_UNCORRELATED = 0.05
_LEAST_STEP = 1e-3


@final
@dataclass(frozen=True)
class ErrorCovariance:
    """`C = S B B^T S`: standard deviations `S`, and `B = I` (independent) or a smoothing with rows of unit norm.

    Attributes:
        std: In the data's units.
        reach: Width of the smoothing on each axis [grid steps], 0 for none; None for independent errors.
        root: Lower triangle `L` of a measured correlation `L L^T` of the values on the last axes, which takes the place
            of the smoothing there; None for none.
    """

    std: Float[Tensor, "batch channel *grid"]
    reach: Float[Tensor, "axes"] | None = None
    root: Float[Tensor, "channel value value"] | None = None

    def __call__(self, v: Float[Tensor, "batch channel *grid"]) -> Float[Tensor, "batch channel *grid"]:
        """`C v`."""
        return self.draw(self._smooth(self.std * v, transposed=True))

    def draw(self, eps: Float[Tensor, "batch channel *grid"]) -> Float[Tensor, "batch channel *grid"]:
        """`S B eps`: errors of covariance `C` from white noise."""
        return self.std * self._smooth(eps, transposed=False)

    def _smooth(self, v: Tensor, *, transposed: bool) -> Tensor:
        v = self._measured(v, transposed=transposed)
        if self.reach is None:
            return v
        for axis, width in enumerate(self.reach.tolist(), start=2):
            if width <= 0 or v.shape[axis] == 1:
                continue
            place = torch.arange(v.shape[axis], device=v.device, dtype=v.dtype)
            kernel = torch.exp(-0.5 * ((place[:, None] - place) / width).square())
            kernel = kernel / kernel.norm(dim=1, keepdim=True)
            v = (v.movedim(axis, -1) @ (kernel if transposed else kernel.mT)).movedim(-1, axis)
        return v

    def _measured(self, v: Tensor, *, transposed: bool) -> Tensor:
        if self.root is None:
            return v
        root = self.root.to(v)
        flat = v.reshape(v.shape[0], v.shape[1], -1, root.shape[1])
        return (flat @ (root if transposed else root.mT)).reshape(v.shape)


@final
class AutoencoderError(nn.Module):
    """Variance of what the autoencoder loses, and of the data themselves; all in normalised decoder units.

    Args:
        channels: Channels of the decoded field.
        grid: Shape of the stored prior variance, at most `PRIOR_GRID` an axis.
        block: Values on the last axes whose correlation is measured; 0 for none.

    Attributes:
        floor: `a` of each channel.
        slope: `b` of each channel.
        typical: Mean variance of each channel on the fields it was fitted on.
        reach: Width of the smoothing that gives neighbouring errors their measured correlation [grid steps].
        prior: Variance of the data at each point of a coarse grid, which "measured or generated" is judged against.
        root: Lower triangle `L` of the correlation `L L^T` of errors within the last axes, one for each channel; empty
            where it was not measured (`measure_correlation`).
    """

    floor: Tensor
    slope: Tensor
    typical: Tensor
    reach: Tensor
    prior: Tensor
    root: Tensor

    def __init__(self, channels: int, grid: tuple[int, ...], block: int = 0) -> None:
        super().__init__()
        for name in ("floor", "slope", "typical"):
            self.register_buffer(name, torch.zeros(channels))
        self.register_buffer("reach", torch.zeros(len(grid)))
        self.register_buffer("prior", torch.zeros(channels, *grid))
        self.register_buffer(
            "root", torch.zeros(channels if block else 0, block, block), persistent=block > 0
        )

    @staticmethod
    def fitted(pairs: Iterable[tuple[Tensor, Tensor]]) -> "AutoencoderError":
        """Fit from batches of `(truth, decoded)`, both `[batch, channel, *grid]`; NaN marks truth that is not known.

        One pass; memory of a few fields.

        Raises:
            DataError: No pairs, or decoded fields that are not finite.
            ShapeMismatch: Truth and decoded field of different shapes.
        """
        moments: _Moments | None = None
        for truth, decoded in pairs:
            if truth.shape != decoded.shape:
                raise ShapeMismatch(
                    f"autoencoder error: the truth has shape {tuple(truth.shape)}, the decoder gives "
                    f"{tuple(decoded.shape)}; give the codec a `target(fields)` (sciLDM.posterior.hooks)"
                )
            if not bool(decoded.isfinite().all()):
                raise DataError("autoencoder error: the decoder gives values that are not finite")
            moments = moments or _Moments(tuple(decoded.shape[1:]))
            moments.add(truth.double().cpu(), decoded.double().cpu())
        if moments is None:
            raise DataError("autoencoder error: no held-out fields to fit it on")
        return moments.model()

    def variance(self, decoded: Float[Tensor, "batch channel *grid"]) -> Float[Tensor, "batch channel *grid"]:
        """`a + b |grad x_hat|^2` of a decoded field."""
        return self._channel(self.floor, decoded) + self._channel(self.slope, decoded) * squared_gradient(
            decoded
        )

    def measure_correlation(self, pairs: Iterable[tuple[Tensor, Tensor]], *, most: int = 1024) -> None:
        """Correlation of errors within the last axes, from as many fields as there are; those of training serve.

        The block is made of the last axes, two at least (or all), that hold at most `most` values together; along the
        axes before it errors keep the measured reach. Larger grids are left as they are. The sample correlation of `n`
        errors of `m` values is shrunk towards independence with the weight `m / (n + m)` up to a tenth.

        Args:
            pairs: As in `fitted`.
            most: Values of a block.

        Raises:
            DataError: No pairs.
        """
        total, count = None, 0
        for truth, decoded in pairs:
            axes = _block_axes(tuple(decoded.shape[2:]), most)
            if not axes:
                return
            error = torch.where(truth.isfinite(), truth - decoded, 0.0).double().cpu().movedim(1, 0)
            error = error.flatten(-axes).flatten(1, -2)
            product = error.mT @ error
            total, count = product if total is None else total + product, count + error.shape[1]
        if total is None:
            raise DataError("autoencoder error: no fields to measure its correlation on")
        std = total.diagonal(dim1=1, dim2=2).clamp(min=torch.finfo(torch.float64).tiny).sqrt()
        size = total.shape[1]
        share = min(size / (count + size), 0.1)
        correlation = (1 - share) * total / (std[:, :, None] * std[:, None, :])
        correlation.diagonal(dim1=1, dim2=2).fill_(1.0)
        self.register_buffer("root", torch.linalg.cholesky(correlation).float().to(self.prior.device))

    def covariance(
        self, std: Float[Tensor, "batch channel *grid"], *, smooth: bool = False
    ) -> ErrorCovariance:
        """Of errors with these standard deviations, with the measured correlation or, if `smooth`, the reach."""
        if not len(self.root):
            return ErrorCovariance(std, self.reach if smooth else None)
        grid, block = tuple(std.shape[2:]), self.root.shape[1]
        within = [axes for axes in range(1, len(grid) + 1) if math.prod(grid[-axes:]) == block]
        if not within:  # a field of another size than it was measured on
            return ErrorCovariance(std, self.reach if smooth else None)
        reach = self.reach.clone()
        reach[-within[0] :] = 0.0
        return ErrorCovariance(std, reach, self.root)

    def typical_variance(
        self, decoded: Float[Tensor, "batch channel *grid"]
    ) -> Float[Tensor, "batch channel *grid"]:
        """The mean variance of each channel, shaped as `decoded`: what to expect before a field is known."""
        return self._channel(self.typical, decoded).expand_as(decoded)

    def prior_variance(
        self, decoded: Float[Tensor, "batch channel *grid"]
    ) -> Float[Tensor, "batch channel *grid"]:
        """Variance of the data without any observation, on the grid of `decoded`."""
        prior = self.prior.to(decoded)
        for axis, size in enumerate(decoded.shape[2:], start=1):
            place = (torch.arange(size, device=prior.device) * prior.shape[axis]) // size
            prior = prior.index_select(axis, place)
        return prior.expand_as(decoded)

    def _channel(self, value: Tensor, like: Tensor) -> Tensor:
        if like.shape[1] != len(value):
            raise ShapeMismatch(f"the error model has {len(value)} channels, the field {like.shape[1]}")
        return value.to(like).view(1, -1, *[1] * (like.ndim - 2))


def squared_gradient(x: Float[Tensor, "batch channel *grid"]) -> Float[Tensor, "batch channel *grid"]:
    """`|grad x|^2` per squared grid step: central differences, one-sided at the borders."""
    total = torch.zeros_like(x)
    for axis in range(2, x.ndim):
        if x.shape[axis] > 1:
            total = total + torch.gradient(x, dim=axis)[0].square()
    return total


# --- fitting -------------------------------------------------------------------------------------------------


@final
class _Moments:
    """Running sums, in float64: squared errors by squared gradient, neighbouring products, and the data's moments."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        channels, *grid = shape
        self.shape = shape
        self.bins = torch.zeros(3, channels, _BINS, dtype=torch.float64)  # count, gradient, squared error
        self.neighbours = torch.zeros(2, len(grid), dtype=torch.float64)  # product, mean square
        self.data = torch.zeros(3, *shape, dtype=torch.float64)  # count, sum, sum of squares

    def add(self, truth: Tensor, decoded: Tensor) -> None:
        if tuple(decoded.shape[1:]) != self.shape:
            raise ShapeMismatch(
                f"autoencoder error: fields of several shapes, {self.shape} and {tuple(decoded.shape[1:])}"
            )
        known = truth.isfinite()
        truth = torch.where(known, truth, 0.0)
        error = torch.where(known, truth - decoded, 0.0)
        gradient = squared_gradient(decoded)
        place = ((gradient.clamp(min=1e-30).log10() - _LOWEST) * _PER_DECADE).long().clamp(0, _BINS - 1)
        for k in range(self.shape[0]):
            there, where = known[:, k], place[:, k]
            parts = (torch.ones_like(error[:, k]), gradient[:, k], error[:, k].square())
            for total, part in zip(self.bins[:, k], parts, strict=True):
                total.index_add_(0, where[there], part[there])
        for axis in range(decoded.ndim - 2):
            size = decoded.shape[axis + 2]
            first, second = error.narrow(axis + 2, 0, size - 1), error.narrow(axis + 2, 1, size - 1)
            self.neighbours[0, axis] += (first * second).sum()
            self.neighbours[1, axis] += 0.5 * (first.square() + second.square()).sum()
        for total, part in zip(self.data, (known.double(), truth, truth.square()), strict=True):
            total += part.sum(dim=0)

    def model(self) -> AutoencoderError:
        count, total, square = self.data
        if float(count.sum()) < 2:
            raise DataError("autoencoder error: no held-out value is known")
        # One mean for a point and its channel's where a point was never seen.
        mean = total / count.clamp(min=1)
        variance = torch.where(count > 1, (square / count.clamp(min=1) - mean.square()).clamp(min=0), 0.0)
        grid = tuple(min(n, PRIOR_GRID) for n in self.shape[1:])
        model = AutoencoderError(self.shape[0], grid)
        model.prior.copy_(_block_means(variance, grid))
        for k in range(self.shape[0]):
            n, g, e = self.bins[:, k]
            a, b = _fit_line(n, g, e)
            model.floor[k], model.slope[k] = a, b
            model.typical[k] = float(e.sum() / n.sum().clamp(min=1))
        for axis, (product, power) in enumerate(self.neighbours.T.tolist()):
            rho = product / power if power > 0 else 0.0
            # Gaussian smoothing of white noise over w steps gives neighbours the correlation exp(-1 / (4 w^2)).
            rho = min(rho, 0.95)
            model.reach[axis] = math.sqrt(-1 / (4 * math.log(rho))) if rho > _UNCORRELATED else 0.0
        return model


def _fit_line(n: Tensor, g_sum: Tensor, e_sum: Tensor) -> tuple[float, float]:
    """`a, b >= 0` of `E[e^2] = a + b g` from bins: non-negative least squares, reweighted by `1 / (a + b g)^2`."""
    seen = n > 0
    n = n[seen]
    g, e = g_sum[seen] / n, e_sum[seen] / n
    mean = float((n * e).sum() / n.sum())
    if mean == 0:
        return 0.0, 0.0
    weight, a, b = n / n.sum(), 0.0, 0.0
    for _ in range(50):
        before = (a, b)
        a, b = _two_variables(weight, g, e)
        variance = (a + b * g).clamp(min=1e-3 * mean)
        weight = n / variance.square()
        weight = weight / weight.sum()
        if math.isclose(a, before[0], rel_tol=_LEAST_STEP) and math.isclose(
            b, before[1], rel_tol=_LEAST_STEP
        ):
            break
    return a, b


def _two_variables(w: Tensor, g: Tensor, e: Tensor) -> tuple[float, float]:
    """Non-negative least squares of `e` on `(1, g)`: the free solution, or the better of the two on an axis."""
    one, sg, sgg = float(w.sum()), float((w * g).sum()), float((w * g * g).sum())
    se, sge = float((w * e).sum()), float((w * g * e).sum())
    determinant = one * sgg - sg * sg
    if determinant > 1e-12 * one * sgg:
        a, b = (sgg * se - sg * sge) / determinant, (one * sge - sg * se) / determinant
        if a >= 0 and b >= 0:
            return a, b
        if b >= 0 and sgg > 0:
            return 0.0, max(sge / sgg, 0.0)
    return max(se / one, 0.0), 0.0


def _block_axes(grid: tuple[int, ...], most: int) -> int:
    """How many of the last axes hold at most `most` values together; 0 for one of several."""
    for axes in range(len(grid), 0, -1):
        if math.prod(grid[-axes:]) <= most:
            return axes if axes > 1 or len(grid) == 1 else 0
    return 0


def _block_means(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Averages over the blocks that `prior_variance` spreads out again."""
    for axis, cells in enumerate(grid, start=1):
        size = x.shape[axis]
        if size == cells:
            continue
        place = (torch.arange(size) * cells) // size
        summed = torch.zeros(*x.shape[:axis], cells, *x.shape[axis + 1 :], dtype=x.dtype)
        summed.index_add_(axis, place, x)
        x = summed / torch.bincount(place, minlength=cells).view(-1, *[1] * (x.ndim - axis - 1))
    return x
