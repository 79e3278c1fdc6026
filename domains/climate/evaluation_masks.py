"""Where observations are, in studies: scattered points, a fixed network of stations, swaths that move."""

from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float

from sciLDM.errors import ConfigError
from sciLDM.rng import NoiseSource

__all__ = ["MaskKind", "observing_masks"]

MaskKind = Literal["random", "stations", "swath"]

_GOLDEN = 0.6180339887


def observing_masks(
    kind: str,
    fraction: float,
    places: Float[np.ndarray, "place 2"],
    shape: tuple[int, int],
    ids: np.ndarray,
    *,
    seed: int = 0,
) -> Bool[np.ndarray, "state place"]:
    """Which places are observed at each state.

    `random`: other places at every state. `stations`: the same places at all states. `swath`: one oblique strip per
    state that moves on from state to state, as below a satellite.

    Args:
        kind: One of `MaskKind`.
        fraction: Share of the places; at least one is observed.
        places: Row and column of every place that exists.
        shape: Rows and columns of the grid.
        ids: Number of every state; states of equal number have equal masks.
        seed: Of the choice.

    Raises:
        ConfigError: Another kind, or a share outside (0, 1].
    """
    if kind not in get_args(MaskKind):
        raise ConfigError(f"mask {kind!r}: expected {', '.join(get_args(MaskKind))}")
    if not 0 < fraction <= 1:
        raise ConfigError(f"fraction: expected a share in (0, 1], got {fraction}")
    count = max(1, round(fraction * len(places)))
    noise = NoiseSource(seed).fork(f"mask {kind} {fraction}")
    if kind == "swath":
        offset = noise.uniform([0], (), "offset", dtype=torch.float64).numpy()[0]
        across = places[:, 1] / shape[1] + 0.5 * places[:, 0] / shape[0]
        distance = (across[None] - offset - _GOLDEN * np.asarray(ids, dtype=float)[:, None]) % 1.0
        return _lowest(np.minimum(distance, 1 - distance), count)
    rows = np.zeros(len(ids), dtype=np.int64) if kind == "stations" else np.asarray(ids)
    return _lowest(noise.uniform(rows.tolist(), (len(places),), "places", dtype=torch.float64).numpy(), count)


def _lowest(score: np.ndarray, count: int) -> np.ndarray:
    """The `count` places of each row with the lowest score."""
    found = np.zeros(score.shape, dtype=bool)
    order = np.argsort(score, axis=1, kind="stable")[:, :count]
    np.put_along_axis(found, order, True, axis=1)
    return found
