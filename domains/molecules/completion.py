r"""What else goes with a request: `p(size, open properties | properties asked for)`.

A network asked for one property alone must find out by itself what kind of molecule has it; drug-likeness, say, comes
with few structural alerts and few rotatable bonds. Here the properties that a request leaves open are drawn from their
distribution in the training set, given those asked for, and the network is asked for all of them:

    p(x | asked) = sum_open p(x | asked, open) p(open | asked)

so that where both factors are exact, molecules are distributed as they were without. The second is a location model
(Olkin & Tate, Annals of Mathematical Statistics 1961, doi:10.1214/aoms/1177705052): each combination of counts (heavy
atoms, and every property that counts something) that the training set has is a cell with its share of molecules, and
within a cell the other properties are Gaussian, with a mean and a covariance of their own. Cells of many molecules are
divided at medians of those properties, as a k-d tree is (Bentley, Communications of the ACM 1975,
doi:10.1145/361002.361007), since they are not Gaussian there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, final

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sciLDM.domain import Request
from sciLDM.domains.molecules.ranges import Ranges

if TYPE_CHECKING:
    from sciLDM.domains.molecules.codec import Property

__all__ = ["LocationModel", "MoleculeRequest", "asked_for"]

_CELLS = 1024
"""Cells that are kept at most, the most frequent ones."""
_BLOCK = 1000
"""Samples completed at once: memory grows with their number times that of the cells."""
_FEWEST = 200
"""Fewer molecules with all their labels are not worth a model."""
_LEAF = 32
"""Molecules up to which a cell is not divided."""
_PSEUDO = 4
"""Molecules' worth of the covariance pooled over cells that each cell's own is mixed with."""
_NEAR = 0.2
"""Standard deviation with which a count that is asked for picks cells: exact where there is one, else the nearest."""


@final
@dataclass(frozen=True)
class MoleculeRequest(Request):
    """A request that knows what of it the user asked for: the rest was drawn.

    Attributes:
        asked: Labels as asked for, NaN where open.
        ranges: Which of them stand for ranges.
    """

    asked: Mapping[str, Tensor] = field(default_factory=dict)
    ranges: Ranges = field(default_factory=dict)

    def repeated(self, times: int) -> "MoleculeRequest":
        whole = super().repeated(times)
        assert isinstance(whole, MoleculeRequest)
        asked = {name: label.repeat_interleave(times, dim=0) for name, label in self.asked.items()}
        return MoleculeRequest(**{**vars(whole), "asked": asked})


def asked_for(request: Request) -> tuple[dict[str, np.ndarray], Ranges]:
    """Labels that a user asked for, NaN where open, and which of them stand for ranges."""
    if not isinstance(request, MoleculeRequest):
        return {
            name: label.cpu().numpy() for name, label in request.cond.items() if name not in request.always
        }, {}
    return {name: label.cpu().numpy() for name, label in request.asked.items()}, request.ranges


@final
@dataclass(frozen=True)
class LocationModel:
    """`p(size, properties)`, fitted on the training split.

    Attributes:
        counted: Properties that count something.
        measured: The other ones.
        cells: Heavy atoms, then each counted property, `[cell, 1 + counted]`.
        molecules: How many molecules each cell has.
        means: Of the measured properties, `[cell, measured]`.
        covariances: Likewise: lower triangles row by row, `[cell, measured (measured + 1) / 2]`.
    """

    counted: Sequence[str]
    measured: Sequence[str]
    cells: Sequence[Sequence[int]]
    molecules: Sequence[int]
    means: Sequence[Sequence[float]]
    covariances: Sequence[Sequence[float]]

    @staticmethod
    def fit(
        sizes: np.ndarray, labels: Mapping[str, np.ndarray], properties: Sequence["Property"]
    ) -> "LocationModel | None":
        """Fit from heavy-atom counts and labels; None where there is nothing to complete, or too little to learn from.

        Args:
            sizes: Heavy atoms, `[molecule]`.
            labels: Values by property, NaN where missing; molecules that lack one are left out.
            properties: Which of them count something.
        """
        counted = [p.name for p in properties if p.counts]
        measured = [p.name for p in properties if not p.counts]
        values = _columns([labels[name] for name in measured], len(sizes))
        whole = _columns([sizes, *(labels[name] for name in counted)], len(sizes))
        good = np.isfinite(values).all(axis=1) & np.isfinite(whole).all(axis=1)
        if len(properties) < 2 or good.sum() < _FEWEST:
            return None
        values, whole = values[good], whole[good].astype(int)
        _, of = np.unique(whole, axis=0, return_inverse=True)
        of = _split(of.reshape(-1), values / np.maximum(values.std(axis=0), 1e-12))
        _, first, molecules = np.unique(of, return_index=True, return_counts=True)
        cells = whole[first]
        means = np.stack([np.bincount(of, column) / molecules for column in values.T], axis=-1)
        off = values - means[of]
        tiny = np.diag(1e-6 * values.var(axis=0) + 1e-12)
        pooled = off.T @ off / max(len(off) - len(cells), 1) + tiny
        products = np.zeros((len(cells), len(measured), len(measured)))
        np.add.at(products, of, off[:, :, None] * off[:, None, :])
        covariances = (products + _PSEUDO * pooled) / (molecules[:, None, None] + _PSEUDO) + tiny
        kept = np.argsort(-molecules, kind="stable")[:_CELLS]
        return LocationModel(
            counted,
            measured,
            cells[kept].tolist(),
            molecules[kept].tolist(),
            _short(means[kept]),
            _short(covariances[kept][:, *np.tril_indices(len(measured))]),
        )

    def draw(
        self,
        wanted: Mapping[str, Float[np.ndarray, " batch"]],
        sizes: Float[np.ndarray, " batch"],
        u: Float[np.ndarray, " batch"],
        normal: Float[np.ndarray, "batch measured"],
    ) -> tuple[Float[np.ndarray, " batch"], dict[str, Float[np.ndarray, " batch"]]]:
        """Sizes, and every property; what was asked for stays as it is.

        Args:
            wanted: Values asked for, NaN where open.
            sizes: Heavy atoms asked for, NaN where open.
            u: Uniform numbers in (0, 1): which cell.
            normal: Normal numbers: where in the cell.
        """
        open_ = np.full(len(u), np.nan)
        whole = _columns([sizes, *(wanted.get(name, open_) for name in self.counted)], len(u))
        values = _columns([wanted.get(name, open_) for name in self.measured], len(u))
        patterns, of = np.unique(np.isfinite(values), axis=0, return_inverse=True)
        for k, known in enumerate(patterns):
            alike = np.flatnonzero(of.reshape(-1) == k)
            for start in range(0, len(alike), _BLOCK):
                rows = alike[start : start + _BLOCK]
                whole[rows], values[rows] = self._complete(
                    whole[rows], values[rows], known, u[rows], normal[rows]
                )
        found = dict(zip(self.counted, whole[:, 1:].T, strict=True)) | dict(
            zip(self.measured, values.T, strict=True)
        )
        return whole[:, 0], found

    def _complete(
        self, whole: np.ndarray, values: np.ndarray, known: np.ndarray, u: np.ndarray, normal: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows that leave the same measured properties open."""
        cells, means, covariances = self._arrays
        log_p = np.log(np.asarray(self.molecules, dtype=float))[None].repeat(len(u), axis=0)
        for column in range(cells.shape[1]):
            off = (whole[:, column, None] - cells[None, :, column]) / _NEAR
            log_p -= np.where(np.isfinite(off), 0.5 * np.clip(off, -1e100, 1e100) ** 2, 0.0)
        root = np.linalg.cholesky(covariances[:, known][:, :, known])
        # What is asked for far outside the data still picks the nearest cell; squares must not overflow.
        off = np.clip(values[:, None, known] - means[None, :, known], -1e100, 1e100)
        scaled = np.einsum("cij, ncj -> nci", np.linalg.inv(root), off)
        log_p -= 0.5 * (scaled**2).sum(axis=-1) + np.log(np.diagonal(root, axis1=1, axis2=2)).sum(axis=-1)
        p = np.exp(log_p - log_p.max(axis=1, keepdims=True))
        cumulative = np.cumsum(p / p.sum(axis=1, keepdims=True), axis=1)
        cell = np.minimum((cumulative < u[:, None]).sum(axis=1), len(cells) - 1)
        whole = np.where(np.isfinite(whole), whole, cells[cell])
        if not known.all():
            # The open part of x = mean + L e, with the known properties first, so that L's upper rows are theirs.
            order = np.concatenate([np.flatnonzero(known), np.flatnonzero(~known)])
            joint = np.linalg.cholesky(covariances[:, order][:, :, order])[cell]
            count = int(known.sum())
            e = np.concatenate([scaled[np.arange(len(cell)), cell], normal[:, count:]], axis=1)
            drawn = means[cell][:, ~known] + (joint[:, count:] @ e[..., None])[..., 0]
            values = values.copy()
            values[:, ~known] = drawn
        return whole, values

    @cached_property
    def _arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Cells, means, whole covariances."""
        count, size = len(self.cells), len(self.measured)
        covariances = np.zeros((count, size, size))
        rows, columns = np.tril_indices(size)
        lower = np.asarray(self.covariances, dtype=float).reshape(count, -1)
        covariances[:, rows, columns] = covariances[:, columns, rows] = lower
        return np.asarray(self.cells, float), np.asarray(self.means, float).reshape(count, size), covariances

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)


def _split(of: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Halve groups at the median of the value that is spread most in them, until none has many members.

    Args:
        of: Group of each row, numbered from 0 without gaps.
        values: In units of their spread over all rows.
    """
    most = max(_LEAF, len(of) // (_CELLS // 2))
    waiting = [np.flatnonzero(of == k) for k in range(int(of.max()) + 1)]
    found = np.zeros(len(of), dtype=int)
    count = 0
    while waiting:
        rows = waiting.pop()
        spread = values[rows].std(axis=0) if values.shape[1] else np.zeros(1)
        widest = int(spread.argmax())
        left = (
            values[rows, widest] < np.median(values[rows, widest])
            if spread[widest] > 0
            else np.zeros(len(rows), bool)
        )
        if len(rows) <= most or not left.any():
            found[rows] = count
            count += 1
        else:
            waiting += [rows[left], rows[~left]]
    return found


def _columns(columns: Sequence[np.ndarray], count: int) -> Float[np.ndarray, "count column"]:
    return np.stack(columns, axis=1).astype(float) if columns else np.empty((count, 0))


def _short(values: np.ndarray) -> list[Any]:
    """Five digits; they travel as text."""
    return (
        np.vectorize(lambda x: float(f"{x:.5g}"), otypes=[float])(values).tolist()
        if values.size
        else values.tolist()
    )
