r"""The honest competitor: a residual 3-D U-Net trained on pairs of one task, for a stated time.

    x_hat = guess + net(guess, seen),        minimise  mean (x_hat - x)^2

Each task, operator and noise level needs a network of its own, and it gives one answer without a spread; what it gives
is close to the posterior mean, which is why PSNR favours it. Convolutions begin at half the volume's resolution
(space-to-depth), as in our autoencoder, so that both get as much out of a second of CPU time.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import cos, pi
from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from sciLDM.domains.medical.geometry import Placement, centred
from sciLDM.domains.medical.intensity import IntensitySettings, Modality
from sciLDM.domains.medical.study_tasks import Case, Observed, StudyTask
from sciLDM.errors import ConfigError, DataError
from sciLDM.nets.convolutional import EdgeConv, Grow, ResidualConv, Shrink
from sciLDM.rng import NoiseSource

__all__ = ["ResidualUNet", "Supervised", "SupervisedSettings", "train_supervised"]

_EDGES = ("replicate",) * 3


@dataclass(frozen=True)
class SupervisedSettings:
    """Size and training of the supervised U-Net."""

    minutes: float = 10.0
    """Training time; the learning rate falls to zero over it."""
    max_steps: int | None = None
    """Stop after so many steps, for results that do not depend on the machine."""
    widths: tuple[int, ...] = (32, 64, 128)
    """Channels of each level; the first lies at half the volume's resolution."""
    batch_size: int = 4
    """Volumes a step."""
    learning_rate: float = 2e-3
    """At the beginning."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the network while it trains."""
    mirror: bool = True
    """Also train on left-right mirrored volumes."""

    def __post_init__(self) -> None:
        if self.precision not in ("fp32", "bf16"):
            raise ConfigError(f"supervised: precision is fp32 or bf16, got {self.precision!r}")
        if self.minutes <= 0 or self.batch_size < 1 or not self.widths or self.learning_rate <= 0:
            raise ConfigError(
                "supervised: expected positive minutes, batch_size, learning_rate and at least one width"
            )


@final
class ResidualUNet(nn.Module):
    """`guess + net(guess, seen)` for volumes whose sizes are multiples of `2^levels`; starts as the guess.

    Args:
        widths: Channels of each level, finest first.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.stem = Shrink(2, widths[0], (2, 2, 2))
        self.down = nn.ModuleList([ResidualConv(w, _EDGES) for w in widths])
        pairs = list(pairwise(widths))
        self.shrink = nn.ModuleList([Shrink(a, b, (2, 2, 2)) for a, b in pairs])
        self.grow = nn.ModuleList([Grow(b, a, (2, 2, 2)) for a, b in pairs])
        self.join = nn.ModuleList([EdgeConv(2 * a, a, _EDGES) for a in widths[:-1]])
        self.up = nn.ModuleList([ResidualConv(w, _EDGES) for w in widths])
        self.head = Grow(widths[0], 4, (2, 2, 2), shortcut=False)
        self.last = EdgeConv(4 + 2, 1, _EDGES, zero=True)

    def forward(
        self, guess: Float[Tensor, "batch 1 x y z"], seen: Float[Tensor, "batch 1 x y z"]
    ) -> Float[Tensor, "batch 1 x y z"]:
        given = torch.cat([guess, seen], dim=1)
        x, skips = self.stem(given), []
        for level, block in enumerate(self.down):
            x = block(x)
            if level < len(self.shrink):
                skips.append(x)
                x = self.shrink[level](x)
        for level in reversed(range(len(self.up))):
            x = self.up[level](x)
            if level:
                x = self.grow[level - 1](x)
                x = self.join[level - 1](torch.cat([x, skips.pop()], dim=1))
        return guess + self.last(torch.cat([self.head(x), given], dim=1))


@final
@dataclass(frozen=True)
class Supervised:
    """A trained network of one task.

    Attributes:
        net: As trained.
        task: What it undoes.
        grid: Volumes are put in the middle of it.
        modality: Decides, with `intensity`, how an observation is scaled.
        intensity: See `modality`.
        seconds: Time of training.
        steps: Steps of training.
    """

    net: ResidualUNet
    task: StudyTask
    grid: tuple[int, int, int]
    modality: Modality
    intensity: IntensitySettings
    seconds: float
    steps: int

    def content(self) -> dict[str, Any]:
        """Tensors and plain values, for `from_content`."""
        return {
            "net": self.net.state_dict(),
            "grid": list(self.grid),
            "seconds": self.seconds,
            "steps": self.steps,
        }

    @staticmethod
    def from_content(
        content: Mapping[str, Any],
        widths: Sequence[int],
        task: StudyTask,
        modality: Modality,
        intensity: IntensitySettings,
    ) -> "Supervised":
        """From what `content` gave."""
        with torch.random.fork_rng(devices=[]):
            net = ResidualUNet(widths)
        net.load_state_dict(content["net"])
        x, y, z = content["grid"]
        return Supervised(
            net.eval(), task, (x, y, z), modality, intensity, content["seconds"], content["steps"]
        )

    @torch.no_grad()
    def reconstruct(self, observed: Observed) -> np.ndarray:
        """The network's answer, in the data's units."""
        pair = _pair(observed, self.task, self.grid, self.modality, self.intensity)
        u = self.net.eval()(pair.guess[None], pair.seen[None])
        low, high = pair.scale
        return (low + 0.5 * (pair.place.cut(u)[0, 0].numpy() + 1) * (high - low)).astype(np.float32)


def train_supervised(
    task: StudyTask,
    cases: Sequence[Case],
    *,
    noise: float,
    modality: Modality,
    intensity: IntensitySettings,
    settings: SupervisedSettings | None = None,
    seed: int = 0,
) -> Supervised:
    """Train on observations that are simulated anew in every step, with the task's own operator.

    Args:
        task: What was done to the volumes.
        cases: Training volumes.
        noise: As in `StudyTask.observe`.
        modality: Of the volumes.
        intensity: As the model's: the scale of an MR volume is estimated from what was observed of it.
        settings: Size and time.
        seed: Of weights, order and noise.

    Raises:
        DataError: No volumes.
    """
    settings = settings or SupervisedSettings()
    if not cases:
        raise DataError("the supervised network has no volumes to train on")
    stride = 2 ** len(settings.widths)
    largest = np.array([c.volume.shape for c in cases]).max(axis=0)
    x, y, z = (-(-int(n) // stride) * stride for n in largest)
    grid = (x, y, z)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = ResidualUNet(settings.widths)
    optimiser = torch.optim.AdamW(net.parameters(), lr=settings.learning_rate, weight_decay=1e-4)
    source, began, step, spent = NoiseSource(seed).fork("supervised"), time.monotonic(), 0, 0.0
    net.train()
    while spent < 1.0:
        u = source.uniform([step], (2, settings.batch_size), "order")[0].numpy()
        chosen = [cases[int(share * len(cases))] for share in u[0]]
        flipped = [
            c.mirrored() if settings.mirror and f < 0.5 else c for c, f in zip(chosen, u[1], strict=True)
        ]
        pairs = []
        for k, case in enumerate(flipped):
            # The case's number decides noise and place: every step must draw new ones.
            fresh = Case(case.volume, case.low, case.high, step * settings.batch_size + k)
            pairs.append(_pair(task.observe(fresh, noise, source.seed), task, grid, modality, intensity))
        loss = _loss(net, pairs, bf16=settings.precision == "bf16")
        optimiser.param_groups[0]["lr"] = settings.learning_rate * 0.5 * (1 + cos(pi * spent))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        step += 1
        spent = (time.monotonic() - began) / (60 * settings.minutes)
        if settings.max_steps is not None:
            spent = step / settings.max_steps
    return Supervised(net.eval(), task, grid, modality, intensity, time.monotonic() - began, step)


@dataclass(frozen=True)
class _Pair:
    """Input and target in network units on the grid."""

    guess: Tensor
    seen: Tensor
    truth: Tensor
    weight: Tensor
    place: Placement
    scale: tuple[float, float]


def _pair(
    observed: Observed,
    task: StudyTask,
    grid: tuple[int, int, int],
    modality: Modality,
    intensity: IntensitySettings,
) -> _Pair:
    volume = observed.case.volume
    # A volume larger than those of training is taken as it is, up to whole strides.
    stride = 2**5
    size = [
        max(g, n if n <= g else -(-n // stride) * stride) for g, n in zip(grid, volume.shape, strict=True)
    ]
    place = centred(volume.shape, (size[0], size[1], size[2]))
    scale = intensity.scale(observed.known, modality)
    u = lambda data: 2 * (data - scale.low) / (scale.high - scale.low) - 1  # noqa: E731
    put = lambda data, fill=None: torch.from_numpy(  # noqa: E731
        np.ascontiguousarray(place.put(data.astype(np.float32), fill=fill))
    )[None]
    # Steps of noise in the first guess may lie far outside: bright streaks of few views.
    guess = np.clip(u(task.guess(observed)), -3.0, 3.0 + intensity.headroom)
    return _Pair(
        put(guess),
        put(observed.seen),
        put(u(volume.data)),
        put(np.ones(volume.shape), 0.0),
        place,
        (scale.low, scale.high),
    )


def _loss(net: ResidualUNet, pairs: Sequence[_Pair], *, bf16: bool) -> Tensor:
    guess, seen, truth, weight = (
        torch.stack([getattr(p, name) for p in pairs]) for name in ("guess", "seen", "truth", "weight")
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        found = net(guess, seen)
    error = (found.float() - truth).square() * weight
    return error.sum() / weight.sum()
