r"""What a posterior solver is given: `y = A(decode(z)) + noise`, whitened.

`z` is the normalised latent that the denoiser sees, `x = decode(z)` the field in the data's own units. Everything a
solver computes with is divided by the standard deviation of the observation errors, so that `R = I`, the squared norm
of the residual is a chi-square, and a missing value is a weight of 0.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sciLDM.errors import ConfigError, DataError, ShapeMismatch
from sciLDM.operators import Observation, Operator

__all__ = ["DataMap", "IdentityMap", "Problem"]

NOISE_FLOOR = 1e-4
"""Least noise, relative to the spread of the observed values: what stands for noise-free observations."""


class DataMap(nn.Module, ABC):
    """From the denoiser's latents to fields and back. Differentiable; each row is mapped on its own."""

    @abstractmethod
    def decode(self, z: Float[Tensor, "batch *latent"]) -> Float[Tensor, "batch *field"]:
        """The field, in the data's units, that a normalised latent stands for."""

    @abstractmethod
    def encode(self, x: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch *latent"]:
        """The normalised latent of a field in the data's units."""

    def outline(self, z: Float[Tensor, "batch *latent"]) -> Float[Tensor, "batch *field"]:
        """A cheap map whose derivative is close to the decoder's; the decoder itself where there is none."""
        return self.decode(z)


@final
class IdentityMap(DataMap):
    """For denoisers that work on the fields themselves."""

    def decode(self, z: Float[Tensor, "batch *latent"]) -> Float[Tensor, "batch *field"]:
        return z

    def encode(self, x: Float[Tensor, "batch *field"]) -> Float[Tensor, "batch *latent"]:
        return x


@final
@dataclass(frozen=True)
class Problem:
    """An observation of every row of a batch of latents.

    Attributes:
        data: Decoder and encoder.
        operator: What was observed of the fields.
        values: Observed values without NaN: 0 where missing.
        weights: `1 / std` of the observation errors, 0 where missing.
        whitener: `Q` with `Q R Q^T = I` for errors that are correlated, `R` their correlation in row-major order of the
            values; None for independent ones.

    Raises:
        ShapeMismatch: Values, weights and operator do not belong together.
        DataError: Values or weights that are not finite.
    """

    data: DataMap
    operator: Operator
    values: Float[Tensor, "batch *observation"]
    weights: Float[Tensor, "batch *observation"]
    whitener: Float[Tensor, "batch value value"] | None = None

    def __post_init__(self) -> None:
        if self.values.shape != self.weights.shape or tuple(self.values.shape[1:]) != self.operator.out_shape:
            raise ShapeMismatch(
                f"expected values and weights of shape (batch, *{self.operator.out_shape}), got "
                f"{tuple(self.values.shape)} and {tuple(self.weights.shape)}"
            )
        if not bool(self.values.isfinite().all() & self.weights.isfinite().all()):
            raise DataError("values and weights must be finite; a missing value is 0 with weight 0")

    @staticmethod
    def from_observation(observation: Observation, data: DataMap, *, repeat: int = 1) -> "Problem":
        """Whiten an observation; each case fills `repeat` consecutive rows (the samples of that case).

        Noise below 1e-4 of the spread of a case's observed values is raised to that: exact data would make the
        posterior a surface that no float32 solver can follow.

        Args:
            observation: Values (NaN where missing), operator and noise.
            data: Decoder and encoder; its context must have one row for each row of the problem.
            repeat: Rows for each case.

        Raises:
            ConfigError: The noise is unknown, or `repeat` is below 1.
        """
        if observation.noise is None:
            raise ConfigError("the noise is unknown: give its standard deviation, or estimate it first")
        if repeat < 1:
            raise ConfigError(f"repeat: expected at least 1 row for each case, got {repeat}")
        present = observation.present
        values = torch.where(present, observation.values, 0.0)
        std = torch.maximum(observation.noise.std(values), _floor(values, present))
        weights = torch.where(present, 1 / std, 0.0)
        return Problem(
            data,
            observation.operator,
            values.repeat_interleave(repeat, 0),
            weights.repeat_interleave(repeat, 0),
        )

    def whitened(self, z: Float[Tensor, "batch *latent"]) -> Float[Tensor, "batch *observation"]:
        """`H(z) = Q w A(decode(z))`, with unit noise."""
        return self._decorrelated(self.weights * self.operator(self.data.decode(z)))

    def outlined(self, z: Float[Tensor, "batch *latent"]) -> Float[Tensor, "batch *observation"]:
        """The same through `DataMap.outline`: its derivative costs little."""
        return self._decorrelated(self.weights * self.operator(self.data.outline(z)))

    @property
    def target(self) -> Float[Tensor, "batch *observation"]:
        """`Q w y`."""
        return self._decorrelated(self.weights * self.values)

    def _decorrelated(self, u: Tensor) -> Tensor:
        if self.whitener is None:
            return u
        return (self.whitener @ u.flatten(1)[:, :, None]).reshape(u.shape)

    @property
    def count(self) -> Float[Tensor, "batch"]:
        """Number of values observed in each row."""
        return (self.weights > 0).flatten(1).sum(1).to(self.values)

    def chi2(self, z: Float[Tensor, "batch *latent"]) -> Float[Tensor, "batch"]:
        """Mean squared whitened residual; about 1 where the data are met to within their noise."""
        return (self.target - self.whitened(z)).flatten(1).square().sum(1) / self.count.clamp(min=1)


def _floor(values: Tensor, present: Tensor) -> Tensor:
    """Least noise of each row, from the root mean square deviation (or value, where that is 0) of what is present."""
    flat, there = values.flatten(1).to(torch.float64), present.flatten(1)
    count = there.sum(1, keepdim=True).clamp(min=1)
    mean = flat.sum(1, keepdim=True) / count
    spread = ((flat - mean).square() * there).sum(1, keepdim=True).div(count).sqrt()
    size = flat.square().sum(1, keepdim=True).div(count).sqrt()
    scale = torch.where(spread > 1e-6 * size, spread, size)
    scale = torch.where(scale > 0, scale, 1.0)
    return (NOISE_FLOOR * scale).to(values).reshape(-1, *[1] * (values.ndim - 1))
