r"""What saliency is asked about: a function of latents, known by its gradient.

* `Decoded(fn)`: any differentiable number made of what the decoder says.
* `Conditional(name)`: how probable the denoiser holds a condition, given a noisy latent. The model is an implicit
  classifier (Ho & Salimans 2022, arXiv:2207.12598): with the score `(alpha x0_hat - x_t) / sigma^2`,

      grad_z log p(c | x_t = alpha z + sigma eps) = alpha^2 / sigma^2 (D(x_t, c) - D(x_t)),

  averaged over `eps`. No differentiation is needed, and the map tells what the conditional estimate depends on.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.explore.editing import check_strength, noise_time
from sciLDM.explore.native import Encoded, told
from sciLDM.model import LatentDiffusion
from sciLDM.parametrisation import expand, safe_scales
from sciLDM.rng import NoiseSource

__all__ = ["Conditional", "Decoded", "Quantity"]


class Quantity(ABC):
    """One number for each object, as a function of its normalised latent."""

    @abstractmethod
    def gradient(
        self,
        model: LatentDiffusion,
        encoded: Encoded,
        z: Float[Tensor, "batch channel *shape"],
        ids: Sequence[int],
    ) -> Float[Tensor, "batch channel *shape"]:
        """Gradient at latents `z`, with the masks and labels of `encoded`.

        Args:
            model: A trained model.
            encoded: The objects.
            z: Where.
            ids: Numbers of the objects, for noise.
        """

    @abstractmethod
    def value(
        self, model: LatentDiffusion, encoded: Encoded, z: Float[Tensor, "batch channel *shape"]
    ) -> Float[Tensor, "batch"] | None:
        """The number itself, or None where only its gradient is known."""


@final
class Decoded(Quantity):
    """A number made of the decoder's output.

    Args:
        fn: From what `Autoencoder.decode` returns to `[batch]`, differentiable, row by row. For fields it sees the
            decoder's own units; put `codec.to_units` in front for others.
    """

    def __init__(self, fn: Callable[[Any], Tensor]) -> None:
        self.fn = fn

    def gradient(
        self,
        model: LatentDiffusion,
        encoded: Encoded,
        z: Float[Tensor, "batch channel *shape"],
        ids: Sequence[int],
    ) -> Float[Tensor, "batch channel *shape"]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            number = self._number(model, encoded, z)
            if not number.requires_grad:
                raise ConfigError(
                    "fn: its result does not depend differentiably on the decoder's output (an argmax?)"
                )
            (gradient,) = torch.autograd.grad(number.sum(), z)
        return gradient

    @torch.no_grad()
    def value(
        self, model: LatentDiffusion, encoded: Encoded, z: Float[Tensor, "batch channel *shape"]
    ) -> Float[Tensor, "batch"] | None:
        return self._number(model, encoded, z)

    def _number(self, model: LatentDiffusion, encoded: Encoded, z: Tensor) -> Tensor:
        code = model.stats.denormalise(z)
        code = code if encoded.mask is None else code * encoded.mask[:, None]
        number = self.fn(model.autoencoder.decode(code, encoded.mask))
        if not isinstance(number, Tensor) or number.shape != (len(z),):
            got = tuple(number.shape) if isinstance(number, Tensor) else type(number).__name__
            raise ShapeMismatch(f"fn: expected one number for each of {len(z)} objects, got {got}")
        return number


@final
class Conditional(Quantity):
    """`log p(condition | noisy latent)` by the denoiser, given the object's other labels.

    Args:
        name: A condition of the model, other than those always given.
        value: Its value in the user's units; each object's own when None.
        strength: Noise level as in `edit`: low ones see details, high ones what decides early.
        draws: Noise draws averaged over.
        seed: Of the noise; object `i` depends on `(seed, i)` alone.
    """

    def __init__(
        self, name: str, value: float | None = None, *, strength: float = 0.4, draws: int = 16, seed: int = 0
    ) -> None:
        check_strength(strength)
        if strength == 1 or draws < 1:
            raise ConfigError(f"expected strength below 1 and draws >= 1, got {strength} and {draws}")
        self.name, self.given, self.strength, self.draws = name, value, strength, draws
        self.noise = NoiseSource(seed)

    @torch.no_grad()
    def gradient(
        self,
        model: LatentDiffusion,
        encoded: Encoded,
        z: Float[Tensor, "batch channel *shape"],
        ids: Sequence[int],
    ) -> Float[Tensor, "batch channel *shape"]:
        asked, without = self._labels(model, encoded)
        t = torch.full(
            (len(z),), noise_time(model.denoiser.schedule, self.strength), device=z.device, dtype=z.dtype
        )
        alpha, sigma = (expand(scale, z) for scale in safe_scales(model.denoiser.schedule, t))
        total = torch.zeros_like(z)
        for k in range(self.draws):
            eps = self.noise.normal(
                ids, tuple(z.shape[1:]), stream=f"draw {k}", device=z.device, dtype=z.dtype
            )
            x_t = alpha * z + sigma * eps
            with_label, no_label = (model.denoiser(x_t, t, cond, encoded.mask) for cond in (asked, without))
            total += with_label - no_label
        return (alpha / sigma) ** 2 * total / self.draws

    def value(
        self, model: LatentDiffusion, encoded: Encoded, z: Float[Tensor, "batch channel *shape"]
    ) -> Float[Tensor, "batch"] | None:
        return None

    def _labels(
        self, model: LatentDiffusion, encoded: Encoded
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Labels with the condition and without it."""
        known = {c.name: c for c in model.codec.conditions}
        request = encoded.request
        if self.name not in known or self.name in request.always:
            free = ", ".join(n for n in known if n not in request.always)
            raise ConfigError(
                f"cannot ask about {self.name!r}; conditions that may be left open: {free or 'none'}"
            )
        labels = {n: v.to(model.device) for n, v in request.cond.items()}
        if self.given is not None:
            own = labels.get(self.name, torch.zeros(len(encoded), device=model.device))
            labels[self.name] = torch.full_like(own, self.given)
        if self.name not in labels or not told(labels[self.name]):
            raise ConfigError(
                f"the objects do not tell their {self.name!r}; give Conditional({self.name!r}, value)"
            )
        return labels, {**labels, self.name: known[self.name].null(labels[self.name])}
