"""A domain whose posterior is known: Gaussian latents, linear decoder, errors of known variance, affine units.

    z ~ N(0, Cz),  code = std z + mean,  decoded = W code,  x = offset + scale decoded + e,  e ~ N(0, a scale^2)

`scale` comes from the task's context, so that rows of one batch differ.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from sciLDM.autoencoders import Autoencoder, Bottleneck, KLBottleneck, Latent, LatentStats
from sciLDM.domain import FieldCodec, Request, Task
from sciLDM.operators import GaussianNoise, LinearOperator, Observation, Operator
from sciLDM.oracles import GaussianDenoiser
from sciLDM.posterior.error_model import AutoencoderError
from sciLDM.posterior.reconstruct import Prior
from sciLDM.posterior.result import Posterior
from sciLDM.rng import NoiseSource
from sciLDM.schedules import CosineSchedule

OFFSET = 3.0
LATENT, FIELD = (2, 3), (1, 12)
DIM, POINTS = 6, 12


@final
class LinearAutoencoder(Autoencoder[Tensor, Tensor]):
    """`decode` is a matrix, `encode` its pseudo-inverse."""

    def __init__(self) -> None:
        super().__init__()
        self.bottleneck: Bottleneck = KLBottleneck(0.0)
        self.latent_channels = LATENT[0]
        weight = NoiseSource(3).normal([0], (POINTS, DIM))[0] / DIM**0.5
        self.weight = nn.Parameter(weight)

    def encode(self, fields: Tensor) -> Latent:
        inverse = torch.linalg.pinv(self.weight)
        return Latent(
            (fields.flatten(1) @ inverse.mT).reshape(-1, *LATENT), torch.zeros(len(fields), *LATENT)
        )

    def decode(self, z: Tensor, mask: Tensor | None) -> Tensor:
        return (z.flatten(1) @ self.weight.mT).reshape(-1, *FIELD)

    def reconstruction_loss(self, fields: Tensor, decoded: Tensor) -> dict[str, Tensor]:
        return {"error": (fields - decoded).square().flatten(1).mean(1)}

    def metrics(self, fields: Tensor, decoded: Tensor) -> dict[str, Any]:
        return {"closeness": 1 - self.reconstruction_loss(fields, decoded)["error"]}


@final
class LinearCodec(FieldCodec):
    """One channel on a line of twelve points."""

    conditions = ()
    shape = LATENT[1:]

    def autoencoder(self) -> LinearAutoencoder:
        return LinearAutoencoder()

    def plan(self, count: int, wanted: Mapping[str, Any], noise: NoiseSource, ids: Sequence[int]) -> Request:
        return Request(self.shape, {})

    def decode(
        self, autoencoder: Autoencoder, z: Tensor, request: Request, *, reference: Path | None = None
    ) -> list[Tensor]:
        return list(OFFSET + autoencoder.decode(z, None))

    def to_units(self, decoded: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        return OFFSET + scale(decoded, context) * decoded

    def from_units(self, x: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        return (x - OFFSET) / scale(x, context)

    def task(
        self,
        observed: Any,
        operator: Operator | None,
        *,
        noise_std: float | None = None,
        cond: Mapping[str, Any] | None = None,
    ) -> Task:
        noise = None if noise_std is None else GaussianNoise(noise_std)
        operator = operator or MatrixOperator(torch.eye(POINTS))
        return Task(Observation(observed, operator, noise), Request(self.shape, {}))

    def deliver(self, posterior: Posterior, task: Task) -> Posterior:
        return posterior


def scale(like: Tensor, context: Mapping[str, Tensor]) -> Tensor:
    """Scale of each row, 2 without a context."""
    return context["scale"].view(-1, 1, 1).to(like) if "scale" in context else like.new_tensor(2.0)


@final
class MatrixOperator(LinearOperator):
    """`y = M x`."""

    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__(FIELD, (len(matrix),))
        self.register_buffer("matrix", matrix)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.matrix.to(x).mT

    def adjoint(self, y: Tensor) -> Tensor:
        return (y @ self.matrix.to(y)).reshape(-1, *FIELD)


def picking(*points: int) -> MatrixOperator:
    """Observes these grid points."""
    return MatrixOperator(torch.eye(POINTS)[list(points)])


@final
class Exact:
    """The model and its exact answers.

    Args:
        error: `a`, variance of the autoencoder's error in decoder units.
    """

    def __init__(self, error: float = 0.04) -> None:
        self.codec, self.autoencoder = LinearCodec(), LinearAutoencoder().eval()
        self.stats = LatentStats(LATENT[0])
        self.stats.mean.copy_(torch.tensor([0.5, -1.0]))
        self.stats.std.copy_(torch.tensor([1.5, 0.7]))
        factor = NoiseSource(5).normal([0], (DIM, DIM), dtype=torch.float64)[0]
        covariance = factor @ factor.mT / DIM + 0.2 * torch.eye(DIM, dtype=torch.float64)
        deviations = covariance.diagonal().sqrt()
        self.covariance = covariance / deviations / deviations[:, None]
        self.denoiser = GaussianDenoiser(torch.zeros(DIM), self.covariance, CosineSchedule())
        self.error = AutoencoderError(1, (POINTS,))
        self.error.floor.fill_(error)
        self.error.typical.fill_(error)
        self.error.prior.copy_(self.moments(1.0)[1].diagonal().float().view(1, POINTS))
        self.prior = Prior(
            self.codec, self.autoencoder, self.stats, lambda request, part: self.denoiser, error=self.error
        )

    def moments(self, scale: float) -> tuple[Tensor, Tensor]:
        """Mean and covariance of the truth, in the data's units, `[12]` and `[12 12]` in float64."""
        width = self.stats.std.double().repeat_interleave(LATENT[1])
        centre = self.stats.mean.double().repeat_interleave(LATENT[1])
        map_ = scale * self.autoencoder.weight.detach().double()
        jacobian = map_ * width
        error = scale**2 * float(self.error.floor) * torch.eye(POINTS, dtype=torch.float64)
        return OFFSET + map_ @ centre, jacobian @ self.covariance @ jacobian.mT + error

    def draw(self, ids: Sequence[int], *, scale: float = 2.0) -> Tensor:
        """Truths."""
        mean, covariance = self.moments(scale)
        white = NoiseSource(7).normal(ids, (POINTS,), dtype=torch.float64)
        return (mean + white @ torch.linalg.cholesky(covariance).mT).float().reshape(-1, *FIELD)

    def posterior(
        self, operator: MatrixOperator, y: Tensor, std: float, *, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Exact mean `[12]` and covariance of `x` given one observation; NaN in `y` is missing."""
        mean, covariance = self.moments(scale)
        there = ~y.isnan()
        a, y = operator.matrix.double()[there], y.double()[there]
        gain = (
            covariance @ a.mT @ torch.linalg.inv(a @ covariance @ a.mT + std**2 * torch.eye(len(a)).double())
        )
        return mean + gain @ (y - a @ mean), covariance - gain @ a @ covariance

    def task(self, operator: Operator, y: Tensor, std: float | None, scales: Sequence[float]) -> Task:
        """A task with one scale for each case."""
        return replace(
            self.codec.task(y, operator, noise_std=std), context={"scale": torch.tensor(list(scales))}
        )
