r"""What else goes with a request: `p(size, open properties | properties asked for)`.

A network asked for one property alone must find out by itself what kind of molecule has it; drug-likeness, say, comes
with few structural alerts and few rotatable bonds. Here the properties that a request leaves open are drawn from their
distribution in the training set, given those asked for, and the network is asked for all of them:

    p(x | asked) = sum_open p(x | asked, open) p(open | asked)

so that where both factors are exact, molecules are distributed as they were without. The second is a kernel estimate
(Rosenblatt 1969; Hyndman, Bashtannyk & Grunwald, J. Comput. Graph. Stat. 1996, doi:10.1080/10618600.1996.10474715) on
the labels of some training molecules: one of them is drawn with probability

    w_i ~ exp(-1/2 sum_asked ((c - c_i) / h)^2)

and lends its size and its open properties, which therefore exist together. `h` is a twentieth of each property's
standard deviation, doubled for a sample as long as the effective number of molecules, `1 / sum w_i^2`, is below 8.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, final

import numpy as np
from jaxtyping import Float
from torch import Tensor

from sciLDM.domain import Request
from sciLDM.domains.molecules.ranges import Ranges

__all__ = ["LabelTable", "MoleculeRequest", "asked_for"]

_ROWS = 2048
"""Molecules whose labels are kept; of QM9, twice as many fit what is asked no better."""
_FEWEST = 200
"""Fewer molecules with all their labels are not worth a table."""
_WIDTH, _SIZE_WIDTH = 0.05, 0.2
"""Of the kernel: in standard deviations of a property, and in heavy atoms."""
_EFFECTIVE, _DOUBLINGS = 8, 6
_BLOCK = 1000
"""Samples completed at once: memory grows with their number times that of the rows."""


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
        labels = {
            name: label.cpu().numpy() for name, label in request.cond.items() if name not in request.always
        }
        return labels, {}
    return {name: label.cpu().numpy() for name, label in request.asked.items()}, request.ranges


@final
@dataclass(frozen=True)
class LabelTable:
    """Labels of some training molecules, drawn at random.

    Attributes:
        names: Of the properties.
        rows: Heavy atoms, then each property, `[molecule, 1 + property]`; as text, a line for each molecule.
        spreads: Standard deviation of each property over the training split.
    """

    names: Sequence[str]
    rows: Sequence[str]
    spreads: Sequence[float]

    @staticmethod
    def of(sizes: np.ndarray, labels: Mapping[str, np.ndarray]) -> "LabelTable | None":
        """Of a training split; None where there is nothing to complete, or too little to draw from.

        Args:
            sizes: Heavy atoms, `[molecule]`.
            labels: Values by property, NaN where missing; molecules that lack one are left out.
        """
        if len(labels) < 2:
            return None
        table = np.stack([sizes, *labels.values()], axis=1).astype(float)
        table = table[np.isfinite(table).all(axis=1)]
        if len(table) < _FEWEST:
            return None
        chosen = np.sort(np.random.default_rng(0).permutation(len(table))[:_ROWS])
        rows = [" ".join(f"{x:.5g}" for x in row) for row in table[chosen]]
        return LabelTable(list(labels), rows, table[:, 1:].std(axis=0).tolist())

    def complete(
        self,
        asked: Mapping[str, Float[np.ndarray, " batch"]],
        sizes: Float[np.ndarray, " batch"],
        u: Float[np.ndarray, " batch"],
    ) -> tuple[Float[np.ndarray, " batch"], dict[str, Float[np.ndarray, " batch"]]]:
        """Sizes, and every property; what was asked for stays as it is.

        Args:
            asked: Values asked for, NaN where open.
            sizes: Heavy atoms asked for, NaN where open.
            u: Uniform numbers in (0, 1), which choose molecules.
        """
        open_ = np.full(len(u), np.nan)
        given = np.stack([sizes, *(asked.get(name, open_) for name in self.names)], axis=1).astype(float)
        table = self._table
        for start in range(0, len(given), _BLOCK):
            part = slice(start, start + _BLOCK)
            chosen = table[self._chosen(given[part], table, u[part])]
            given[part] = np.where(np.isfinite(given[part]), given[part], chosen)
        return given[:, 0], dict(zip(self.names, given[:, 1:].T, strict=True))

    def within(
        self, ranges: Ranges, u: Float[np.ndarray, " batch"]
    ) -> dict[str, Float[np.ndarray, " batch"]] | None:
        """Targets inside several ranges that exist together, as often as molecules have them.

        Args:
            ranges: Of properties that the table has.
            u: Uniform numbers in (0, 1), which choose molecules.

        Returns:
            Values by property, or None where fewer than 8 of these molecules lie in all ranges.
        """
        table = self._table[:, 1:]
        columns = {name: table[:, self.names.index(name)] for name in ranges}
        inside = np.ones(len(table), dtype=bool)
        for name, (low, high) in ranges.items():
            inside &= (columns[name] >= low) & (columns[name] <= high)
        if inside.sum() < _EFFECTIVE:
            return None
        chosen = np.flatnonzero(inside)[np.minimum((u * inside.sum()).astype(int), inside.sum() - 1)]
        return {name: column[chosen] for name, column in columns.items()}

    @property
    def _table(self) -> Float[np.ndarray, "molecule column"]:
        return np.array([row.split() for row in self.rows], dtype=float)

    def _chosen(self, given: np.ndarray, table: np.ndarray, u: np.ndarray) -> np.ndarray:
        """A row for each sample."""
        widths = np.array([_SIZE_WIDTH, *(_WIDTH * max(s, 1e-12) for s in self.spreads)])
        distance = np.zeros((len(given), len(table)))
        for column, width in enumerate(widths):
            # What is asked for far outside the data still gets the nearest molecules; squares must not overflow.
            off = np.clip((given[:, column, None] - table[None, :, column]) / width, -1e100, 1e100)
            distance += np.where(np.isfinite(off), off**2, 0.0)
        distance -= distance.min(axis=1, keepdims=True)
        weights = np.empty_like(distance)
        narrow = np.arange(len(given))
        for doubling in range(_DOUBLINGS + 1):
            found = np.exp(-0.5 * distance[narrow] / 4.0**doubling)
            weights[narrow] = found / found.sum(axis=1, keepdims=True)
            narrow = narrow[1 / (weights[narrow] ** 2).sum(axis=1) < _EFFECTIVE]
        return np.minimum((np.cumsum(weights, axis=1) < u[:, None]).sum(axis=1), len(table) - 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self)
