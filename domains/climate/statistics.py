r"""Climatology and spread, streamed over the training period in chunks; nothing later is looked at.

Linked values at each cell are regressed on annual harmonics (`transforms.harmonics`) by the normal equations
`sum b b^T w = sum b u`, summed chunk by chunk; missing values take no part. A second pass sums the squares of what is
left. Both passes are in float64.
"""

from collections.abc import Callable, Iterator
from typing import final

import numpy as np
import torch

from sciLDM.domains.climate.transforms import Link, Normaliser, VariableSettings, harmonics, make_link

__all__ = ["TrainingData", "fit_normaliser", "resolve_harmonics"]

_CELLS = 2**23  # values per chunk

Chunk = tuple[np.ndarray, np.ndarray]


@final
class TrainingData:
    """States of the training period, in chunks of bounded size.

    Args:
        values: All states, `[state, channel, H, W]`, NaN where missing; may be a memory map.
        phase: Phase of the year of each, in [0, 1).
        rows: Which states belong to the training period.
    """

    def __init__(self, values: np.ndarray, phase: np.ndarray, rows: np.ndarray) -> None:
        self.values, self.phase, self.rows = values, phase, np.asarray(rows)
        per_state = max(int(np.prod(values.shape[1:])), 1)
        self._size = max(_CELLS // per_state, 1)

    def chunks(self, channel: int) -> Iterator[Chunk]:
        """`(values [state, H, W], phase [state])` of one channel."""
        for start in range(0, len(self.rows), self._size):
            rows = self.rows[start : start + self._size]
            yield self.values[rows, channel], self.phase[rows]

    def sample(self, channel: int, *, limit: int = 2_000_000) -> np.ndarray:
        """Finite values of one channel, evenly thinned to about `limit`."""
        cells = int(np.prod(self.values.shape[2:]))
        step = max(1, -(-len(self.rows) * cells // limit))
        taken = self.values[self.rows[::step], channel]
        return taken[np.isfinite(taken)]


def resolve_harmonics(wanted: int | None, months: np.ndarray, years: float, step_seconds: float) -> int:
    """Harmonics that the training period can bear: 2 where it covers all months of two years, else a mean map."""
    if wanted is not None:
        return wanted
    covered = len(np.unique(months)) == 12 and years >= 1.9 and step_seconds < 80 * 86400
    return 2 if covered else 0


def fit_normaliser(
    data: TrainingData,
    settings: list[tuple[str, VariableSettings, dict]],
    count: int,
    area: np.ndarray,
    progress: Callable[[int, int], None],
) -> Normaliser:
    """Links, climatology and spread of every channel.

    Args:
        data: The training period.
        settings: Name, settings and attributes of the variable of each channel.
        count: Harmonics where a variable's settings do not say.
        area: Cell weights `[H, W]` of a scalar spread.
        progress: Told after each channel.

    Raises:
        ConfigError: Values beyond the bounds of a link.
    """
    links, climatology, spread = [], [], []
    for channel, (name, options, attrs) in enumerate(settings):
        link = make_link(options, name, attrs, data.sample(channel))
        terms = 1 + 2 * (count if options.harmonics is None else options.harmonics)
        mean = _climatology(data, channel, link, terms)
        variance, known = _variance(data, channel, link, mean)
        links.append(link)
        climatology.append(mean)
        spread.append(_spread(variance, known, area, options.spread))
        progress(channel + 1, len(settings))
    widest = max(c.shape[0] for c in climatology)
    padded = [np.pad(c, [(0, widest - c.shape[0]), (0, 0), (0, 0)]) for c in climatology]
    return Normaliser(links, np.stack(padded), np.stack(np.broadcast_arrays(*spread)))


def _linked(values: np.ndarray, link: Link) -> np.ndarray:
    return link.forward(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))).double().numpy()


def _basis(phase: np.ndarray, terms: int) -> np.ndarray:
    return harmonics(torch.from_numpy(phase).double(), (terms - 1) // 2).numpy()


def _climatology(data: TrainingData, channel: int, link: Link, terms: int) -> np.ndarray:
    """Harmonic coefficients `[term, H, W]`; 0 at cells without a value."""
    grid = data.values.shape[2:]
    cells = int(np.prod(grid))
    shared = np.zeros((terms, terms))
    own: np.ndarray | None = None
    right = np.zeros((terms, cells))
    # Where values are missing, cells have normal equations of their own; complete states share one matrix.
    for values, phase in data.chunks(channel):
        u, basis = _linked(values, link).reshape(len(values), cells), _basis(phase, terms)
        complete = np.isfinite(u).all(axis=1)
        shared += basis[complete].T @ basis[complete]
        if not complete.all():
            b, known = basis[~complete], np.isfinite(u[~complete])
            part = np.einsum("tk,tl,tc->ckl", b, b, known.astype(float), optimize=True)
            own = part if own is None else own + part
        right += basis.T @ np.nan_to_num(u)
    matrix = np.broadcast_to(shared, (cells, terms, terms)) if own is None else own + shared
    # A little ridge: cells with few values keep a mean and lose what they cannot say of the season.
    size = np.maximum(matrix[:, :1, :1], 1.0)
    ridge = np.diag([1e-9] + [1e-3] * (terms - 1))
    solved = np.linalg.solve(matrix + ridge * size, right.T[..., None])[..., 0]
    solved[matrix[:, 0, 0] == 0] = 0.0
    return solved.T.reshape(terms, *grid)


def _variance(
    data: TrainingData, channel: int, link: Link, mean: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Mean squares of what the climatology leaves, and counts, `[H, W]`."""
    total, known = np.zeros(mean.shape[1:]), np.zeros(mean.shape[1:])
    for values, phase in data.chunks(channel):
        anomaly = _linked(values, link) - np.einsum("tk,khw->thw", _basis(phase, mean.shape[0]), mean)
        there = np.isfinite(anomaly)
        total += np.where(there, anomaly, 0.0).__pow__(2).sum(axis=0)
        known += there.sum(axis=0)
    return total / np.maximum(known, 1), known


def _spread(variance: np.ndarray, known: np.ndarray, area: np.ndarray, kind: str) -> np.ndarray:
    weight = area * (known > 0)
    overall = float(np.sqrt((variance * weight).sum() / max(weight.sum(), 1e-12)))
    # A constant field has no spread; it must not be divided by rounding noise.
    overall = overall if overall > 1e-12 else 1.0
    if kind == "scalar":
        return np.full((1, 1), overall)
    return np.where(known > 1, np.maximum(np.sqrt(variance), 0.1 * overall), overall)
