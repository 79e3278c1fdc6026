r"""The cheap data step: decode, meet the data in field space, encode. No derivative of decoder or denoiser.

With `x = decode(D)` and `L` the spread of fields that latents as uncertain as `z | z_t` decode to,

    x' = argmin |w (y - A(x'))|^2 + |L^-1 (x' - x)|^2,      z = D + encode(x') - encode(x),

solved by conjugate gradients for `u` in `(I + w A L^2 A^T w) u = w (y - A(x))`, `x' = x + L^2 A^T w u` (DDS, Chung et
al. 2024, arXiv:2303.05754, carried into latents). The difference of two encodings leaves no trace of
the autoencoder's error where the data are already met.

`L` is diagonal: one number for each channel, the root mean square of `decode(D + r v) - decode(D)` for a fixed normal
probe `v` and `r^2 = sigma^2 / (alpha^2 + sigma^2)`. Fields of several units are thus each given their own width.
Correlations between grid points are left to the denoiser, so this is no exact posterior even for a Gaussian.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.denoiser import Denoiser
from sciLDM.errors import ConfigError
from sciLDM.guidance.posterior.covariance import isotropic_variance, lowered
from sciLDM.guidance.posterior.gauss_newton import stopping_tolerance
from sciLDM.guidance.posterior.problem import Problem
from sciLDM.guidance.posterior.solver import PosteriorDenoiser, PosteriorSolver
from sciLDM.guidance.self_conditioning import reset_self_conditioning
from sciLDM.operators import linearise
from sciLDM.operators.solve import conjugate_gradient
from sciLDM.rng import NoiseSource

__all__ = ["DecodeEncode", "DecodeEncodeSolver"]

_PROBE = NoiseSource(0)


@final
class DecodeEncode(PosteriorDenoiser):
    """Decode, conjugate gradients on the field, encode.

    Args:
        denoiser: The prior's `E[z | z_t]`.
        problem: The observation of each row.
        tolerance: Relative residual to stop at, or that fraction of the noise where this is more.
        max_iterations: Most conjugate gradient iterations; each costs one operator and one adjoint.
    """

    def __init__(
        self, denoiser: Denoiser, problem: Problem, *, tolerance: float = 1e-3, max_iterations: int = 64
    ) -> None:
        super().__init__(denoiser, problem)
        if max_iterations < 1 or tolerance <= 0:
            raise ConfigError(
                f"DecodeEncode needs max_iterations >= 1 and tolerance > 0, got {max_iterations} and {tolerance}"
            )
        self.tolerance, self.max_iterations = tolerance, max_iterations

    @torch.no_grad()
    def forward(
        self, x_t: Float[Tensor, "batch *shape"], t: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch *shape"]:
        """`z` with the data met as far as `z | z_t` allows."""
        x_t, t = lowered(self.denoiser, x_t, t)
        self.evaluations.denoiser += 1
        return self.correct(self.denoiser(x_t, t), t)

    def correct(
        self, prior: Float[Tensor, "batch *shape"], t: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch *shape"]:
        """The data step alone, from `D(z_t)`."""
        data = self.problem.data
        x = data.decode(prior)
        width = self._width(prior, x, isotropic_variance(self.denoiser, prior, t).sqrt())
        moved = x + width * self._step(x, width)
        self.evaluations.encoder += 2
        return prior + data.encode(moved) - data.encode(x)

    def reset(self) -> None:
        """A new trajectory begins."""
        reset_self_conditioning(self.denoiser)

    def _width(self, prior: Tensor, x: Tensor, r: Tensor) -> Tensor:
        """Spread of decoded fields, per row, and per channel where fields have a grid."""
        probe = _PROBE.normal(
            [0], tuple(prior.shape[1:]), stream="width", device=prior.device, dtype=prior.dtype
        )
        response = self.problem.data.decode(prior + r * probe) - x
        self.evaluations.decoder += 2
        axes = tuple(range(2 if x.ndim > 2 else 1, x.ndim))
        return response.square().mean(axes, keepdim=True).sqrt()

    def _step(self, x: Tensor, width: Tensor) -> Tensor:
        """`L A^T w u`, the step in units of the width."""
        problem, counts = self.problem, self.evaluations
        predicted, push, pull = linearise(problem.operator, x)

        def back(u: Tensor) -> Tensor:
            counts.operator += 1
            return width * pull(problem.weights * u)

        def ahead(v: Tensor) -> Tensor:
            counts.operator += 1
            return problem.weights * push(width * v)

        residual = problem.target - problem.weights * predicted
        return back(
            conjugate_gradient(
                lambda u: u + ahead(back(u)),
                residual,
                tolerance=stopping_tolerance(problem, residual, self.tolerance),
                max_iterations=self.max_iterations,
            ).x
        )


@final
@dataclass(frozen=True)
class DecodeEncodeSolver(PosteriorSolver):
    """Options of `DecodeEncode`."""

    tolerance: float = 1e-3
    max_iterations: int = 64

    def guide(self, denoiser: Denoiser, problem: Problem) -> DecodeEncode:
        return DecodeEncode(denoiser, problem, tolerance=self.tolerance, max_iterations=self.max_iterations)
