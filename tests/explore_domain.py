"""A domain whose every answer is known: six numbers, a linear autoencoder, an exact Gaussian denoiser.

Latents are two channels on three cells. With the conditions `level` and `tilt` the normalised latent is
`N(mean + level b_1 + tilt b_2, C)`; both labels are exact linear functions of it only where a test makes them so.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor, nn

from sciLDM.autoencoders import Autoencoder, Bottleneck, KLBottleneck, Latent
from sciLDM.conditions import Condition, Scalar
from sciLDM.denoiser import NetDenoiser
from sciLDM.domain import Codec, Corpus, Domain, Evaluation, Progress, Request, broadcast_labels
from sciLDM.errors import DataError
from sciLDM.experiment import read_config
from sciLDM.model import LatentDiffusion
from sciLDM.parametrisation import X0
from sciLDM.rng import NoiseSource
from sciLDM.schedules import CosineSchedule, Schedule
from sciLDM.types import Cond

CHANNELS, CELLS, DIM = 2, 3, 6
F64 = torch.float64


def fixed(rows: int, columns: int, name: str) -> Tensor:
    """Some matrix, the same each time."""
    return NoiseSource(3).normal(range(rows), (columns,), stream=name)


MIX = torch.linalg.qr(fixed(DIM, DIM, "mix")).Q
"""Fields are `2 MIX z + 1` of the code `z`."""
MEAN = 0.3 * fixed(1, DIM, "mean")[0]
_ROOT = 0.3 * fixed(DIM, DIM, "root")
COVARIANCE = _ROOT @ _ROOT.mT + torch.diag(torch.linspace(0.1, 1.0, DIM))
_EIGEN = torch.linalg.eigh(COVARIANCE)
EFFECTS = {"level": 0.5 * fixed(1, DIM, "level")[0], "tilt": 0.4 * fixed(1, DIM, "tilt")[0]}


@final
class LinearAutoencoder(Autoencoder[Tensor, Tensor]):
    """Exact both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.bottleneck: Bottleneck = KLBottleneck(1e-6)
        self.latent_channels = CHANNELS
        self.unused = nn.Parameter(torch.zeros(1))

    def encode(self, fields: Tensor) -> Latent:
        return Latent(((fields - 1) @ MIX / 2).view(-1, CHANNELS, CELLS))

    def decode(self, z: Tensor, mask: Tensor | None) -> Tensor:
        return 2 * z.flatten(1) @ MIX.mT + 1

    def reconstruction_loss(self, fields: Tensor, decoded: Tensor) -> dict[str, Tensor]:
        return {"square": (fields - decoded).square().mean(1)}


@final
class PlainCodec(Codec):
    """Objects are lists of six numbers, or of eight: with their two labels behind."""

    conditions: tuple[Condition, ...] = (Scalar("level"), Scalar("tilt"))
    shape = (CELLS,)

    def autoencoder(self) -> LinearAutoencoder:
        return LinearAutoencoder()

    def plan(self, count: int, wanted: Mapping[str, Any], noise: NoiseSource, ids: Sequence[int]) -> Request:
        return Request(self.shape, broadcast_labels(wanted, count, ["level", "tilt"]))

    def decode(
        self, autoencoder: Autoencoder, z: Tensor, request: Request, *, reference: Path | None = None
    ) -> Tensor:
        return autoencoder.decode(z, None)

    def from_native(self, objects: Any, cond: Mapping[str, Any] | None = None) -> tuple[Tensor, Request]:
        rows = torch.as_tensor(objects, dtype=torch.float32)
        rows = rows[None] if rows.ndim == 1 else rows
        if rows.shape[1] not in (DIM, DIM + 2):
            raise DataError(f"expected {DIM} numbers, got {rows.shape[1]}")
        own = rows[:, DIM:].T if rows.shape[1] > DIM else torch.full((2, len(rows)), float("nan"))
        labels = {"level": own[0].clone(), "tilt": own[1].clone()}
        labels |= broadcast_labels(cond or {}, len(rows), ["level", "tilt"])
        return rows[:, :DIM], Request(self.shape, labels)


@final
class PlainCorpus(Corpus):
    """Never used."""

    def __init__(self) -> None:
        self.sizes, self.fingerprint, self.state = {}, "plain", {}

    def fields(self, split: str, indices: np.ndarray) -> Tensor:
        raise NotImplementedError

    def labels(self, split: str) -> Mapping[str, np.ndarray]:
        return {}

    def write_reference(self, folder: Path) -> None:
        raise NotImplementedError


@final
class Plain(Domain):
    """Nothing to configure."""

    name: ClassVar[str] = "plain"
    gate: Mapping[str, float] = {}

    def prepare(self, cache: Path, progress: Progress) -> PlainCorpus:
        return PlainCorpus()

    def codec(self, state: Mapping[str, Any]) -> PlainCodec:
        return PlainCodec()

    def evaluate(self, samples: Any, codec: Any, reference: Path | None, progress: Progress) -> Evaluation:
        return Evaluation([])


@final
class GaussianNet(nn.Module):
    """Exact x0-network of `N(mean + sum of known labels' effects, C)`."""

    def forward(
        self, x: Tensor, c_noise: Tensor, cond: Cond | None, mask: Tensor | None, previous: Tensor | None
    ) -> Tensor:
        theta = torch.atan(torch.exp(-4 * c_noise))[:, None]
        a, s = theta.cos(), theta.sin()
        mean = conditional_mean(cond or {}, len(x)).to(x)
        variances, axes = (v.to(x) for v in _EIGEN)
        gain = a * variances / (a**2 * variances + s**2)
        deviation = (x.flatten(1) - a * mean) @ axes
        return (mean + (gain * deviation) @ axes.mT).view_as(x)


def conditional_mean(cond: Cond, count: int) -> Tensor:
    """Mean of the normalised latents, flattened."""
    mean = MEAN.expand(count, DIM)
    for name, label in cond.items():
        mean = mean + label.nan_to_num(0.0).view(-1, 1) * EFFECTS[name]
    return mean


def plain_model(schedule: Schedule | None = None) -> LatentDiffusion:
    """The model with its exact parts; statistics that are not those of a unit normal."""
    config = read_config(
        {
            "domain": {"class_path": "tests.explore_domain.Plain"},
            "network": {"class_path": "DiTNetwork", "init_args": {"width": 32, "depth": 1, "heads": 2}},
        }
    )
    model = LatentDiffusion(config, {})
    model.stats.mean.copy_(torch.tensor([0.5, -1.0]))
    model.stats.std.copy_(torch.tensor([2.0, 0.5]))
    model.denoiser = NetDenoiser(GaussianNet(), schedule or CosineSchedule(), X0()).eval()
    return model


def fields_of(model: LatentDiffusion, z: Tensor) -> Tensor:
    """Native objects whose normalised latents, flattened, are `z`."""
    return model.autoencoder.decode(model.stats.denormalise(z.view(-1, CHANNELS, CELLS).float()), None)
