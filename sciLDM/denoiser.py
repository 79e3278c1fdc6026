"""Denoisers: from a noisy state to the posterior mean `E[x | x_t]`.

`Denoiser` is all that samplers and guidance know. `NetDenoiser` is the trainable one: a network wrapped by schedule
and parametrisation, with a condition, a mask and (for self-conditioning) an earlier estimate as further inputs;
`sciLDM.guidance` closes over those and returns a `Denoiser`.
"""

from abc import ABC, abstractmethod
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sciLDM.errors import ShapeMismatch
from sciLDM.gaussian_start import LatentStart
from sciLDM.parametrisation import Parametrisation, expand
from sciLDM.schedules import Schedule
from sciLDM.types import Cond

__all__ = ["Denoiser", "NetDenoiser"]


class Denoiser(nn.Module, ABC):
    """Posterior mean of the clean latent under `schedule`. Each sample is denoised on its own.

    Attributes:
        cond: The conditions of its rows, where it was given any.
    """

    schedule: Schedule
    cond: Cond | None = None

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule

    @abstractmethod
    def forward(
        self, x_t: Float[Tensor, "batch *shape"], t: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch *shape"]:
        """`x0_hat = E[x | x_t]`."""


@final
class NetDenoiser(nn.Module):
    """`x0_hat = c_skip x_t + c_out net(c_in x_t, c_noise, cond, mask, previous)`.

    The network alone runs under autocast; scales and skip connection keep the type of `x_t` (use float32). With
    `start`, that estimate takes the place of `c_skip x_t`: the network then learns what is not Gaussian.

    Args:
        net: Called as `net(x, c_noise, cond, mask, previous)`; returns the shape of `x`.
        schedule: Noise schedule; may be replaced after training, since `c_noise` depends on the noise level alone.
        parametrisation: What the network predicts.
        autocast_dtype: Type of the network's arithmetic, say `torch.bfloat16`; None for that of its weights.
        start: Linear estimate to start from, for latents that all have the same cells.
    """

    def __init__(
        self,
        net: nn.Module,
        schedule: Schedule,
        parametrisation: Parametrisation,
        *,
        autocast_dtype: torch.dtype | None = None,
        start: LatentStart | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.start = start
        self.schedule = schedule
        self.parametrisation = parametrisation
        self.autocast_dtype = autocast_dtype

    def forward(
        self,
        x_t: Float[Tensor, "batch channel *shape"],
        t: Float[Tensor, "batch"],
        cond: Cond | None = None,
        mask: Bool[Tensor, "batch *shape"] | Float[Tensor, "batch *shape"] | None = None,
        previous: Float[Tensor, "batch channel *shape"] | None = None,
    ) -> Float[Tensor, "batch channel *shape"]:
        """Clean estimate; exactly 0 outside the mask.

        Args:
            x_t: Noisy latent.
            t: Time of each sample.
            cond: Conditions; an absent key is a dropped condition.
            mask: True (or 1) where the latent exists.
            previous: An earlier estimate of the clean latent, for self-conditioning.

        Raises:
            ShapeMismatch: The network returned another shape.
        """
        c_in, c_skip, c_out, c_noise = self.parametrisation.network(self.schedule, t)
        c_noise = c_noise.to(x_t.dtype)
        with torch.autocast(
            x_t.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None
        ):
            output = self.net(expand(c_in, x_t) * x_t, c_noise, cond, mask, previous)
        if output.shape != x_t.shape:
            raise ShapeMismatch(
                f"the network must return the shape of its input {tuple(x_t.shape)}, got {tuple(output.shape)}; "
                "check its number of output channels"
            )
        if self.start is None:
            skip = expand(c_skip, x_t) * x_t
        else:
            alpha, sigma = self.schedule(t)
            skip = self.start(x_t, alpha.to(x_t), sigma.to(x_t).clamp(min=1e-6), cond)
        x0 = skip + expand(c_out, x_t) * output.to(x_t.dtype)
        return x0 if mask is None else x0.masked_fill(~mask.bool().unsqueeze(1), 0.0)
