r"""Gauss-Newton with the Jacobian written out, for latents of up to a few hundred numbers.

As in `gauss_newton`, with `V = U diag(v) U^T` of a Gaussian prior and the whitened residual `r = w y - H(D)`,

    E[z | z_t, y] = D + U s (I + s U^T J^T J U s)^-1 s U^T J^T r,    s = diag(v)^(1/2).

The decoder's part of `J` is made of secants over the prior's width about its centre, found once for all cases and
samples: a decoder that bends is straightened where the prior is, as in statistical linearisation. The operator's part
is found once for each case. A call then takes one denoiser, one decoder and a small factorisation, where conjugate
gradients take several pairs of derivatives. How the decoder bends is in `r`, which is exact.
"""

from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sciLDM.denoiser import Denoiser
from sciLDM.guidance.posterior.covariance import DenseGaussian, lowered
from sciLDM.guidance.posterior.problem import Problem
from sciLDM.guidance.posterior.solver import Evaluations, PosteriorDenoiser, PosteriorSolver
from sciLDM.guidance.self_conditioning import reset_self_conditioning
from sciLDM.operators import linearise

__all__ = ["DenseGaussNewton", "DenseGaussNewtonSolver"]

_ALIKE, _LEAST = 1e-3, 1e-3
"""How alike decoders must be to share secants, and the shortest of these beside the longest."""


@final
@dataclass(frozen=True)
class _Linear:
    """`J U` of every case, and which case a row belongs to."""

    case: Int[Tensor, "batch"]
    jacobian: Float[Tensor, "case observation latent"]
    gram: Float[Tensor, "case latent latent"]


@final
class DenseGaussNewton(PosteriorDenoiser):
    """A Gauss-Newton step from the prior's estimate, solved in the axes of a Gaussian prior.

    Args:
        denoiser: The prior's `E[z | z_t]`.
        problem: The observation of each row; rows with the same values, weights and decoder share a Jacobian.
        covariance: Of the prior; its size is that of the latents.
        secants: Those of an earlier solver with the same decoder.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        problem: Problem,
        *,
        covariance: DenseGaussian,
        secants: "_Secants | None" = None,
    ) -> None:
        super().__init__(denoiser, problem)
        self.covariance = covariance
        self._secants = secants or _Secants()
        self._linear: _Linear | None = None

    @torch.no_grad()
    def forward(
        self, x_t: Float[Tensor, "batch *shape"], t: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch *shape"]:
        """`E[z | z_t, y]`."""
        x_t, t = lowered(self.denoiser, x_t, t)
        self.evaluations.denoiser += 1
        prior = self.denoiser(x_t, t)
        alpha, sigma = (c[:, None].to(prior) for c in self.denoiser.schedule(t))
        variances = self.covariance.variances_of(self.denoiser).to(prior)
        width = (variances * sigma**2 / (alpha**2 * variances + sigma**2)).sqrt()
        with torch.autocast(prior.device.type, enabled=False):
            linear = self._linear
            if linear is None or len(linear.case) != len(prior):
                linear = self._linear = self._linearised(prior)
            self.evaluations.decoder += 1
            residual = self.problem.target - self.problem.whitened(prior)
            return prior + self._step(linear, residual, width).view_as(prior)

    def reset(self) -> None:
        """A new trajectory begins."""
        reset_self_conditioning(self.denoiser)
        self._linear = None

    def _step(self, linear: _Linear, residual: Tensor, width: Tensor) -> Tensor:
        """`U s (I + s K s)^-1 s U^T J^T r`."""
        uphill = (residual.flatten(1)[:, None] @ linear.jacobian[linear.case])[:, 0]
        system = width[:, :, None] * linear.gram[linear.case] * width[:, None, :]
        system.diagonal(dim1=1, dim2=2).add_(1)
        factor = torch.linalg.cholesky(system.double())
        solved = torch.cholesky_solve((width * uphill).double()[:, :, None], factor)[:, :, 0].to(width)
        return (width * solved) @ self.covariance.axes.to(width).mT

    def _linearised(self, like: Tensor) -> _Linear:
        """About the prior's centre; rows with the same values, weights and decoder belong to one case."""
        problem = self.problem
        centre = problem.data.decode(torch.zeros_like(like))
        self.evaluations.decoder += 1
        rows = torch.cat([v.flatten(1) for v in (problem.values, problem.weights, centre)], dim=1)
        case = torch.unique(rows, dim=0, return_inverse=True)[1]
        secants = self._secants.found(problem, self.covariance, like, self.evaluations)
        columns = []
        for k in range(int(case.max()) + 1):
            row = int((case == k).nonzero()[0])
            own = secants[0 if len(secants) == 1 else row]
            forward = linearise(problem.operator, centre[row : row + 1].expand_as(own).contiguous())[1]
            image = (problem.weights[row] * forward(own)).flatten(1)
            columns.append(image if problem.whitener is None else image @ problem.whitener[row].mT)
        columns = torch.stack(columns)
        jacobian = columns.mT.contiguous()
        return _Linear(case, jacobian, columns @ jacobian)


@final
class _Secants:
    """Of a decoder along the axes of a Gaussian; kept while the decoder stays the same."""

    def __init__(self) -> None:
        self._kept: Tensor | None = None

    def found(
        self, problem: Problem, covariance: DenseGaussian, like: Tensor, counts: Evaluations
    ) -> Float[Tensor, "one latent *field"]:
        """For all rows, or one set a row where rows have decoders of their own (units that differ)."""
        kept = self._kept
        probe = self._along(
            problem, covariance, like, torch.arange(len(like)) % len(covariance.variances), counts
        )
        if kept is not None and kept[0, 0].shape == probe[0].shape:
            same = kept[0][torch.arange(len(like)) % kept.shape[1]]
            if float((same - probe).norm()) <= _ALIKE * float(probe.norm()):
                return kept
        dim, rows = len(covariance.variances), len(like)
        turns = torch.arange(-(-dim // rows) * rows).view(-1, rows)
        parts = [self._along(problem, covariance, like, turn.clamp(max=dim - 1), counts) for turn in turns]
        made = torch.cat(parts)[:dim][None]
        # One axis in all rows: do they share a decoder?
        across = self._along(problem, covariance, like, torch.zeros(rows, dtype=torch.int64), counts)
        if float((across - across[:1]).norm()) <= _ALIKE * float(across.norm()):
            self._kept = made
            return made
        every = [torch.full((rows,), k) for k in range(dim)]
        return torch.stack([self._along(problem, covariance, like, axis, counts) for axis in every], dim=1)

    @staticmethod
    def _along(
        problem: Problem, covariance: DenseGaussian, like: Tensor, axis: Tensor, counts: Evaluations
    ) -> Tensor:
        """One axis in each row."""
        axis = axis.to(like.device)
        size = covariance.variances.to(like).sqrt()
        size = size.clamp(min=_LEAST * float(size.max()))[axis].view(-1, *[1] * (like.ndim - 1))
        step = size * covariance.axes.to(like)[:, axis].mT.reshape(like.shape)
        counts.decoder += 2
        difference = problem.data.decode(step) - problem.data.decode(-step)
        return difference / (2 * size.view(-1, *[1] * (difference.ndim - 1)))


@final
@dataclass(frozen=True)
class DenseGaussNewtonSolver(PosteriorSolver):
    """Options of `DenseGaussNewton`."""

    correlated: ClassVar[bool] = True

    covariance: DenseGaussian
    _secants: _Secants = field(default_factory=_Secants, init=False, repr=False, compare=False)

    def guide(self, denoiser: Denoiser, problem: Problem) -> DenseGaussNewton:
        return DenseGaussNewton(denoiser, problem, covariance=self.covariance, secants=self._secants)
