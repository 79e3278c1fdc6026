"""A whole domain on a line of sixteen points, for tests of `fit`, `reconstruct` and the command line.

Fields are smooth Gaussian curves in kelvin. The autoencoder is principal components (fitted by `prepare`) plus a linear
correction that is trained.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor, nn

from sciLDM.autoencoders import Autoencoder, Bottleneck, KLBottleneck, Latent
from sciLDM.conditions import Condition
from sciLDM.domain import Corpus, Domain, Evaluation, FieldCodec, Progress, Request, Task
from sciLDM.errors import DataError
from sciLDM.operators import GaussianNoise, LinearOperator, Observation, Operator
from sciLDM.posterior.hooks import OperatorSpec
from sciLDM.posterior.result import Posterior
from sciLDM.rng import NoiseSource

POINTS, SIZES = 16, {"train": 96, "validation": 48, "test": 24}
PREPARED: list[int] = []
"""Samples seen by each call of `prepare`."""


@final
class LineAutoencoder(Autoencoder[Tensor, Tensor]):
    """Three components, one latent cell each."""

    basis: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.bottleneck: Bottleneck = KLBottleneck(1e-6)
        self.latent_channels = 1
        self.register_buffer("basis", torch.zeros(POINTS, 3))
        self.correction = nn.Parameter(torch.full((POINTS, 3), 1e-3))
        self.log_std = nn.Parameter(torch.tensor(-4.0))

    def prepare(self, batches: Iterable[Tensor]) -> None:
        first = torch.cat([x.flatten(1) for x in batches])
        again = torch.cat([x.flatten(1) for x in batches])
        assert torch.equal(first, again), "batches can be gone through twice"
        PREPARED.append(len(first))
        self.basis.copy_(torch.linalg.svd(first.double(), full_matrices=False).Vh[:3].mT)

    def encode(self, fields: Tensor) -> Latent:
        z = (fields.flatten(1) @ self.basis).unsqueeze(1)
        return Latent(z, self.log_std.expand_as(z))

    def decode(self, z: Tensor, mask: Tensor | None) -> Tensor:
        return (z.flatten(1) @ (self.basis + self.correction).mT).unsqueeze(1)

    def reconstruction_loss(self, fields: Tensor, decoded: Tensor) -> dict[str, Tensor]:
        return {"square": (fields - decoded).square().flatten(1).mean(1)}

    def metrics(self, fields: Tensor, decoded: Tensor) -> dict[str, Any]:
        return {"closeness": 1 - (fields - decoded).square().flatten(1).mean(1)}


@final
class Subset(LinearOperator):
    """Observes some of the points."""

    def __init__(self, points: Sequence[int]) -> None:
        super().__init__((1, POINTS), (len(points),))
        self.points = list(points)

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0, self.points]

    def adjoint(self, y: Tensor) -> Tensor:
        x = y.new_zeros(len(y), 1, POINTS)
        x[:, 0, self.points] = y
        return x


@final
class LineCodec(FieldCodec):
    """Kelvin about 280, in units of 10."""

    conditions: tuple[Condition, ...] = ()
    shape = (3,)

    def autoencoder(self) -> LineAutoencoder:
        return LineAutoencoder()

    def plan(self, count: int, wanted: Mapping[str, Any], noise: NoiseSource, ids: Sequence[int]) -> Request:
        return Request(self.shape, {})

    def decode(
        self, autoencoder: Autoencoder, z: Tensor, request: Request, *, reference: Path | None = None
    ) -> list[list[float]]:
        return (280 + 10 * autoencoder.decode(z, None)).flatten(1).tolist()

    def to_units(self, decoded: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        return 280 + 10 * decoded

    def from_units(self, x: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        return (x - 280) / 10

    def task(
        self,
        observed: Any,
        operator: Operator | None,
        *,
        noise_std: float | None = None,
        cond: Mapping[str, Any] | None = None,
    ) -> Task:
        noise = None if noise_std is None else GaussianNoise(noise_std)
        return Task(Observation(observed, operator or Subset(range(POINTS)), noise), Request(self.shape, {}))

    def deliver(self, posterior: Posterior, task: Task) -> Posterior:
        return posterior

    def read_observation(
        self, path: Path, operator_spec: OperatorSpec | None
    ) -> tuple[Tensor, Subset | None]:
        try:
            values = torch.tensor(json.loads(path.read_text()), dtype=torch.float32)
        except ValueError as error:
            raise DataError(f"{path}: expected a list of numbers, got {error}") from error
        step = 1 if operator_spec is None else int(operator_spec.options["step"])
        return values, Subset(range(0, POINTS, step))

    def write_posterior(self, result: Posterior, folder: Path) -> None:
        (folder / "mean.json").write_text(json.dumps(result.mean.tolist()))


@final
class LineCorpus(Corpus):
    """Curves of a few cosines, with a small rest that three components do not hold."""

    def __init__(self) -> None:
        self.sizes, self.fingerprint, self.state = SIZES, "line", {}

    def fields(self, split: str, indices: np.ndarray) -> Tensor:
        return curves(split, [int(i) for i in indices])

    def labels(self, split: str) -> Mapping[str, np.ndarray]:
        return {}

    def write_reference(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)


def curves(split: str, ids: Sequence[int]) -> Tensor:
    """Fields in units of 10 K about 280 K, `[batch, 1, 16]`."""
    place = torch.arange(POINTS) / POINTS
    modes = torch.stack([torch.cos(torch.pi * k * (place + 0.5 / POINTS)) for k in range(6)])
    size = torch.tensor([1.0, 0.8, 0.5, 0.1, 0.05, 0.05])
    return ((size * NoiseSource(1).normal(ids, (6,), stream=split)) @ modes).unsqueeze(1)


@final
class Line(Domain):
    """The domain; nothing to configure."""

    name: ClassVar[str] = "line"
    gate: Mapping[str, float] = {"closeness": 0.5}

    def prepare(self, cache: Path, progress: Progress) -> LineCorpus:
        return LineCorpus()

    def codec(self, state: Mapping[str, Any]) -> LineCodec:
        return LineCodec()

    def evaluate(self, samples: Any, codec: Any, reference: Path | None, progress: Progress) -> Evaluation:
        return Evaluation([])
