"""A dense covariance, for latents of up to a few thousand numbers."""

from collections.abc import Iterable, Mapping
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import DataError
from sciLDM.gaussian_start.markov import FOLDS, LARGEST, Moments, autoregressive, best_order
from sciLDM.gaussian_start.start import LatentStart
from sciLDM.types import Cond

__all__ = ["GaussianStart"]

_KNOWN = 1e3
"""Deviation of a known cell, inverted: what is given counts as measured to a thousandth of a standard deviation."""
_LEAST_FACTOR = 0.2
"""Of a variance that follows a condition, on its mean."""


@final
class GaussianStart(LatentStart):
    r"""`E[x | x_t, known cells]` if latents were Gaussian, with any covariance.

    With few training samples the network need not find the covariance of the data by itself. For `x ~ N(m, C)`,

        E = m + C S (S C S + I)^-1 S (y - m),

    where a cell of `x_t` is a measurement of `x` with `S = alpha / sigma`, and a cell that the context gives has a
    large `S` instead. Without context this is diagonal in the eigenbasis of `C`.

    The variance along each axis of that basis may follow a condition `c`, say the season: `v (1 + g (c - mean of c))`,
    `g` by least squares on squared amplitudes, shrunk, and never less than a fifth of `v`.

    Args:
        size: Numbers in one latent; memory and time grow with its square (its cube with a context).
        context: The field condition whose cells are known where they are not NaN; None for none.
        trajectory: Channels of a latent, and the consecutive states that it holds along its first grid axis. With
            samples enough, and at most 1024 numbers, the covariance is that of an autoregression (`markov`).
        varies: Name and size of the vector condition that variances follow; None for none.
    """

    basis: Tensor
    variances: Tensor
    centre: Tensor
    slopes: Tensor

    def __init__(
        self,
        size: int,
        context: str | None = None,
        *,
        trajectory: tuple[int, int] | None = None,
        varies: tuple[str, int] | None = None,
    ) -> None:
        super().__init__(size)
        self.context, self.varies = context, None if varies is None else varies[0]
        self.states: Tensor | None = None
        if trajectory is not None and trajectory[1] > 1 and size <= LARGEST:
            self.states = torch.arange(size).view(*trajectory, -1).transpose(0, 1).flatten(1)
        self.register_buffer("basis", torch.eye(size))
        self.register_buffer("variances", torch.ones(size))
        width = 0 if varies is None else varies[1]
        self.register_buffer("centre", torch.zeros(width), persistent=width > 0)
        self.register_buffer("slopes", torch.zeros(width, size), persistent=width > 0)

    @torch.no_grad()
    def fit(self, latents: Iterable[Tensor]) -> None:
        """Mean and covariance, of trajectories by `markov`, else shrunk towards a multiple of the identity.

        Oracle-approximating shrinkage (Chen et al. 2010, doi:10.1109/TSP.2010.2053029, eq. 23).

        Raises:
            DataError: No latents.
        """
        size, parts = len(self.mean), 1 if self.states is None else FOLDS
        moments = Moments.of(latents, size, parts, self.mean.device)
        whole = Moments.sum(moments)
        if whole.count == 0:
            raise DataError("gaussian_start: expected training latents, got none")
        mean, n = whole.mean, whole.count
        covariance = whole.about(mean)
        states = None if self.states is None else self.states.to(mean.device)
        chosen = None if states is None else best_order(moments, states)
        if states is None or chosen is None:
            trace, squared = covariance.trace(), covariance.square().sum()
            rho = ((1 - 2 / size) * squared + trace**2) / (
                (n + 1 - 2 / size) * (squared - trace**2 / size).clamp(min=1e-12)
            )
            rho = rho.clamp(0.0, 1.0)
            identity = torch.eye(size).to(covariance)
            covariance = (1 - rho) * covariance + rho * trace / size * identity
        else:
            covariance = autoregressive(covariance, states, n, *chosen)
        variances, basis = torch.linalg.eigh(covariance)
        self.mean.copy_(mean)
        self.basis.copy_(basis)
        self.variances.copy_(variances.clamp(min=1e-8))

    @torch.no_grad()
    def fit_variances(self, latents: Iterable[tuple[Tensor, Mapping[str, Tensor]]]) -> None:
        """How variances follow the condition, after `fit`: from the same latents with their labels.

        Slopes are drawn towards their mean over all axes, by as much as those of the first and the second half of each
        batch disagree (rows that follow each other may be alike). Rows without a label are left out; nothing follows
        where hardly any has one.
        """
        if self.varies is None:
            return
        terms, size = 1 + len(self.slopes), len(self.mean)
        mean, basis, variances = (b.double() for b in (self.mean, self.basis, self.variances))
        products = mean.new_zeros(2, terms, terms + size)
        for z, cond in latents:
            label, x = cond[self.varies].to(mean), z.flatten(1).to(mean)
            kept = label.isfinite().all(dim=1)
            amplitude = ((x[kept] - mean) @ basis).square() / variances
            design = torch.cat([torch.ones_like(amplitude[:, :1]), label[kept]], dim=1)
            rows = torch.cat([design, amplitude], dim=1)
            for half, (h, r) in enumerate(zip(design.tensor_split(2), rows.tensor_split(2), strict=True)):
                products[half].addmm_(h.mT, r)
        whole = products.sum(dim=0)
        if whole[0, 0] <= 4 * terms:
            return
        slopes, *halves = (_least_squares(p, terms)[1:] for p in (whole, *products))
        common = slopes.mean(dim=1, keepdim=True)
        one, other = (h - h.mean(dim=1, keepdim=True) for h in halves)
        signal, noise = (one * other).mean(), (one - other).square().mean() / 4
        trust = (signal / (signal + noise)).nan_to_num().clamp(0.0, 1.0)
        self.centre.copy_(whole[0, 1:terms] / whole[0, 0])
        self.slopes.copy_(common + trust * (slopes - common))

    def variances_of(self, cond: Cond | None) -> Float[Tensor, "row size"]:
        """Variances along `basis`: one row for each of the condition's, or a single one for all."""
        given = None if self.varies is None or cond is None else cond.get(self.varies)
        if given is None:
            return self.variances[None]
        # A label that is missing (NaN) is as good as the mean one.
        away = (given.to(self.slopes) - self.centre).nan_to_num()
        return self.variances * (1 + away @ self.slopes).clamp(min=_LEAST_FACTOR)

    @property
    def covariance(self) -> Float[Tensor, "size size"]:
        """`C`, symmetric to the last bit; of the mean condition where it follows one."""
        half = self.basis * self.variances.sqrt()
        return half @ half.T

    def correction(
        self,
        v: Float[Tensor, "batch size"],
        alpha: Float[Tensor, "batch"],
        sigma: Float[Tensor, "batch"],
        cond: Cond | None = None,
    ) -> Float[Tensor, "batch size"]:
        a, s = alpha[:, None] ** 2, sigma[:, None] ** 2
        variances, basis = self.variances_of(cond).to(v), self.basis.to(v)
        return (v @ basis * (s * (variances - 1) / (a * variances + s))) @ basis.T

    def forward(
        self,
        x_t: Float[Tensor, "batch channel *shape"],
        alpha: Float[Tensor, "batch"],
        sigma: Float[Tensor, "batch"],
        cond: Cond | None,
    ) -> Float[Tensor, "batch channel *shape"]:
        known = None if self.context is None or cond is None else cond.get(self.context)
        if known is None or not bool(known.isfinite().any()):
            return self.estimate(x_t, alpha, sigma, cond)
        flat = x_t.flatten(1)
        rate, offset = (alpha / sigma)[:, None], (flat - alpha[:, None] * self.mean) / sigma[:, None]
        given = known.flatten(1).to(flat)
        there = given.isfinite()
        scale = torch.where(there, _KNOWN, rate)
        offset = torch.where(there, _KNOWN * (given.nan_to_num() - self.mean), offset)
        # Rows with the same known cells, noise and variances (an ensemble) share a factorisation.
        keys = torch.cat([scale, self.variances_of(cond).to(flat).expand_as(scale)], dim=1)
        keys, group = torch.unique(keys, dim=0, return_inverse=True)
        basis, found = self.basis.to(flat), torch.empty_like(flat)
        for k, key in enumerate(keys):
            rows, (weights, variances) = group == k, key.chunk(2)
            half = basis * variances.sqrt()
            covariance = half @ half.T
            system = weights[:, None] * covariance * weights + torch.eye(len(weights)).to(flat)
            solved = torch.linalg.solve(system.double(), offset[rows].double().mT).mT.to(flat)
            found[rows] = self.mean + (weights * solved) @ covariance
        return found.view_as(x_t)


def _least_squares(products: Float[Tensor, "term both"], terms: int) -> Float[Tensor, "term size"]:
    """Coefficients from the products of the regressors with themselves and with the targets."""
    return torch.linalg.pinv(products[:, :terms], hermitian=True) @ products[:, terms:]
