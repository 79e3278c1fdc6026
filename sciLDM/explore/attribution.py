r"""From gradients to attributions: how much each latent number contributes.

    Gradient:             g(z)
    GradientTimesInput:   (z - z0) g(z)
    IntegratedGradients:  (z - z0) int_0^1 g(z0 + u (z - z0)) du        (Sundararajan et al. 2017, arXiv:1703.01365)

`z0` is the mean latent, 0. The last one sums to `f(z) - f(z0)` ("completeness") as far as the integral is exact: it is
by a Gauss-Legendre rule, exact for polynomials of degree `2 points - 1`; functions with kinks need more points, and
`Saliency.difference` tells. On a linear function the last two agree.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import ConfigError

__all__ = ["Attribution", "Gradient", "GradientTimesInput", "IntegratedGradients"]


class Attribution(ABC):
    """A rule from gradients to contributions."""

    @abstractmethod
    def __call__(
        self, gradient: Callable[[Tensor], Tensor], z: Float[Tensor, "batch channel *shape"]
    ) -> Float[Tensor, "batch channel *shape"]:
        """Contributions at latents `z`."""


@final
class Gradient(Attribution):
    """The gradient itself: what a small change would do."""

    def __call__(
        self, gradient: Callable[[Tensor], Tensor], z: Float[Tensor, "batch channel *shape"]
    ) -> Float[Tensor, "batch channel *shape"]:
        return gradient(z)


@final
class GradientTimesInput(Attribution):
    """Gradient times distance from the mean latent: one evaluation."""

    def __call__(
        self, gradient: Callable[[Tensor], Tensor], z: Float[Tensor, "batch channel *shape"]
    ) -> Float[Tensor, "batch channel *shape"]:
        return z * gradient(z)


@final
class IntegratedGradients(Attribution):
    """Gradient averaged along the line from the mean latent.

    Args:
        points: Evaluations.
    """

    def __init__(self, points: int = 16) -> None:
        if points < 1:
            raise ConfigError(f"IntegratedGradients needs at least 1 point, got {points}")
        self.points = points

    def __call__(
        self, gradient: Callable[[Tensor], Tensor], z: Float[Tensor, "batch channel *shape"]
    ) -> Float[Tensor, "batch channel *shape"]:
        nodes, weights = np.polynomial.legendre.leggauss(self.points)
        total = torch.zeros_like(z)
        for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
            total += weight / 2 * gradient((node + 1) / 2 * z)
        return z * total
