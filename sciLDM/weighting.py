"""Loss weights as functions of `lmbda`, always in x0 space: `loss = w(lmbda) |x0_hat - x|^2`.

Written once for the clean estimate, a weight means the same for every parametrisation: `UniformEps` is the plain
noise-prediction loss whether the network predicts `x`, `eps` or `v`. With `SNR = exp(2 lmbda)`:

| class | w | source |
|---|---|---|
| `UniformX0` | 1 | |
| `UniformEps` | SNR | Ho et al. 2020, arXiv:2006.11239 |
| `UniformV` | SNR + 1 | Salimans & Ho 2022, 2202.00512 |
| `MinSNR` | min(SNR, gamma) | Hang et al. 2023, 2303.09556 |
| `EDMWeight` | SNR + 1 / sigma_data^2 | Karras et al. 2022, 2206.00364 |
| `SigmoidWeight` | SNR sigmoid(bias - 2 lmbda) | Hoogeboom et al. 2024, 2410.19324 |
"""

import math
from abc import ABC, abstractmethod
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import ConfigError
from sciLDM.schedules import LMBDA_LIMIT

__all__ = ["EDMWeight", "MinSNR", "SigmoidWeight", "UniformEps", "UniformV", "UniformX0", "Weighting"]

Values = Float[Tensor, "*any"]


class Weighting(ABC):
    """Weight of the squared error of `x0_hat` at log-SNR `lmbda`; positive and finite for every `lmbda`."""

    @abstractmethod
    def __call__(self, lmbda: Values) -> Values:
        """The weight, of the shape of `lmbda`."""


def _snr(lmbda: Tensor) -> Tensor:
    return torch.exp(2 * lmbda.clamp(-LMBDA_LIMIT, LMBDA_LIMIT))


@final
class UniformX0(Weighting):
    """Plain error of the clean estimate."""

    def __call__(self, lmbda: Values) -> Values:
        return torch.ones_like(lmbda)


@final
class UniformEps(Weighting):
    """Plain error of the noise estimate."""

    def __call__(self, lmbda: Values) -> Values:
        return _snr(lmbda)


@final
class UniformV(Weighting):
    """Plain error of `v`: an untrained network's expected loss is 1 at every noise level."""

    def __call__(self, lmbda: Values) -> Values:
        return _snr(lmbda) + 1


@final
class MinSNR(Weighting):
    """Error of the noise estimate, capped at low noise so that no level dominates."""

    def __init__(self, gamma: float = 5.0) -> None:
        if gamma <= 0:
            raise ConfigError(f"MinSNR needs gamma > 0, got {gamma}")
        self.gamma = gamma

    def __call__(self, lmbda: Values) -> Values:
        return _snr(lmbda).clamp(max=self.gamma)


@final
class EDMWeight(Weighting):
    """EDM's `(sigma^2 + sigma_data^2) / (sigma sigma_data)^2`; equals `UniformV` for `sigma_data = 1`."""

    def __init__(self, sigma_data: float = 1.0) -> None:
        if sigma_data <= 0:
            raise ConfigError(f"EDMWeight needs sigma_data > 0, got {sigma_data}")
        self.sigma_data = sigma_data

    def __call__(self, lmbda: Values) -> Values:
        return _snr(lmbda) + self.sigma_data**-2


@final
class SigmoidWeight(Weighting):
    """Error of the noise estimate, faded out where the log-SNR `2 lmbda` exceeds `bias`."""

    def __init__(self, bias: float = 0.0) -> None:
        self.bias = bias

    def __call__(self, lmbda: Values) -> Values:
        # SNR sigmoid(b - l) = e^b sigmoid(l - b) with l = 2 lmbda: this form cannot overflow.
        return math.exp(self.bias) * torch.sigmoid(2 * lmbda.clamp(-LMBDA_LIMIT, LMBDA_LIMIT) - self.bias)
