r"""Properties asked for as ranges: `cond={"logP": (1.0, 2.0)}`, either end None for open.

The network is conditioned on numbers. A range therefore becomes one target for each sample, drawn from the training
distribution inside it: with `F` its cumulative distribution and `u` uniform,

    c = F^-1(F(low) + u (F(high) - F(low))).

`F` is linear between the quantiles that travel with the weights (0, 5, 25, 50, 75, 95 and 100 %). Where a range holds
none of the training data, targets are spread evenly over it. Targets of several ranges are those of training molecules
inside all of them (`completion`); where too few are known, they are drawn independently of each other: some
combinations may not exist, and are then missed. The table says whether a sample lies in its range.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from sciLDM.errors import ConfigError
from sciLDM.rng import NoiseSource

if TYPE_CHECKING:
    from sciLDM.domains.molecules.codec import Property

__all__ = ["Ranges", "draw_targets", "outside", "read_ranges"]

Ranges = Mapping[str, tuple[float, float]]
"""Ends by property; infinite where open."""

_SHARES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_TINY = 1e-6
"""A range with less than this share of the training data holds none."""


def read_ranges(wanted: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, tuple[float, float]]]:
    """Requests for values, and requests for ranges: tuples of two numbers, one of which may be None.

    Raises:
        ConfigError: A range that is no range.
    """
    values, ranges = {}, {}
    for name, value in wanted.items():
        if not isinstance(value, tuple):
            values[name] = value
            continue
        try:
            low, high = (
                unbounded if end is None else float(end)
                for end, unbounded in zip(value, (-np.inf, np.inf), strict=True)
            )
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"condition {name!r}: expected a range (low, high) of two numbers or None, got {value!r}; give one "
                "value for each sample as a list"
            ) from error
        if not low < high:
            raise ConfigError(f"condition {name!r}: expected a range with low < high, got {value!r}")
        if not np.isfinite([low, high]).any():
            raise ConfigError(f"condition {name!r}: a range without ends asks for nothing; leave it out")
        ranges[name] = (low, high)
    return values, ranges


def draw_targets(
    ranges: Ranges, properties: Sequence["Property"], noise: NoiseSource, ids: Sequence[int]
) -> dict[str, Float[np.ndarray, " batch"]]:
    """A target for each sample; sample `i` depends on `ids[i]` alone. Unknown names are left to the caller's check."""
    known = {p.name: p for p in properties}
    return {
        name: _targets(
            known[name].quantiles,
            *ends,
            noise.uniform(ids, (1,), stream=f"range {name}").squeeze(1).numpy().astype(float),
        )
        for name, ends in ranges.items()
        if name in known
    }


def _targets(quantiles: Sequence[float], low: float, high: float, u: np.ndarray) -> np.ndarray:
    # Properties that count things repeat a value in their quantiles; a trace of slope keeps the inverse defined.
    values = np.asarray(quantiles, dtype=float)
    slope = max(float(values[-1] - values[0]), _TINY) * 1e-9
    values = values + slope * np.arange(len(values))
    first, last = np.interp([low, high], values, _SHARES)
    if last - first < _TINY:
        inner = float(np.clip(np.median(values), low, high))  # an open range beyond the data: its finite end
        low, high = (low if np.isfinite(low) else inner), (high if np.isfinite(high) else inner)
        return low + u * (high - low)
    return np.interp(first + u * (last - first), _SHARES, values).clip(low, high)


def outside(realised: np.ndarray, ends: tuple[float, float]) -> np.ndarray:
    """How far values lie outside a range; 0 inside."""
    return np.maximum(np.maximum(ends[0] - realised, realised - ends[1]), 0.0)
