r"""Coordinates in which the observations are predicted with unit variance, for conjugate gradients to work in.

The prediction of whitened observations from the prior has covariance `M = I + J V J^T`. With the largest eigenpairs
`J J^T ~ U diag(l) U^T` from a randomised Nystrom sketch (Frangella, Tropp & Udell 2023, doi:10.1137/21M1466244,
Alg. 2.1) and `V ~ r^2 I`,

    S = U diag(1 + r^2 l)^(-1/2) U^T + (1 + r^2 l_rest)^(-1/2) (I - U U^T)  ~  M^(-1/2),

with `l_rest` the Rayleigh quotient of a random vector outside `U`. `S M S w = S b` is solved instead of
`M u = b`, `u = S w`. Two things are gained. Once all eigenpairs that stand out are known, its condition number is at
most the ratio of the widest to the narrowest direction of `V`, not that ratio times the squared one of the operator to
the noise. And its residual has a meaning at every noise level: `S e` is the error of the latent in standard deviations
of `z | z_t`, while a residual in units of the observation noise asks too much of directions that are known very well.

The sketch costs `rank` pairs of derivatives of decoder and operator, none of the denoiser, and is drawn once for each
trajectory: where the decoder bends, an earlier Jacobian still serves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.rng import NoiseSource

__all__ = ["Whitening"]

_TEST_VECTORS = NoiseSource(0)
_MOST = 2**21  # numbers kept of one row's eigenvectors: 8 MB in float32


@final
@dataclass(frozen=True)
class Whitening:
    """Leading eigenpairs of `J J^T` of each row.

    Attributes:
        vectors: `U`.
        values: `l`, decreasing.
        rest: What stands for the eigenvalues that were not kept.
    """

    vectors: Float[Tensor, "batch observation rank"]
    values: Float[Tensor, "batch rank"]
    rest: Float[Tensor, "batch"]

    @staticmethod
    def sketch(
        gram: Callable[[Tensor], Tensor], like: Float[Tensor, "batch *observation"], rank: int
    ) -> "Whitening":
        """Eigenpairs of `u -> J J^T u`, exact if `rank` reaches the number of observations.

        Args:
            gram: Acts on a batch of observations, row by row.
            like: Gives shape, type and device.
            rank: Most eigenpairs; fewer are kept of more than 30 000 observations, to save memory.
        """
        batch, shape, size = like.shape[0], tuple(like.shape[1:]), like[0].numel()
        rank = max(min(rank, size, _MOST // size), 1)
        draws = _TEST_VECTORS.normal(range(rank), (size,), stream="sketch", dtype=torch.float64)
        test = torch.linalg.qr(draws.mT)[0].to(like.device)
        columns = [
            gram(c.reshape(shape).to(like).expand_as(like)).reshape(batch, size) for c in test.unbind(1)
        ]
        rows = [_nystrom(test, row.to(torch.float64), like.dtype) for row in torch.stack(columns, dim=2)]
        vectors = torch.stack([row for row, _ in rows]).to(like)
        values = torch.stack([row for _, row in rows]).to(like)
        if rank == size:
            return Whitening(vectors, values, torch.zeros_like(values[:, 0]))
        probe = _TEST_VECTORS.normal([rank], (size,), stream="sketch", dtype=torch.float64).to(like)
        probe = probe.mT - vectors @ (vectors.mT @ probe.mT)
        response = gram(probe.reshape(batch, *shape)).reshape(batch, size, 1)
        rest = (probe * response).sum((1, 2)) / probe.square().sum((1, 2))
        return Whitening(vectors, values, rest.clamp(min=0))

    def __call__(
        self, u: Float[Tensor, "batch *observation"], variance: Float[Tensor, "batch *ones"]
    ) -> Float[Tensor, "batch *observation"]:
        """`S u` for `V ~ variance I`."""
        flat, r2 = u.flatten(1)[:, :, None], variance.reshape(-1, 1)
        rest = (1 + r2 * self.rest[:, None]).rsqrt()
        beyond = (1 + r2 * self.values).rsqrt() - rest
        scaled = rest[:, :, None] * flat + self.vectors @ (beyond[:, :, None] * (self.vectors.mT @ flat))
        return scaled.reshape(u.shape)


def _nystrom(test: Tensor, sketch: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Eigenpairs of `K` from `K test`, known to the precision of `dtype`."""
    precision = torch.finfo(dtype)
    shift = precision.eps * float(torch.linalg.matrix_norm(sketch)) + precision.tiny
    sketch = sketch + shift * test
    core = test.mT @ sketch
    # Eigenvalues rather than a Cholesky factor: rounding may leave a rank-deficient core slightly indefinite.
    values, vectors = torch.linalg.eigh((core + core.mT) / 2)
    root = vectors * values.clamp(min=shift / 2).rsqrt()
    left, singular, _ = torch.linalg.svd(sketch @ root, full_matrices=False)
    return left, (singular.square() - shift).clamp(min=0)
