r"""How observations scatter about `A(x)`: independent Gaussian errors of a size that may differ from value to value.

A missing value (NaN) has whatever standard deviation its neighbours suggest, or NaN; it is never used.
"""

from abc import ABC, abstractmethod
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import ConfigError, ShapeMismatch

__all__ = ["GaussianNoise", "Noise", "TransmissionNoise"]


class Noise(ABC):
    """The observation error's standard deviation, in the units of `y`."""

    @abstractmethod
    def std(self, y: Float[Tensor, "batch *observation"]) -> Float[Tensor, "batch *observation"]:
        """One standard deviation for each observed value."""


@final
class GaussianNoise(Noise):
    """A known standard deviation.

    Args:
        std: One number, or a tensor that broadcasts to one observation (or to a batch of them).

    Raises:
        ConfigError: Negative or not finite. Zero is allowed: solvers then use a floor of 1e-4 of the data's spread.
    """

    def __init__(self, std: float | Tensor) -> None:
        value = torch.as_tensor(std, dtype=torch.float32)
        if not bool(torch.isfinite(value).all()) or bool((value < 0).any()):
            raise ConfigError(f"noise: expected standard deviations of at least 0, got {std!r:.80}")
        self.value = value

    def std(self, y: Float[Tensor, "batch *observation"]) -> Float[Tensor, "batch *observation"]:
        value = self.value.to(y)
        try:
            return value.expand_as(y)
        except RuntimeError:
            raise ShapeMismatch(
                f"noise: standard deviations of shape {tuple(value.shape)} do not fit observations of shape "
                f"{tuple(y.shape[1:])}; give one number, or one for each observed value"
            ) from None


@final
class TransmissionNoise(Noise):
    """Photon counting in transmission tomography, to second order: `var(y) = exp(y) / photons`.

    `y` is a line integral of attenuation, `y = -log(counts / photons)` (Bouman & Sauer 1996, eq. 7).

    Args:
        photons: Counts of an unattenuated ray.
    """

    def __init__(self, photons: float) -> None:
        if not photons > 0:
            raise ConfigError(f"photons: expected a positive count, got {photons}")
        self.photons = photons

    def std(self, y: Float[Tensor, "batch *observation"]) -> Float[Tensor, "batch *observation"]:
        return (y.clamp(min=0.0, max=30.0).exp() / self.photons).sqrt()
