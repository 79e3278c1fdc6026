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
from sciLDM.parametrisation import Parametrisation, expand
from sciLDM.schedules import Schedule
from sciLDM.types import Cond

__all__ = ["Denoiser", "GaussianStart", "NetDenoiser"]

_KNOWN = 1e3
"""Deviation of a known cell, inverted: what is given counts as measured to a thousandth of a standard deviation."""


class Denoiser(nn.Module, ABC):
    """Posterior mean of the clean latent under `schedule`. Each sample is denoised on its own."""

    schedule: Schedule

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        self.schedule = schedule

    @abstractmethod
    def forward(
        self, x_t: Float[Tensor, "batch *shape"], t: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch *shape"]:
        """`x0_hat = E[x | x_t]`."""


@final
class GaussianStart(nn.Module):
    r"""`E[x | x_t, known cells]` if latents were Gaussian: what a denoiser knows before it has learned anything.

    With few training samples the network need not find the covariance of the data by itself. For `x ~ N(m, C)`,

        E = m + C S (S C S + I)^-1 S (y - m),

    where a cell of `x_t` is a measurement of `x` with `S = alpha / sigma`, and a cell that the context gives has a
    large `S` instead. Without context this is diagonal in the eigenbasis of `C`.

    Args:
        size: Numbers in one latent; memory and time grow with its square (its cube with a context).
        context: The field condition whose cells are known where they are not NaN; None for none.
    """

    mean: Tensor
    basis: Tensor
    variances: Tensor

    def __init__(self, size: int, context: str | None = None) -> None:
        super().__init__()
        self.context = context
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("basis", torch.eye(size))
        self.register_buffer("variances", torch.ones(size))

    @torch.no_grad()
    def fit(self, z: Float[Tensor, "sample channel *shape"]) -> None:
        """Mean and covariance of normalised latents, shrunk towards a multiple of the identity.

        Oracle-approximating shrinkage (Chen et al. 2010, doi:10.1109/TSP.2010.2053029, eq. 23).
        """
        x = z.flatten(1).double()
        n, size = x.shape
        mean = x.mean(dim=0)
        covariance = torch.cov(x.T, correction=0).reshape(size, size)
        trace, square = covariance.trace(), covariance.square().sum()
        rho = ((1 - 2 / size) * square + trace**2) / (
            (n + 1 - 2 / size) * (square - trace**2 / size).clamp(min=1e-12)
        )
        rho = rho.clamp(0.0, 1.0)
        identity = torch.eye(size, dtype=x.dtype, device=x.device)
        variances, basis = torch.linalg.eigh((1 - rho) * covariance + rho * trace / size * identity)
        self.mean.copy_(mean)
        self.basis.copy_(basis)
        self.variances.copy_(variances.clamp(min=1e-8))

    @property
    def covariance(self) -> Float[Tensor, "size size"]:
        """`C`, symmetric to the last bit."""
        half = self.basis * self.variances.sqrt()
        return half @ half.T

    def forward(
        self,
        x_t: Float[Tensor, "batch channel *shape"],
        alpha: Float[Tensor, "batch"],
        sigma: Float[Tensor, "batch"],
        cond: Cond | None,
    ) -> Float[Tensor, "batch channel *shape"]:
        """The estimate; `sigma` must not be 0."""
        flat = x_t.flatten(1)
        rate = (alpha / sigma)[:, None]
        offset = (flat - alpha[:, None] * self.mean) / sigma[:, None]
        known = None if self.context is None or cond is None else cond.get(self.context)
        if known is None or not bool(known.isfinite().any()):
            gain = rate * self.variances / (1 + rate**2 * self.variances)
            return (self.mean + (offset @ self.basis * gain) @ self.basis.T).view_as(x_t)
        given = known.flatten(1).to(flat)
        there = given.isfinite()
        scale = torch.where(there, _KNOWN, rate)
        offset = torch.where(there, _KNOWN * (given.nan_to_num() - self.mean), offset)
        covariance = self.covariance
        system = scale[:, :, None] * covariance * scale[:, None, :]
        system = system + torch.eye(len(self.mean), dtype=flat.dtype, device=flat.device)
        found = torch.linalg.solve(system.double(), offset.double()).to(flat)
        return (self.mean + (scale * found) @ covariance).view_as(x_t)


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
        start: GaussianStart | None = None,
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
