r"""Guidance by the gradient of the misfit, as baselines: DPS and its latent form with gluing (PSLD).

    DPS     z = D - zeta sigma^2 / alpha grad |y - A(decode(D(z_t)))|
    PSLD    the same, and  - gamma sigma^2 / alpha grad |D - encode(x*)|,   x* = the decoded field made to fit y

(Chung et al. 2023, arXiv:2209.14687, Alg. 1; Rout et al. 2023, arXiv:2307.00619, Alg. 2). Adding
`sigma^2 / alpha grad log p(y | z_t)` to the estimate is exact; both put a norm with a hand-set weight in the place of
the unknown log-likelihood, so neither samples the posterior, even of a Gaussian. The norm is weighted,
`|w r| / rms(w)`, so that values count by their precision; where all have one precision it is the papers' own, and
`zeta` has to be found again for data of another scale (theirs were images in [-1, 1]). Norms are those of each sample:
taken over the batch, as is often done, the guidance would grow weaker with the number of samples.
"""

from abc import ABC
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.denoiser import Denoiser
from sciLDM.errors import ConfigError
from sciLDM.guidance.posterior.problem import Problem
from sciLDM.guidance.posterior.solver import PosteriorDenoiser, PosteriorSolver
from sciLDM.guidance.self_conditioning import reset_self_conditioning
from sciLDM.operators import linearise
from sciLDM.parametrisation import expand, safe_scales

__all__ = ["DPS", "PSLD", "DPSSolver", "PSLDSolver"]


class _Gradient(PosteriorDenoiser, ABC):
    """Shared: the estimate with a graph, and the guided estimate from a loss of each row."""

    def reset(self) -> None:
        """A new trajectory begins."""
        reset_self_conditioning(self.denoiser)

    def _open(self, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        x_t = x_t.detach().requires_grad_()
        self.evaluations.denoiser += 1
        return x_t, self.denoiser(x_t, t)

    def _close(self, x_t: Tensor, t: Tensor, prior: Tensor, loss: Tensor) -> Tensor:
        alpha, sigma = safe_scales(self.schedule, t)
        gradient = torch.autograd.grad(loss.sum(), x_t)[0]
        self.evaluations.denoiser_vjp += 1
        return (prior - expand(sigma**2 / alpha, x_t) * gradient).detach()


@final
class DPS(_Gradient):
    """Diffusion posterior sampling.

    Args:
        denoiser: The prior's `E[z | z_t]`.
        problem: The observation of each row.
        zeta: Strength; tuned by hand.
    """

    def __init__(self, denoiser: Denoiser, problem: Problem, *, zeta: float = 1.0) -> None:
        super().__init__(denoiser, problem)
        _check("zeta", zeta)
        self.zeta = zeta

    @torch.enable_grad()
    def forward(
        self, x_t: Float[Tensor, "batch *shape"], t: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch *shape"]:
        """The guided estimate."""
        x_t, prior = self._open(x_t, t)
        misfit = _norm(self.problem.target - self.problem.whitened(prior)) / _precision(self.problem)
        self.evaluations.decoder += 1
        self.evaluations.decoder_derivatives += 1
        return self._close(x_t, t, prior, self.zeta * misfit)


@final
class PSLD(_Gradient):
    """DPS with a second term that glues the latent to the encoding of a field that fits the data.

    The field is `x* = x + tau A^T w^2 (y - A(x))` with the `tau` of steepest descent, which for a mask or an
    orthonormal transform puts the data into the field as the paper does.

    Args:
        denoiser: The prior's `E[z | z_t]`.
        problem: The observation of each row.
        zeta: Strength of the misfit; tuned by hand.
        gamma: Strength of the gluing; tuned by hand.
    """

    def __init__(
        self, denoiser: Denoiser, problem: Problem, *, zeta: float = 1.0, gamma: float = 0.1
    ) -> None:
        super().__init__(denoiser, problem)
        _check("zeta", zeta)
        _check("gamma", gamma)
        self.zeta, self.gamma = zeta, gamma

    @torch.enable_grad()
    def forward(
        self, x_t: Float[Tensor, "batch *shape"], t: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch *shape"]:
        """The guided estimate."""
        problem, counts = self.problem, self.evaluations
        x_t, prior = self._open(x_t, t)
        x = problem.data.decode(prior)
        predicted, push, pull = linearise(problem.operator, x)
        residual = problem.target - problem.weights * predicted
        uphill = pull(problem.weights * residual)
        slope = _norm(problem.weights * push(uphill)).clamp(min=torch.finfo(x.dtype).tiny)
        fitted = x + expand((_norm(uphill) / slope).square(), x) * uphill
        glue = _norm(prior - problem.data.encode(fitted))
        counts.decoder += 1
        counts.operator += 3
        counts.encoder += 1
        counts.decoder_derivatives += 1
        return self._close(
            x_t, t, prior, self.zeta * _norm(residual) / _precision(problem) + self.gamma * glue
        )


@final
@dataclass(frozen=True)
class DPSSolver(PosteriorSolver):
    """Options of `DPS`."""

    zeta: float = 1.0

    def guide(self, denoiser: Denoiser, problem: Problem) -> DPS:
        return DPS(denoiser, problem, zeta=self.zeta)


@final
@dataclass(frozen=True)
class PSLDSolver(PosteriorSolver):
    """Options of `PSLD`."""

    zeta: float = 1.0
    gamma: float = 0.1

    def guide(self, denoiser: Denoiser, problem: Problem) -> PSLD:
        return PSLD(denoiser, problem, zeta=self.zeta, gamma=self.gamma)


def _norm(values: Tensor) -> Tensor:
    """Euclidean norm of each row; its gradient at 0 is 0."""
    square = values.flatten(1).square().sum(1)
    return torch.where(square > 0, square, 1.0).sqrt() * (square > 0)


def _precision(problem: Problem) -> Tensor:
    """Root mean square weight of each row's observed values."""
    return _norm(problem.weights) / problem.count.clamp(min=1).sqrt()


def _check(name: str, value: float) -> None:
    if value < 0:
        raise ConfigError(f"{name} must not be negative, got {value}; 0 turns it off")
