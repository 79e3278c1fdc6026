r"""Five sparse observations of a phantom: simulated on a fine grid, to be inverted on a coarse one.

    thick      slices of 4 voxels along the depth
    views      6 parallel projections, line integrals in units of the cube's side
    k-space    a fifth of the phase encodings in the plane of each slice, dense in the middle
    hole       the middle half of each axis is missing
    slices     1 slice of 4 along the depth

The instrument sees the phantom drawn twice as fine: detector pixels average four rays through it, k-space holds the
frequencies of the fine drawing times the response of a voxel. What the coarse operator cannot explain of that (rays
through pixel centres, aliasing) is the model error that `Task.mismatch` gives in standard deviations of the noise.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float
from phantom_domain import DETAIL, volumes
from torch import Tensor

from sciLDM.operators import (
    BlockMean,
    Fourier,
    GaussianNoise,
    LinearOperator,
    Mask,
    Observation,
    ParallelBeam,
    Select,
)
from sciLDM.rng import NoiseSource

__all__ = ["NOISE", "ObservedTask", "tasks"]

NOISE = 0.02
VIEWS, THICK, KEPT, UNDERSAMPLING = 6, 4, 4, 5
_RAYS = 4


@final
@dataclass(frozen=True)
class ObservedTask:
    """An observation and its simulation.

    Attributes:
        name: As in the table.
        operator: On the grid that is reconstructed.
        measure: From fine drawings to values without noise.
        interpolates: The axis along which slices can be interpolated, and their places on it; None where there are
            none.
    """

    name: str
    operator: LinearOperator
    measure: Callable[[Tensor], Tensor]
    interpolates: tuple[float, ...] | None = None

    def observe(self, fine: Float[Tensor, "case 1 side side side"], *, seed: int) -> Observation:
        """Noisy values of these phantoms."""
        values = self.measure(fine)
        noise = NoiseSource(seed).fork(self.name).normal(range(len(values)), tuple(values.shape[1:]))
        return Observation(values + NOISE * noise, self.operator, GaussianNoise(NOISE))

    def mismatch(self, fine: Float[Tensor, "case 1 side side side"]) -> float:
        """Root mean square model error of the coarse operator, in standard deviations of the noise."""
        error = self.measure(fine) - self.operator(volumes(fine))
        return float(error.square().mean().sqrt()) / NOISE


def tasks(side: int) -> Mapping[str, ObservedTask]:
    """The five, for a cube of `side` voxels an axis (a multiple of 8)."""
    field = (1, side, side, side)
    thick = BlockMean(field, (THICK, 1, 1))
    hole = torch.ones(field, dtype=torch.bool)
    middle = slice(side // 4, side - side // 4)
    hole[:, middle, middle, middle] = False
    mask, kept = Mask(hole), list(range(KEPT // 2 - 1, side, KEPT))
    select = Select(field, kept, axis=1)
    centres = tuple(THICK * k + (THICK - 1) / 2 for k in range(side // THICK))
    found = (
        ObservedTask("thick", thick, lambda fine: thick(volumes(fine)), centres),
        _views(side),
        _k_space(side),
        ObservedTask("hole", mask, lambda fine: mask(volumes(fine))),
        ObservedTask("slices", select, lambda fine: select(volumes(fine)), tuple(float(k) for k in kept)),
    )
    return {task.name: task for task in found}


def _views(side: int) -> ObservedTask:
    angles = [180 * k / VIEWS for k in range(VIEWS)]
    coarse = ParallelBeam((1, side, side, side), angles, spacing=1 / side)
    n, count = DETAIL * side, coarse.out_shape[-1]
    rays = ParallelBeam(
        (1, side, n, n), angles, spacing=1 / n, pixel=1 / (_RAYS * side), detectors=_RAYS * count
    )
    outside = coarse(torch.ones(1, *coarse.in_shape))

    def measure(fine: Tensor) -> Tensor:
        # -1 is air and attenuates nothing: what is measured are integrals of (x + 1) / 2.
        slabs = torch.nn.functional.avg_pool3d(fine, (DETAIL, 1, 1))
        integrals = rays((slabs + 1) / 2)
        return 2 * integrals.unflatten(-1, (count, _RAYS)).mean(dim=-1) - outside

    return ObservedTask("views", coarse, measure)


def _k_space(side: int) -> ObservedTask:
    sampled = _encodings(side)
    coarse = Fourier((1, side, side, side), sampled, axes=2)
    n = DETAIL * side
    middle = slice(n // 2 - side // 2, n // 2 + side // 2)
    frequency = torch.arange(side) - side // 2
    # A voxel's response to each frequency, and half a fine voxel between the origins of the two grids.
    angle = math.pi * frequency / n
    axis = torch.polar(torch.sin(DETAIL * angle) / (DETAIL * torch.sin(angle)), (DETAIL - 1) * angle)
    axis[side // 2] = 1.0
    response = axis[:, None] * axis

    def measure(fine: Tensor) -> Tensor:
        slabs = torch.nn.functional.avg_pool3d(fine, (DETAIL, 1, 1))
        shifted = torch.fft.ifftshift(slabs, dim=(-2, -1))
        spectrum = torch.fft.fftshift(torch.fft.fft2(shifted, norm="ortho"), dim=(-2, -1))
        seen = (spectrum[..., middle, middle] * response / DETAIL)[..., sampled]
        return torch.view_as_real(seen)

    return ObservedTask("k-space", coarse, measure)


def _encodings(side: int) -> Tensor:
    """Phase encodings: all within an eighth of the middle, the rest at random, denser towards it."""
    frequency = torch.arange(side) - side // 2
    radius = (frequency[:, None].square() + frequency.square()).sqrt() / (side / 2)
    draw = NoiseSource(5).uniform([0], (side, side))[0]
    chance = torch.where(radius <= 0.25, 1.0, (1 - radius / 1.5).clamp(min=0).square())
    # Smallest -log(u) / chance: a weighted choice without repetition (Efraimidis & Spirakis 2006).
    key = torch.where(radius <= 0.25, 0.0, -draw.log() / chance.clamp(min=1e-6))
    count = side * side // UNDERSAMPLING
    return (key <= key.flatten().sort().values[count - 1]).contiguous()
