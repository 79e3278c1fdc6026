r"""Known cells of the latent are kept, the rest is generated around them (masking as in RePaint, arXiv:2201.09865).

RePaint puts `alpha z + sigma eps` with the known `z` into the state at each level. Replacing the estimate instead does
the same in an exponential integrator: the state of a known cell is then exactly `alpha z + sigma eps` with the noise
it started from. The unknown cells see the known ones only through the denoiser, without a look back: cheap, and
approximate where they depend strongly on each other. The paper's repeated noising is left to the sampler's churn.
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sciLDM.denoiser import Denoiser
from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.guidance.posterior.problem import Problem
from sciLDM.guidance.posterior.solver import PosteriorDenoiser, PosteriorSolver
from sciLDM.guidance.self_conditioning import reset_self_conditioning
from sciLDM.operators import LinearOperator

__all__ = ["Replacement", "ReplacementSolver"]


@final
class Replacement(PosteriorDenoiser):
    """The estimate with known cells put in.

    Args:
        denoiser: The prior's `E[z | z_t]`.
        problem: The observation of each row.
        cells: True where the latent is known; broadcasts to a batch of latents.
        known: The latent, read where `cells`; the encoding of `A^T y` when None, which is right for masks whose
            known cells see no gap.

    Raises:
        ConfigError: `known` is None and the operator has no adjoint.
        ShapeMismatch: `cells` or `known` do not fit the latent.
    """

    known: Tensor
    cells: Tensor

    def __init__(
        self,
        denoiser: Denoiser,
        problem: Problem,
        *,
        cells: Bool[Tensor, "*cells"],
        known: Float[Tensor, "batch *latent"] | None = None,
    ) -> None:
        super().__init__(denoiser, problem)
        if known is None:
            if not isinstance(problem.operator, LinearOperator):
                raise ConfigError(
                    f"{type(problem.operator).__name__} has no adjoint to fill a field with: give the known latent"
                )
            with torch.no_grad():
                known = problem.data.encode(problem.operator.adjoint(problem.values * (problem.weights > 0)))
            self.evaluations.encoder += 1
            self.evaluations.operator += 1
        pairs = zip(reversed(cells.shape), reversed(known.shape), strict=False)
        if cells.ndim > known.ndim or any(c not in (1, k) for c, k in pairs):
            raise ShapeMismatch(
                f"cells of shape {tuple(cells.shape)} do not fit latents {tuple(known.shape)}"
            )
        self.register_buffer("known", known)
        self.register_buffer("cells", cells)

    def forward(
        self, x_t: Float[Tensor, "batch *shape"], t: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch *shape"]:
        """`known` where it is known, the prior's estimate elsewhere."""
        self.evaluations.denoiser += 1
        return torch.where(self.cells, self.known.to(x_t), self.denoiser(x_t, t))

    def reset(self) -> None:
        """A new trajectory begins."""
        reset_self_conditioning(self.denoiser)


@final
@dataclass(frozen=True, eq=False)
class ReplacementSolver(PosteriorSolver):
    """Options of `Replacement`."""

    cells: Bool[Tensor, "*cells"]
    known: Float[Tensor, "batch *latent"] | None = None

    def guide(self, denoiser: Denoiser, problem: Problem) -> Replacement:
        return Replacement(denoiser, problem, cells=self.cells, known=self.known)
