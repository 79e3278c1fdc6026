r"""An optional keyed watermark: a faint pseudo-random pattern that only the key's holder can find.

    x' = x + a p(i mod 32),    p in {-1, 1} from the key,    a = strength * sigma,    sigma the volume's noise

(spread spectrum, Cox et al. 1997, doi:10.1109/83.650120). To verify, the local mean of the volume is taken out, what is
left is divided by its local spread and clipped, folded onto the pattern's period, and its spectrum set to modulus 1:
`w`, in which no frequency and no edge stands out. It is correlated with the pattern at every shift:

    z_s = sum_i w_i p(i + s mod 32) / |w|,    p-value = 1 - (1 - P(N > max z))^(32^3)

For a volume that the key has nothing to do with, the signs are independent of `w`: each `z_s` has mean 0 and variance 1
whatever the volume is, and different shifts are uncorrelated, so that false positives come at the stated rate. Cropping
shifts the pattern, and scaling intensities leaves `w` as it is; neither hides it. Resampling to other voxels does, and
so does strong smoothing.
"""

import hashlib
import math
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from scipy.ndimage import uniform_filter
from scipy.stats import norm

from sciLDM.domains.medical.volume import Volume
from sciLDM.errors import ConfigError, DataError
from sciLDM.rng import NoiseSource

__all__ = ["Marked", "Verification", "mark_volume", "noise_of", "verify_volume"]

PERIOD = 32
STRONGEST = 0.25
_CLIP = 3.0
_ROUNDING = 1e-6


@final
@dataclass(frozen=True)
class Marked:
    """A volume with a watermark.

    Attributes:
        volume: Its values lie within `amplitude` of the original's.
        amplitude: In the data's units.
        noise: Standard deviation of the volume's noise, as estimated.
    """

    volume: Volume
    amplitude: float
    noise: float


@final
@dataclass(frozen=True)
class Verification:
    """Outcome of looking for a key's pattern.

    Attributes:
        p_value: Probability of as good a match without the watermark.
        z: The best correlation, in standard deviations.
        shift: How far the volume was cropped, modulo the pattern's period.
    """

    p_value: float
    z: float
    shift: tuple[int, int, int]

    @property
    def found(self) -> bool:
        """Whether one volume in a million, or fewer, would match so well by chance."""
        return self.p_value < 1e-6


def noise_of(data: np.ndarray) -> float:
    """Standard deviation of the noise: the spread about the mean of 3^3 neighbourhoods, where that is least.

    The lowest tenth of the local spreads is taken, since edges and texture raise the others (pure noise comes out a
    tenth too low). Where nothing varies, as in the padding around a volume, nothing is counted.

    Raises:
        DataError: A constant volume.
    """
    _, spread = _local(data)
    if not (spread > 0).any():
        raise DataError("a constant volume has no noise to hide a watermark in")
    return float(np.quantile(spread[spread > 0], 0.1) / math.sqrt(1 - 1 / 27))


def mark_volume(volume: Volume, key: str, *, strength: float = STRONGEST) -> Marked:
    """Add the pattern of a key.

    Args:
        volume: Finite values.
        key: Any text; keep it secret.
        strength: Amplitude as a share of the noise, above 0 and at most 0.25.

    Raises:
        ConfigError: An empty key, or a strength out of range.
        DataError: A constant volume.
    """
    if not 0 < strength <= STRONGEST:
        raise ConfigError(f"watermark: expected a strength above 0 and at most {STRONGEST}, got {strength}")
    noise = noise_of(volume.data)
    amplitude = strength * noise
    index = np.ix_(*[np.arange(n) % PERIOD for n in volume.shape])
    marked = volume.data + amplitude * _pattern(key)[index]
    return Marked(replace(volume, data=marked.astype(volume.data.dtype)), amplitude, noise)


def verify_volume(volume: Volume, key: str) -> Verification:
    """Look for the pattern of a key, at any shift."""
    folded = np.zeros((PERIOD,) * 3)
    index = np.ix_(*[np.arange(n) % PERIOD for n in volume.shape])
    np.add.at(folded, index, _whitened(volume.data))
    spectrum = np.fft.rfftn(folded)
    size = np.abs(spectrum)
    if not (size > 0).any():
        return Verification(1.0, 0.0, (0, 0, 0))
    white = np.where(size > 0, spectrum / np.where(size > 0, size, 1.0), 0.0)
    norm_of_white = float(np.linalg.norm(np.fft.irfftn(white, s=folded.shape, axes=(0, 1, 2))))
    product = np.conj(white) * np.fft.rfftn(_pattern(key))
    z = np.fft.irfftn(product, s=folded.shape, axes=(0, 1, 2)) / norm_of_white
    at = np.unravel_index(int(z.argmax()), z.shape)
    best = float(z.max())
    p_value = -math.expm1(z.size * math.log1p(-min(float(norm.sf(best)), 1 - 1e-16)))
    return Verification(p_value, best, (int(at[0]), int(at[1]), int(at[2])))


def _pattern(key: str) -> np.ndarray:
    """Signs of a key, `[32, 32, 32]`."""
    if not key:
        raise ConfigError("watermark: expected a key, got an empty text")
    seed = int.from_bytes(hashlib.sha256(b"sciLDM watermark/" + key.encode()).digest()[:16], "little")
    u = NoiseSource(seed).uniform([0], (PERIOD,) * 3, "watermark", dtype=torch.float64)[0].numpy()
    return np.where(u < 0.5, -1.0, 1.0)


def _local(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Departure of voxels from the mean over 3^3, and its root mean square over 5^3; both 0 where nothing varies."""
    known = np.isfinite(data)
    data = np.where(known, data, 0.0).astype(np.float64)
    residual = np.where(known, data - uniform_filter(data, 3, mode="nearest"), 0.0)
    # The filter keeps a running sum, so that even a constant leaves rounding errors.
    floor = _ROUNDING * float(np.abs(data).max(initial=0.0))
    spread = np.sqrt(uniform_filter(residual**2, 5, mode="nearest").clip(min=0.0))
    varies = known & (spread > floor)
    return np.where(varies, residual, 0.0), np.where(varies, spread, 0.0)


def _whitened(data: np.ndarray) -> np.ndarray:
    residual, spread = _local(data)
    return np.clip(residual / np.where(spread > 0, spread, 1.0), -_CLIP, _CLIP)
