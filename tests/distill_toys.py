"""A Gaussian whose denoiser is exact, and a student of it that trains in seconds."""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from sciLDM.denoiser import NetDenoiser
from sciLDM.distill import StudentStage, Teacher
from sciLDM.gaussian_start import GaussianStart
from sciLDM.guidance import Conditioned
from sciLDM.oracles import GaussianDenoiser
from sciLDM.parametrisation import V
from sciLDM.rng import NoiseSource
from sciLDM.samplers import Sampler
from sciLDM.schedules import CosineSchedule
from sciLDM.training import LatentData, StageSettings, TrainerSettings, run_stage

MEAN = torch.tensor([0.5, -0.3], dtype=torch.float64)
COVARIANCE = torch.tensor([[0.5, 0.3], [0.3, 1.2]], dtype=torch.float64)
SCHEDULE = CosineSchedule()
EXACT = GaussianDenoiser(MEAN, COVARIANCE, SCHEDULE)
TEACHER = Teacher(lambda _cond, _mask: EXACT, SCHEDULE)


class SmallNet(nn.Module):
    """Two hidden layers on latents of one cell; starts at zero."""

    def __init__(self, channels: int = 2, width: int = 48) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(channels + 3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        self.head = nn.Linear(width, channels)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        x: Tensor,
        noise_level: Tensor,
        cond: object = None,
        mask: object = None,
        previous: object = None,
    ) -> Tensor:
        level = torch.stack([noise_level, noise_level.tanh(), (-noise_level.square()).exp()], dim=1)
        return self.head(self.body(torch.cat([x.flatten(1), level], dim=1))).view(x.shape)


def latents(count: int, seed: int = 1) -> Tensor:
    """Exact samples as latents of two channels and one cell."""
    return EXACT.sample(NoiseSource(seed), list(range(count))).float().view(-1, 2, 1)


def exact_network() -> NetDenoiser:
    """The exact denoiser as a network: a Gaussian start, and a net that adds nothing yet."""
    start = GaussianStart(2)
    start.fit([latents(20_000, seed=2)])
    return NetDenoiser(SmallNet(), SCHEDULE, V(), start=start)


def train(stage: StudentStage, folder: Path, steps: int, **options: object) -> NetDenoiser:
    """The trained student, its averaged weights."""
    data = latents(4096)
    settings = StageSettings(
        max_steps=steps, batch_size=256, warmup_steps=10, weight_decay=0.0, ema_decay=0.98, validate_every=steps,
        validation_samples=256, **options,  # type: ignore[arg-type]
    )  # fmt: skip
    run_stage(
        stage, LatentData(data[512:]), LatentData(data[:512]), settings,
        TrainerSettings(accelerator="cpu", progress_bar=False), folder,
    )  # fmt: skip
    student = stage.finished_network()
    assert isinstance(student, NetDenoiser)
    return student


def errors(denoiser: nn.Module, sampler: Sampler, count: int = 8000) -> tuple[float, float]:
    """Distance of the mean, and relative distance of the covariance, of samples from the truth."""
    bound = Conditioned(denoiser) if isinstance(denoiser, NetDenoiser) else denoiser
    x = sampler(bound, (2, 1), noise=NoiseSource(3), ids=range(count)).flatten(1).double()
    return (
        float((x.mean(dim=0) - MEAN).norm()),
        float((torch.cov(x.mT) - COVARIANCE).norm() / COVARIANCE.norm()),
    )


def copies(network: NetDenoiser) -> tuple[NetDenoiser, NetDenoiser]:
    """Two networks with the weights of one."""
    return copy.deepcopy(network), copy.deepcopy(network)
