"""A Gaussian fitted to latents, in its eigenbasis: what `scildm doctor` holds samplers to.

Latents of one set of existing cells (molecules of one size) form a group with its own mean and covariance. Nothing that
is reported depends on the eigenvectors, so that only means and variances along them are kept. The covariance is shrunk
towards a multiple of the identity by the oracle-approximating rule (Chen et al. 2010, doi:10.1109/TSP.2010.2053029),
which matters only where latents are few.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sciLDM.errors import DataError

__all__ = ["LatentGaussian", "Slope"]

_FORMAT = 1
_GROUPS = 4
"""Sets of existing cells (sizes of molecules) that get their own fit, most frequent first."""

_ROWS = 2048
"""Most latents from which a covariance larger than that is made, by its Gram matrix."""

_TAIL = 2.3263478740408408
"""99 % quantile of the standard normal."""


@final
@dataclass(frozen=True)
class Slope:
    """A condition's effect on the mean of the most frequent group, in its eigenbasis.

    Attributes:
        shift: Change of the latent's mean by one standard deviation of the condition.
        explained: Share of the total variance that goes with the condition.
    """

    shift: Float[Tensor, "dim"]
    explained: float


@final
@dataclass(frozen=True)
class LatentGaussian:
    """Gaussians of normalised latents in their eigenbases, one after the other for each set of existing cells.

    Attributes:
        mean: Mean along each direction.
        variances: Variance along each direction.
        weights: How much of the data each direction stands for (shares of the groups, times multiplicity).
        first: Number of directions of the most frequent group; they come first.
        kurtosis: Excess kurtosis of the latents along each direction, NaN where it is not known.
        tails: Share of latents beyond the Gaussian's 1 % and 99 % quantiles, averaged; 2 % for a Gaussian.
        count: Latents used.
        notes: How the fit was done.
        slopes: Conditions that were known with the latents.
    """

    mean: Float[Tensor, "direction"]
    variances: Float[Tensor, "direction"]
    weights: Float[Tensor, "direction"]
    first: int
    kurtosis: Float[Tensor, "direction"]
    tails: float
    count: int
    notes: tuple[str, ...] = ()
    slopes: Mapping[str, Slope] = field(default_factory=dict)

    @staticmethod
    def fit(
        z: Float[Tensor, "sample channel *shape"],
        mask: Bool[Tensor, "sample *shape"] | None = None,
        labels: Mapping[str, Tensor] | None = None,
    ) -> "LatentGaussian":
        """Fit to normalised latents. Latents of different sizes are fitted apart, by which cells exist.

        Where no set of cells is frequent enough, cells are taken for independent draws and the Gaussian is over the
        channels of one cell.

        Args:
            z: Normalised latents.
            mask: Cells that exist.
            labels: Scalar labels by name, NaN where missing; other ranks are ignored.

        Raises:
            DataError: Fewer than 16 latents, or values that are not finite.
        """
        if len(z) < 16 or not bool(z.isfinite().all()):
            raise DataError(f"a Gaussian needs at least 16 finite latents, got {len(z)}")
        groups, notes = _groups(z, mask)
        if not groups:
            assert mask is not None
            cells = z.movedim(1, -1)[mask]
            notes = ("no two latents have enough cells in common: cells are taken for independent draws",)
            groups, labels = [(torch.arange(len(cells)), cells)], {}
        parts = [_one(x) for _, x in groups]
        total = sum(len(x) for _, x in groups)
        shares = [len(x) / total for _, x in groups]
        index, x = groups[0]
        slopes = _slopes(x, {k: v[index] for k, v in (labels or {}).items() if v.ndim == 1}, parts[0])
        return LatentGaussian(
            mean=torch.cat([p.mean for p in parts]),
            variances=torch.cat([p.variances for p in parts]),
            weights=torch.cat([s * p.multiplicity for s, p in zip(shares, parts, strict=True)]),
            first=len(parts[0].mean),
            kurtosis=torch.cat([p.kurtosis for p in parts]),
            tails=sum(s * p.tails for s, p in zip(shares, parts, strict=True)),
            count=len(z),
            notes=notes,
            slopes=slopes,
        )

    def average(self, values: Float[Tensor, "direction"]) -> float:
        """Average over directions by their weights."""
        return float((self.weights * values).sum() / self.weights.sum())

    def state(self) -> dict[str, Any]:
        """Plain JSON, small enough for a card: no eigenvectors, since nothing reported depends on them."""

        def short(values: Tensor) -> list[float | None]:
            return [None if x != x else float(f"{x:.5g}") for x in values.tolist()]

        return {
            "format": _FORMAT, "count": self.count, "first": self.first, "tails": self.tails,
            "notes": list(self.notes), "mean": short(self.mean), "variances": short(self.variances),
            "weights": short(self.weights), "kurtosis": short(self.kurtosis),
            "slopes": {
                name: {"shift": short(s.shift), "explained": s.explained} for name, s in self.slopes.items()
            },
        }  # fmt: skip

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> "LatentGaussian":
        """Inverse of `state`, to five digits.

        Raises:
            DataError: Damaged, or written by a newer version.
        """

        def tensor(values: Sequence[float | None]) -> Tensor:
            return torch.tensor([float("nan") if x is None else x for x in values], dtype=torch.float64)

        try:
            if state["format"] != _FORMAT:
                raise ValueError(f"format {state['format']}")
            slopes = {
                name: Slope(tensor(s["shift"]), float(s["explained"])) for name, s in state["slopes"].items()
            }
            return LatentGaussian(
                tensor(state["mean"]), tensor(state["variances"]), tensor(state["weights"]), int(state["first"]),
                tensor(state["kurtosis"]), float(state["tails"]), int(state["count"]), tuple(state["notes"]), slopes,
            )  # fmt: skip
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"the stored description of the latents is damaged ({error!r})") from error


@final
@dataclass(frozen=True)
class _Part:
    mean: Tensor
    variances: Tensor
    multiplicity: Tensor
    axes: Tensor
    kurtosis: Tensor
    tails: float


def _one(x: Float[Tensor, "sample dim"]) -> _Part:
    """Mean, spectrum and shape of one group."""
    x = x.double()
    count, dim = x.shape
    mean = x.mean(0)
    if dim <= _ROWS:
        variances, axes = torch.linalg.eigh((x - mean).mT @ (x - mean) / count)
    else:  # fewer latents than directions: the others share what shrinkage gives them
        few = (x - mean)[torch.linspace(0, count - 1, min(count, _ROWS)).long()]
        squares, left = torch.linalg.eigh(few @ few.mT)
        squares, left = squares[1:].clamp_min(1e-12), left[:, 1:]  # the mean takes one
        variances, axes = squares / len(few), few.mT @ (left / squares.sqrt())
    variances = variances.clamp_min(0.0)
    # Chen et al. 2010, Eq. 23, with tr S^2 and tr^2 S from the spectrum
    total, square = float(variances.sum()), float(variances.square().sum())
    top = (1 - 2 / dim) * square + total**2
    bottom = (count + 1 - 2 / dim) * (square - total**2 / dim)
    shrinkage = min(1.0, top / bottom) if bottom > 0 else 1.0
    scores = (x - mean) @ axes
    unit = scores / scores.square().mean(0).clamp_min(1e-12).sqrt()
    shrunk = (1 - shrinkage) * variances + shrinkage * total / dim
    centre, kurtosis = mean @ axes, unit.pow(4).mean(0) - 3
    multiplicity = torch.ones_like(shrunk)
    rest = dim - len(shrunk)
    if rest > 0:
        left_over = float((mean - axes @ centre).norm()) / rest**0.5
        centre = torch.cat([centre, centre.new_tensor([left_over])])
        shrunk = torch.cat([shrunk, shrunk.new_tensor([shrinkage * total / dim])])
        multiplicity = torch.cat([multiplicity, multiplicity.new_tensor([float(rest)])])
        kurtosis = torch.cat([kurtosis, kurtosis.new_tensor([float("nan")])])
    tails = float((unit.abs() > _TAIL).double().mean())
    return _Part(centre, shrunk.clamp_min(1e-8), multiplicity, axes, kurtosis, tails)


def _slopes(x: Tensor, labels: Mapping[str, Tensor], part: _Part) -> dict[str, Slope]:
    found = {}
    x = x.double()
    for name, label in labels.items():
        there = label.isfinite() if label.is_floating_point() else torch.zeros(len(label), dtype=torch.bool)
        known = label[there].double()
        if len(known) < 64 or float(known.std()) == 0:
            continue
        unit = (known - known.mean()) / known.std()
        shift = (unit[:, None] * (x[there] - x[there].mean(0))).mean(0) @ part.axes
        shift = torch.nn.functional.pad(shift, (0, len(part.mean) - len(shift)))
        share = float(shift.square().sum() / (part.variances * part.multiplicity).sum())
        found[name] = Slope(shift, share)
    return found


def _groups(z: Tensor, mask: Tensor | None) -> tuple[list[tuple[Tensor, Tensor]], tuple[str, ...]]:
    """`(indices, latents [sample, existing values])` of the most frequent sets of cells, most frequent first."""
    if mask is None or bool(mask.all()):
        return [(torch.arange(len(z)), z.flatten(1))], ()
    rows: dict[bytes, list[int]] = {}
    for k, row in enumerate(np.packbits(mask.flatten(1).cpu().numpy(), axis=1)):
        rows.setdefault(row.tobytes(), []).append(k)
    groups, said = [], []
    for members in sorted(rows.values(), key=len, reverse=True)[:_GROUPS]:
        cells = mask[members[0]]
        dim = int(cells.sum()) * z.shape[1]
        if dim and len(members) >= max(64, 4 * dim):
            index = torch.tensor(members)
            groups.append((index, z[index][:, :, cells].flatten(1)))
            said.append(f"{int(cells.sum())} cells: {len(members):,}")
    used = sum(len(i) for i, _ in groups)
    note = f"latents of different sizes, fitted apart ({'; '.join(said)}), together {used / len(z):.1%}"
    return groups, (note,)
