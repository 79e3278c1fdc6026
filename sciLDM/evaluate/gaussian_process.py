r"""Exact Gaussian-process regression with few choices, for tens to ten thousand labels.

    f ~ GP(0, a^2 k),    y = f(x) + noise,    noise of variance a^2 lambda.

Kernel and `lambda` are chosen on a grid by leave-one-out predictive density at the amplitude `a` that maximises it
(Rasmussen & Williams 2006, section 5.4.2): with `K_l = k(X, X) + lambda I` and `alpha = K_l^-1 y`,

    mu_-i = y_i - alpha_i / [K_l^-1]_ii,    s_-i^2 = a^2 / [K_l^-1]_ii,    a^2 = mean_i alpha_i^2 / [K_l^-1]_ii.

One eigendecomposition a kernel serves all `lambda`. The choice is made on at most `CHOOSING` rows; the fit uses all,
and takes the amplitude from its marginal likelihood.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import DataError, ShapeMismatch

__all__ = ["RBF", "GaussianProcess", "Kernel", "count_similarity", "rbf_ladder"]

Kernel = Callable[[Tensor, Tensor], Tensor]
"""`k(a, b)` for all pairs of rows, with `k(x, x) = 1`."""

CHOOSING = 1500
_NOISES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
_FEWEST = 8


@final
@dataclass(frozen=True)
class RBF:
    """`k(a, b) = exp(-|a - b|^2 / (2 length^2))`."""

    length: float

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-0.5 * (torch.cdist(a, b) / self.length).square())


def rbf_ladder(
    x: Float[Tensor, "rows features"], factors: Sequence[float] = (0.5, 1.0, 2.0, 4.0)
) -> list[Kernel]:
    """`RBF` kernels around the median distance of rows."""
    few = x[:500]
    distances = torch.cdist(few, few)
    typical = float(distances[distances > 0].median()) if bool((distances > 0).any()) else 1.0
    return [RBF(factor * typical) for factor in factors]


def count_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Tanimoto similarity of counts, `sum min / sum max` (Ralaivola et al. 2005, doi:10.1016/j.neunet.2005.07.009)."""
    total = a.sum(1)[:, None] + b.sum(1)[None]
    # sum |a - b| = sum max - sum min, and total = sum max + sum min.
    apart = torch.cdist(a, b, p=1)
    return (total - apart) / (total + apart).clamp_min(1e-12)


@final
class GaussianProcess:
    """A fitted process. Made by `fit`.

    Attributes:
        kernel: The one chosen.
        noise: `lambda`.
        amplitude: `a`, in the units of the values.
    """

    def __init__(self, x: Tensor, y: Tensor, kernel: Kernel, noise: float) -> None:
        # In float64 throughout: rounding of a kernel in float32 is larger than the smallest noise.
        self.x, self.kernel, self.noise = x.double(), kernel, noise
        x, y = self.x, y.double()
        self.centre = float(y.mean())
        gram = kernel(x, x)
        gram.diagonal().add_(noise)
        self._root = torch.linalg.cholesky(gram)
        centred = (y - self.centre)[:, None]
        self._weights = torch.cholesky_solve(centred, self._root)
        # The marginal likelihood's amplitude: closed form, and no diagonal of the inverse is needed.
        self.amplitude = math.sqrt(max(float((centred * self._weights).sum()) / len(x), 1e-24))

    @staticmethod
    def fit(
        x: Float[Tensor, "rows features"], y: Float[Tensor, "rows"], kernels: Sequence[Kernel] | None = None
    ) -> "GaussianProcess":
        """Choose and fit.

        Args:
            x: Features, one row each, in an order that says nothing (the first rows make the choice).
            y: Values.
            kernels: To choose from; `rbf_ladder` when None.

        Raises:
            DataError: Fewer than 8 rows, or numbers that are not finite.
            ShapeMismatch: Another number of rows than of values.
        """
        if len(x) != len(y):
            raise ShapeMismatch(
                f"a Gaussian process needs a value a row, got {len(x)} rows and {len(y)} values"
            )
        if len(x) < _FEWEST or not bool(torch.isfinite(x).all() and torch.isfinite(y).all()):
            raise DataError(
                f"a Gaussian process needs at least {_FEWEST} rows of finite numbers, got {len(x)}"
            )
        x, y = x.double(), y.double()
        few, values = x[:CHOOSING], y[:CHOOSING]
        values = values - values.mean()
        best: tuple[float, Kernel, float] | None = None
        for kernel in kernels or rbf_ladder(x):
            eigenvalues, vectors = torch.linalg.eigh(kernel(few, few))
            for noise in _NOISES:
                density = _leave_one_out(eigenvalues.clamp_min(0) + noise, vectors, values)
                if best is None or density > best[0]:
                    best = (density, kernel, noise)
        assert best is not None, "there is a kernel"
        return GaussianProcess(x, y, best[1], best[2])

    def predict(self, x: Float[Tensor, "rows features"]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of new values, noise included; float64."""
        cross = self.kernel(x.double(), self.x)
        mean = self.centre + (cross @ self._weights)[:, 0]
        solved = torch.linalg.solve_triangular(self._root, cross.mT, upper=False)
        variance = (1 + self.noise - solved.square().sum(0)).clamp_min(1e-12)
        return mean, self.amplitude * variance.sqrt()

    def draw(
        self, x: Float[Tensor, "rows features"], count: int, generator: torch.Generator
    ) -> Float[Tensor, "count rows"]:
        """Functions drawn from the posterior at some points, without noise; float64."""
        cross = self.kernel(x.double(), self.x)
        solved = torch.linalg.solve_triangular(self._root, cross.mT, upper=False)
        covariance = self.kernel(x.double(), x.double()) - solved.mT @ solved
        covariance.diagonal().add_(1e-8 + max(0.0, -float(torch.linalg.eigvalsh(covariance)[0])))
        root = torch.linalg.cholesky(covariance)
        normal = torch.randn(len(x), count, generator=generator, dtype=torch.float64)
        return (self.centre + cross @ self._weights + self.amplitude * root @ normal).mT


def _leave_one_out(eigenvalues: Tensor, vectors: Tensor, values: Tensor) -> float:
    """Log predictive density of each value given the others, summed, at the best amplitude, up to a constant."""
    precision = vectors.square() @ (1 / eigenvalues)
    alpha = vectors @ ((vectors.mT @ values) / eigenvalues)
    amplitude = (alpha.square() / precision).mean().clamp_min(1e-300)
    return float(0.5 * precision.log().sum() - 0.5 * len(values) * amplitude.log())
