r"""Climatology and spread, streamed over the training period in chunks; nothing later is looked at.

Linked values at each cell are regressed on annual harmonics (`transforms.harmonics`) by the normal equations
`sum b b^T w = sum b u`, summed chunk by chunk; missing values take no part. A second pass sums the squares of what is
left. Both passes are in float64.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, final

import numpy as np
import torch

from sciLDM.domains.climate.blocks import StreamedStates
from sciLDM.domains.climate.transforms import Link, Normaliser, VariableSettings, harmonics, make_link
from sciLDM.errors import DataError

__all__ = ["Fitted", "TrainingData", "fit_normaliser", "resolve_harmonics"]

_CELLS = 2**23  # values per chunk
_SAMPLE = 2_000_000
_SUMS = 2**30  # bytes of sums of a group of channels

Chunk = tuple[np.ndarray, np.ndarray]


@final
class TrainingData:
    """States of the training period, in chunks of bounded size.

    Args:
        values: All states, `[state, channel, H, W]`, NaN where missing; or left in their files.
        phase: Phase of the year of each, in [0, 1).
        rows: Which states belong to the training period.
    """

    def __init__(self, values: np.ndarray | StreamedStates, phase: np.ndarray, rows: np.ndarray) -> None:
        self.values, self.phase, self.rows = values, phase, np.asarray(rows)
        self.channels, *grid = values.shape[1:]
        self.grid = tuple(grid)
        self._size = max(_CELLS // max(int(np.prod(values.shape[1:])), 1), 1)

    def groups(self, terms: int) -> Iterator[slice]:
        """Channels whose sums are held at once: all that fit, since every group is a pass over the data."""
        per_channel = 8 * (3 * terms + 2) * int(np.prod(self.grid)) + 4 * _SAMPLE
        size = max(1, _SUMS // per_channel) if isinstance(self.values, StreamedStates) else 1
        for first in range(0, self.channels, size):
            yield slice(first, min(first + size, self.channels))

    def chunks(self, channels: slice) -> Iterator[Chunk]:
        """`(values [state, channel, H, W], phase [state])` of some channels."""
        if isinstance(self.values, StreamedStates):
            for place, values in self.values.in_order(self.rows, self._size, channels):
                yield values, self.phase[self.rows[place]]
            return
        for start in range(0, len(self.rows), self._size):
            rows = self.rows[start : start + self._size]
            yield self.values[rows, channels], self.phase[rows]

    def sample(self, channels: slice, *, limit: int = _SAMPLE) -> list[np.ndarray]:
        """Finite values of some channels, of evenly thinned states: about `limit` values each."""
        step = max(1, -(-len(self.rows) * int(np.prod(self.grid)) // limit))
        rows = self.rows[::step]
        if isinstance(self.values, StreamedStates):
            taken = np.concatenate([v for _, v in self.values.in_order(rows, self._size, channels)])
        else:
            taken = self.values[rows, channels]
        return [part[np.isfinite(part)] for part in np.moveaxis(taken, 1, 0)]


def resolve_harmonics(wanted: int | None, months: np.ndarray, years: float, step_seconds: float) -> int:
    """Harmonics that the training period can bear: 2 where it covers all months of two years, else a mean map."""
    if wanted is not None:
        return wanted
    covered = len(np.unique(months)) == 12 and years >= 1.9 and step_seconds < 80 * 86400
    return 2 if covered else 0


class Fitted(NamedTuple):
    """What the training period says.

    Attributes:
        normaliser: Links, climatology and spread.
        known: Cells that have a value in the training period, `[channel, H, W]`.
    """

    normaliser: Normaliser
    known: np.ndarray


def fit_normaliser(
    data: TrainingData,
    settings: list[tuple[str, VariableSettings, dict]],
    count: int,
    area: np.ndarray,
    progress: Callable[[int, int], None],
) -> Fitted:
    """Links, climatology and spread of every channel.

    Args:
        data: The training period.
        settings: Name, settings and attributes of the variable of each channel.
        count: Harmonics where a variable's settings do not say.
        area: Cell weights `[H, W]` of a scalar spread.
        progress: Told after each group of channels.

    Raises:
        DataError: A channel without any value.
        ConfigError: Values beyond the bounds of a link.
    """
    links, climatology, spread, known = [], [], [], []
    terms = [
        1 + 2 * (count if options.harmonics is None else options.harmonics) for _, options, _ in settings
    ]
    for group in data.groups(max(terms)):
        own = [
            make_link(options, name, attrs, _some(sample, name))
            for (name, options, attrs), sample in zip(settings[group], data.sample(group), strict=True)
        ]
        mean = _climatology(data, group, own, terms[group])
        found = _variance(data, group, own, mean)
        for (_, options, _), (variance, number) in zip(settings[group], found, strict=True):
            spread.append(_spread(variance, number, area, options.spread))
            known.append(number > 0)
        links, climatology = links + own, climatology + mean
        progress(len(links), len(settings))
    widest = max(c.shape[0] for c in climatology)
    padded = [np.pad(c, [(0, widest - c.shape[0]), (0, 0), (0, 0)]) for c in climatology]
    normaliser = Normaliser(links, np.stack(padded), np.stack(np.broadcast_arrays(*spread)))
    return Fitted(normaliser, np.stack(known))


def _some(sample: np.ndarray, name: str) -> np.ndarray:
    if not sample.size:
        raise DataError(f"{name}: all values are missing in the training period")
    return sample


def _linked(values: np.ndarray, link: Link) -> np.ndarray:
    return link.forward(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))).double().numpy()


def _basis(phase: np.ndarray, terms: int) -> np.ndarray:
    return harmonics(torch.from_numpy(phase).double(), (terms - 1) // 2).numpy()


@final
class _Sums:
    """Normal equations of one channel's regression on harmonics."""

    def __init__(self, terms: int, cells: int) -> None:
        self.terms, self.cells = terms, cells
        self.shared = np.zeros((terms, terms))
        self.own: np.ndarray | None = None
        self.right = np.zeros((terms, cells))

    def add(self, u: np.ndarray, basis: np.ndarray) -> None:
        """Take in linked values `[state, cell]`."""
        # Where values are missing, cells have normal equations of their own; complete states share one matrix.
        complete = np.isfinite(u).all(axis=1)
        self.shared += basis[complete].T @ basis[complete]
        if not complete.all():
            b, known = basis[~complete], np.isfinite(u[~complete])
            part = np.einsum("tk,tl,tc->ckl", b, b, known.astype(float), optimize=True)
            self.own = part if self.own is None else self.own + part
        self.right += basis.T @ np.nan_to_num(u)

    def solve(self) -> np.ndarray:
        """Coefficients `[term, cell]`; 0 at cells without a value."""
        shape = (self.cells, self.terms, self.terms)
        matrix = np.broadcast_to(self.shared, shape) if self.own is None else self.own + self.shared
        # A little ridge: cells with few values keep a mean and lose what they cannot say of the season.
        size = np.maximum(matrix[:, :1, :1], 1.0)
        ridge = np.diag([1e-9] + [1e-3] * (self.terms - 1))
        solved = np.linalg.solve(matrix + ridge * size, self.right.T[..., None])[..., 0]
        solved[matrix[:, 0, 0] == 0] = 0.0
        return solved.T


def _climatology(data: TrainingData, group: slice, links: list[Link], terms: list[int]) -> list[np.ndarray]:
    """Harmonic coefficients `[term, H, W]` of each channel."""
    sums = [_Sums(n, int(np.prod(data.grid))) for n in terms]
    for values, phase in data.chunks(group):
        for k, (link, own) in enumerate(zip(links, sums, strict=True)):
            own.add(_linked(values[:, k], link).reshape(len(values), -1), _basis(phase, own.terms))
    return [own.solve().reshape(own.terms, *data.grid) for own in sums]


def _variance(
    data: TrainingData, group: slice, links: list[Link], mean: list[np.ndarray]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mean squares of what each channel's climatology leaves, and counts, `[H, W]`."""
    total, known = np.zeros((len(mean), *data.grid)), np.zeros((len(mean), *data.grid))
    for values, phase in data.chunks(group):
        for k, (link, own) in enumerate(zip(links, mean, strict=True)):
            expected = np.einsum("tk,khw->thw", _basis(phase, own.shape[0]), own)
            anomaly = _linked(values[:, k], link) - expected
            there = np.isfinite(anomaly)
            total[k] += np.where(there, anomaly, 0.0).__pow__(2).sum(axis=0)
            known[k] += there.sum(axis=0)
    return [(t / np.maximum(n, 1), n) for t, n in zip(total, known, strict=True)]


def _spread(variance: np.ndarray, known: np.ndarray, area: np.ndarray, kind: str) -> np.ndarray:
    weight = area * (known > 0)
    overall = float(np.sqrt((variance * weight).sum() / max(weight.sum(), 1e-12)))
    # A constant field has no spread; it must not be divided by rounding noise.
    overall = overall if overall > 1e-12 else 1.0
    if kind == "scalar":
        return np.full((1, 1), overall)
    return np.where(known > 1, np.maximum(np.sqrt(variance), 0.1 * overall), overall)
