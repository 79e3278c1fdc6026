"""Tiny networks and data that train in milliseconds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sciLDM.autoencoders import Autoencoder, Latent, NoiseBottleneck
from sciLDM.conditions import Scalar
from sciLDM.denoiser import NetDenoiser
from sciLDM.nets import DiT
from sciLDM.objectives import DiffusionObjective
from sciLDM.parametrisation import V
from sciLDM.schedules import RectifiedSchedule
from sciLDM.training import LatentData, TrainerSettings
from sciLDM.training.stages import AutoencoderStage, DenoiserStage

QUIET = TrainerSettings(accelerator="cpu", progress_bar=False)


@dataclass(frozen=True)
class Points:
    """Fields of the toy domain: a frozen dataclass, as adapters use."""

    x: Tensor


class PointData:
    """Points near a line in 6-d."""

    def __init__(self, count: int = 48) -> None:
        generator = torch.Generator().manual_seed(5)
        self.x = torch.randn(count, 2, generator=generator) @ torch.randn(2, 6, generator=generator)
        self.seen: list[int] = []

    def __len__(self) -> int:
        return len(self.x)

    def fields(self, indices: np.ndarray) -> Points:
        self.seen.extend(int(i) for i in indices)
        return Points(self.x[torch.from_numpy(indices)])


class PointAutoencoder(Autoencoder):
    """Linear, to a grid of three cells with two channels; dropout, so that it needs randomness of its own."""

    def __init__(self, *, noise: float = 0.1, dropout: float = 0.1, poison: int | None = None) -> None:
        super().__init__()
        self.bottleneck, self.latent_channels = NoiseBottleneck(noise, bound=4.0), 2
        self.enc = nn.Sequential(nn.Linear(6, 16), nn.SiLU(), nn.Dropout(dropout), nn.Linear(16, 6))
        self.dec = nn.Linear(6, 6)
        self.calls, self.poison = 0, poison

    def encode(self, fields: Points) -> Latent:
        return Latent(self.enc(fields.x).view(-1, 2, 3))

    def decode(self, z: Tensor, mask: Tensor | None) -> Tensor:
        return self.dec(z.flatten(1)).float()

    def reconstruction_loss(self, fields: Points, decoded: Tensor) -> dict[str, Tensor]:
        error = (decoded - fields.x).square()
        terms = {"left": error[:, :3].sum(1), "right": error[:, 3:].sum(1), "_seen_only": 1e6 + error.sum(1)}
        self.calls += self.training
        if self.poison is not None and self.calls > self.poison and self.training:
            terms["right"] = terms["right"].clone()
            terms["right"][1] = float("nan")
        return terms

    def metrics(self, fields: Points, decoded: Tensor) -> dict[str, Any]:
        return {"within_1": (decoded - fields.x).abs().amax(1) < 1.0}


def autoencoder_stage(**options: Any) -> AutoencoderStage:
    torch.manual_seed(1)
    return AutoencoderStage(PointAutoencoder(**options))


CONDITIONS = (Scalar("gap", mean=0.0, std=1.0),)


def latents(count: int = 48) -> LatentData:
    generator = torch.Generator().manual_seed(3)
    mask = torch.rand(count, 5, generator=generator) < 0.8
    mask[:, 0] = True
    gap = torch.randn(count, generator=generator)
    z = torch.randn(count, 2, 5, generator=generator) * 0.2 + gap[:, None, None]
    return LatentData(z * mask[:, None], mask, {"gap": gap})


def denoiser_stage(self_condition: float = 0.5) -> DenoiserStage:
    torch.manual_seed(2)
    net = DiT(2, (5,), width=16, depth=1, heads=2, conditions=CONDITIONS)
    objective = DiffusionObjective(self_condition=self_condition)
    return DenoiserStage(NetDenoiser(net, RectifiedSchedule(), V()), objective, CONDITIONS)


def weights(stage: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in stage.network.named_parameters()}


def rows(folder: Path) -> list[dict[str, str]]:
    import csv

    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))
