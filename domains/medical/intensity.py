r"""Intensity scales: physical values to the network's units and back, exactly invertible where nothing is clipped.

    u = 2 (v - low) / (high - low) - 1,     -1 <= u <= 1 + headroom

CT has a fixed window in HU. MR has no units: its scale is a pair of percentiles of each volume, stored with the volume
and inverted on output, so that a reconstruction comes back in the scanner's own numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import ConfigError, DataError

__all__ = ["IntensitySettings", "Scale", "check_modality", "from_network", "to_network"]

Modality = Literal["ct", "mr", "other"]

CT_WINDOW = (-1024.0, 3071.0)
"""The range of 12-bit HU: clips nothing that an ordinary scanner writes."""


@dataclass(frozen=True)
class IntensitySettings:
    """How values become network units.

    Raises:
        ConfigError: An empty window, percentiles out of order, or a negative headroom.
    """

    window: tuple[float, float] | None = None
    """Fixed window in the data's units (HU for CT); null for CT takes -1024 to 3071, for others percentiles."""
    percentiles: tuple[float, float] = (0.0, 99.5)
    """Percentiles of each volume that become -1 and 1, where there is no window."""
    headroom: float = 1.0
    """How far above 1 values may go before they are clipped; for percentiles only, since a window is meant."""

    def __post_init__(self) -> None:
        if self.window is not None and not self.window[0] < self.window[1]:
            raise ConfigError(f"intensity.window: expected (low, high), got {list(self.window)}")
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ConfigError(f"intensity.percentiles: expected 0 <= low < high <= 100, got [{low}, {high}]")
        if self.headroom < 0:
            raise ConfigError(f"intensity.headroom must be 0 or more, got {self.headroom}")

    def fixed(self, modality: Modality) -> tuple[float, float] | None:
        """The window that all volumes share, or None when each has its own scale."""
        return self.window or (CT_WINDOW if modality == "ct" else None)

    def scale(self, values: np.ndarray, modality: Modality) -> "Scale":
        """The scale of a volume, from those of its values that are known.

        Args:
            values: Any shape; NaN is ignored, so the observed part of a damaged volume will do.
            modality: CT has a fixed window.

        Raises:
            DataError: No values, or all the same.
        """
        window = self.fixed(modality)
        if window is not None:
            return Scale(*window, top=1.0)
        known = values[np.isfinite(values)]
        if known.size == 0:
            raise DataError("no intensity scale can be found: no value is known")
        low, high = np.percentile(known, self.percentiles).tolist()
        if not high - low > 1e-6 * max(abs(low), abs(high)):
            low, high = float(known.min()), float(known.max())
        if not high - low > 1e-6 * max(abs(low), abs(high)):
            raise DataError(f"constant volume: all values are {low:g}")
        return Scale(low, high, top=1.0 + self.headroom)


@final
@dataclass(frozen=True)
class Scale:
    """Scale of one volume.

    Attributes:
        low: Value that becomes -1.
        high: Value that becomes 1.
        top: Largest network unit; values above are clipped when a training volume is made.
    """

    low: float
    high: float
    top: float = 1.0

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Network units, float32, clipped to [-1, top]."""
        u = 2 * (values.astype(np.float64) - self.low) / (self.high - self.low) - 1
        return np.clip(u, -1.0, self.top).astype(np.float32)

    def clipped(self, values: np.ndarray) -> float:
        """Share of voxels that `encode` clips."""
        ceiling = self.low + 0.5 * (self.top + 1) * (self.high - self.low)
        # A hair of tolerance: the percentile of a plateau must not count the plateau.
        slack = 1e-6 * (self.high - self.low)
        return float(((values < self.low - slack) | (values > ceiling + slack)).mean())

    def decode(self, u: np.ndarray) -> np.ndarray:
        """Physical values."""
        return self.low + 0.5 * (u + 1) * (self.high - self.low)


def to_network(
    x: Float[Tensor, "batch channel *grid"], low: Float[Tensor, "batch"], high: Float[Tensor, "batch"]
) -> Float[Tensor, "batch channel *grid"]:
    """Network units of physical values, row by row; nothing is clipped."""
    low, high = _columns(x, low, high)
    return 2 * (x - low) / (high - low) - 1


def from_network(
    u: Float[Tensor, "batch channel *grid"], low: Float[Tensor, "batch"], high: Float[Tensor, "batch"]
) -> Float[Tensor, "batch channel *grid"]:
    """Physical values of network units, row by row."""
    low, high = _columns(u, low, high)
    return low + 0.5 * (u + 1) * (high - low)


def check_modality(values: np.ndarray, modality: Modality, tag: str = "") -> None:
    """Refuse a volume that is plainly of another kind.

    Args:
        values: The volume; NaN is ignored.
        modality: What it should be.
        tag: The DICOM modality, where it is known.

    Raises:
        DataError: Another DICOM modality; CT without a negative value (raw detector counts, or not CT); MR with the
            values of air in HU.
    """
    expected: dict[str, Sequence[str]] = {"ct": ("CT",), "mr": ("MR",)}
    if tag and modality in expected and tag not in expected[modality]:
        raise DataError(f"wrong modality: the DICOM header says {tag}, expected {modality.upper()}")
    known = values[np.isfinite(values)]
    if known.size == 0:
        raise DataError("no value is known: all are NaN")
    low = float(known.min())
    if modality == "ct" and low >= 0:
        raise DataError(
            f"wrong modality: not CT in HU, since its smallest value is {low:g} and air is -1000; "
            "set modality: mr or other, or apply the rescale intercept"
        )
    if modality == "mr" and float(np.percentile(known, 1)) < -500:
        raise DataError(
            "wrong modality: these look like CT values in HU (1 % lie below -500); set modality: ct"
        )


def _columns(x: Tensor, *rows: Tensor) -> list[Tensor]:
    return [r.to(x).reshape(-1, *[1] * (x.ndim - 1)) for r in rows]


def units_of(modality: Modality) -> str:
    """What the values are measured in, for labels and side-cars."""
    return {"ct": "HU", "mr": "arbitrary", "other": "arbitrary"}[modality]


def as_rows(scales: Sequence[Scale]) -> dict[str, Tensor]:
    """Scales of some cases as a `Task.context`."""
    return {
        "low": torch.tensor([s.low for s in scales], dtype=torch.float32),
        "high": torch.tensor([s.high for s in scales], dtype=torch.float32),
    }
