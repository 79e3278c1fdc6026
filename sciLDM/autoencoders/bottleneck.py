r"""What lies between encoder and decoder: a KL penalty, or plain noise on a bounded code.

The decoder must forgive the denoiser's errors, so it is trained on latents that are not quite right. A KL bottleneck
(Kingma & Welling 2014, arXiv:1312.6114) learns how much noise each cell stands; a noise bottleneck sets it: the code is
bounded, so the encoder cannot escape the noise by growing.
"""

from abc import ABC, abstractmethod
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

__all__ = ["Bottleneck", "KLBottleneck", "NoiseBottleneck", "SaturatingBottleneck"]


class Bottleneck(nn.Module, ABC):
    """Maps the encoder's mean (and log std) to the code that the decoder is trained on."""

    @abstractmethod
    def code(self, mean: Float[Tensor, "batch channel *shape"]) -> Float[Tensor, "batch channel *shape"]:
        """The noise-free code."""

    @abstractmethod
    def forward(
        self,
        mean: Float[Tensor, "batch channel *shape"],
        log_std: Float[Tensor, "batch channel *shape"] | None,
        mask: Bool[Tensor, "batch *shape"] | None,
        generator: torch.Generator,
    ) -> tuple[Float[Tensor, "batch channel *shape"], Float[Tensor, "batch"] | None]:
        """A noisy code for training, and a penalty per sample (None when there is none)."""


@final
class KLBottleneck(Bottleneck):
    r"""`z = mean + std * eps` with penalty `weight * KL(q(z|x) || N(0, 1))`, summed over cells and channels.

    Args:
        weight: Weight of the divergence; 1e-6 to 1e-5 keeps latents bounded and near-lossless.
    """

    def __init__(self, weight: float = 1e-5) -> None:
        super().__init__()
        self.weight = weight

    def code(self, mean: Tensor) -> Tensor:
        return mean

    def forward(
        self, mean: Tensor, log_std: Tensor | None, mask: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        if log_std is None:
            raise ValueError("a KL bottleneck needs an encoder that returns log_std")
        log_std = log_std.clamp(-10.0, 5.0)
        eps = _normal_like(mean, generator)
        divergence = 0.5 * (mean.square() + (2 * log_std).exp() - 1 - 2 * log_std)
        if mask is not None:
            divergence = divergence * mask[:, None]
        return mean + log_std.exp() * eps, self.weight * divergence.flatten(1).sum(dim=1)


@final
class NoiseBottleneck(Bottleneck):
    r"""A bounded code `c = bound * tanh(mean / bound)` plus noise: `z = c + s * eps`, `s ~ U(0, noise)` per sample.

    Args:
        noise: Largest standard deviation, in units of the code.
        bound: Where the code saturates; about 1 makes codes near-binary, large values leave them free.
    """

    def __init__(self, noise: float = 0.3, *, bound: float = 1.0) -> None:
        super().__init__()
        self.noise, self.bound = noise, bound

    def code(self, mean: Tensor) -> Tensor:
        return self.bound * torch.tanh(mean / self.bound)

    def forward(
        self, mean: Tensor, log_std: Tensor | None, mask: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        size = (mean.shape[0], *[1] * (mean.ndim - 1))
        level = self.noise * torch.rand(size, generator=generator, device=generator.device).to(mean)
        return self.code(mean) + level * _normal_like(mean, generator), None


@final
class SaturatingBottleneck(Bottleneck):
    r"""A softly bounded code `c = mean / sqrt(1 + (mean / bound)^2)` plus noise: `z = c + noise * eps`.

    Against `tanh` it approaches its bound slowly, so that extremes keep their order and their gradient (as in LoLA,
    Rozet et al. 2025, arXiv:2507.02608).

    Args:
        noise: Standard deviation, in units of the code.
        bound: Where the code saturates, in units of the code; below about 8 extremes of a unit-variance code suffer.
    """

    def __init__(self, noise: float = 0.05, *, bound: float = 8.0) -> None:
        super().__init__()
        self.noise, self.bound = noise, bound

    def code(self, mean: Tensor) -> Tensor:
        return mean * (1 + (mean / self.bound).square()).rsqrt()

    def invert(self, code: Tensor) -> Tensor:
        """The mean that has this code; beyond 0.9 of the bound (where the inverse explodes) that of 0.9."""
        share = (code / self.bound).clamp(-0.9, 0.9)
        return self.bound * share * (1 - share.square()).rsqrt()

    def forward(
        self, mean: Tensor, log_std: Tensor | None, mask: Tensor | None, generator: torch.Generator
    ) -> tuple[Tensor, Tensor | None]:
        return self.code(mean) + self.noise * _normal_like(mean, generator), None


def _normal_like(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(x.shape, generator=generator, device=generator.device).to(x)
