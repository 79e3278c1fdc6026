r"""Procedural 3-D phantoms: a torso with ribs, spine, organs, vessels, lesions, shading and texture, in [-1, 1].

A phantom is a set of shapes in the cube [-1, 1]^3, not an array: it can be drawn on any grid. Data are simulated from a
finer drawing than the one they are reconstructed on, so that no score rests on the two being the same. A voxel's value
is close to the mean over it: an edge is a ramp one voxel wide, which is the exact mean for a flat edge along an axis.
Sums over the grid are taken in a fixed order, so that a phantom has the same bits whatever is drawn with it.

Organs have a place, a size and a value of their own, each with some spread: that, and what lies where, is what a prior
can learn. Axes are depth (head to foot), height (front to back) and width.

Phantom `k` of a seed depends on `(seed, k)` alone.
"""

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from sciLDM.rng import NoiseSource

__all__ = ["Phantoms", "draw", "phantoms"]

AIR, FAT, MUSCLE, BONE, BLOOD = -1.0, -0.5, -0.1, 0.75, 0.5
# Place and half-axes as shares of the body's inside, the value, and how often the organ is there.
ORGANS = (
    ((-0.25, -0.05, 0.45), (0.55, 0.52, 0.34), -0.80, 1.0),  # lungs
    ((-0.25, -0.05, -0.45), (0.55, 0.52, 0.34), -0.80, 1.0),
    ((0.50, -0.10, 0.38), (0.34, 0.48, 0.42), 0.15, 1.0),  # liver
    ((-0.10, -0.25, -0.12), (0.30, 0.30, 0.28), 0.05, 1.0),  # heart and a chamber of it
    ((-0.10, -0.25, -0.16), (0.18, 0.16, 0.14), 0.35, 0.9),
    ((0.50, 0.00, -0.42), (0.26, 0.30, 0.24), 0.20, 0.9),  # spleen
    ((0.65, 0.35, 0.42), (0.24, 0.15, 0.15), 0.40, 0.8),  # kidneys
    ((0.65, 0.35, -0.42), (0.24, 0.15, 0.15), 0.40, 0.8),
    ((0.60, -0.45, -0.15), (0.24, 0.20, 0.26), -0.75, 0.6),  # gas
)
SPINE = ((0.0, 0.62, 0.0), (3.0, 0.17, 0.14), BONE, 1.0)
LESIONS, VESSELS, PIECES, KNOTS = 3, 3, 4, 11
_CHUNK = 2**16  # voxels times phantoms at a time: what a cache holds


@final
@dataclass(frozen=True)
class Phantoms:
    """Parameters of several phantoms, one a row; lengths in half cubes.

    Attributes:
        centre: Of every ellipsoid: skin, inside, organs, spine, lesions.
        inverse: `M` with `|M (r - centre)| = 1` on its surface.
        value: What it is painted with; a lesion's is added.
        blend: How much of what lies below is replaced, 0 (there is none) to 1.
        ribs: Waves along depth, height and width, and the phase, that part ribs and vertebrae.
        vessel: Points along the vessels.
        thickness: Their radius at each point.
        flow: Their value.
        present: Whether there is the vessel, 0 or 1.
        texture: Coefficients of cubic splines on a lattice.
        shading: Coefficients of low cosines.
    """

    centre: Tensor
    inverse: Tensor
    value: Tensor
    blend: Tensor
    ribs: Tensor
    vessel: Tensor
    thickness: Tensor
    flow: Tensor
    present: Tensor
    texture: Tensor
    shading: Tensor

    def __len__(self) -> int:
        return len(self.centre)

    def __getitem__(self, rows: slice) -> "Phantoms":
        return Phantoms(*(getattr(self, f.name)[rows] for f in fields(self)))


def phantoms(ids: Sequence[int], *, seed: int = 0) -> Phantoms:
    """Phantoms of these numbers, each at least 0."""
    u = _Draws(NoiseSource(seed).fork("phantoms"), ids)
    skin = torch.tensor([0.90, 0.80, 0.72]) + torch.tensor([0.35, 0.14, 0.16]) * u("skin", (3,))
    inside = skin - 0.07 - 0.07 * u("wall", (1,))
    frame = _Frame(0.16 * (u("place", (3,)) - 0.5), _rotation(0.25 * (u("tilt", (3,)) - 0.5)), inside)
    parts = [_body(u, frame, skin), _organs(u, frame), _lesions(u, frame)]
    centre, inverse, value, blend = (torch.cat(part, dim=1) for part in zip(*parts, strict=True))
    vessel, thickness = _vessels(u, frame)
    waves = torch.cat([14 + 4 * u("rib", (1,)), 5 * u("rib fall", (1,)), 2 * u("rib side", (1,)) - 1], dim=1)
    return Phantoms(
        centre,
        inverse,
        value,
        blend,
        torch.cat([waves, 2 * math.pi * u("rib phase", (1,))], dim=1),
        vessel,
        thickness,
        BLOOD + 0.3 * (u("blood", (VESSELS,)) - 0.5),
        (u("vessel there", (VESSELS,)) < 0.9).float(),
        u.normal("texture", (KNOTS, KNOTS, KNOTS)),
        0.06 * u.normal("shading", (3, 3, 3)),
    )


@final
@dataclass(frozen=True)
class _Frame:
    """Where the body is, how it is turned, and the half-axes of its inside."""

    place: Tensor
    tilt: Tensor
    inside: Tensor

    def at(self, share: Tensor) -> Tensor:
        """Points `[phantom, ..., 3]` given as shares of the inside."""
        between = (1,) * (share.ndim - 2)
        local = share * self.inside.reshape(-1, *between, 3)
        tilt = self.tilt.reshape(-1, *between, 3, 3)
        return self.place.reshape(-1, *between, 3) + (tilt @ local[..., None])[..., 0]


def _body(u: "_Draws", frame: _Frame, skin: Tensor) -> tuple[Tensor, ...]:
    radii = torch.stack([skin, frame.inside], dim=1)
    inverse = (1 / radii)[..., None] * frame.tilt.mT[:, None]
    value = torch.tensor([FAT, MUSCLE]) + 0.1 * (u("body value", (2,)) - 0.5)
    return frame.place[:, None].expand_as(radii), inverse, value, torch.ones_like(value)


def _organs(u: "_Draws", frame: _Frame) -> tuple[Tensor, ...]:
    kinds = (*ORGANS, SPINE)
    n = len(kinds)
    place, size, value, often = (torch.tensor(column) for column in zip(*kinds, strict=True))
    centre = frame.at(place + 0.16 * (u("organ at", (n, 3)) - 0.5))
    radii = size * (0.75 + 0.5 * u("organ size", (n, 3))) * frame.inside[:, None]
    turn = 0.9 * (u("organ turn", (n, 3)) - 0.5)
    turn[:, -1] *= 0.2  # the spine stays upright
    inverse = (1 / radii)[..., None] * (frame.tilt[:, None] @ _rotation(turn)).mT
    value = value + 0.24 * (u("organ value", (n,)) - 0.5)
    return centre, inverse, value, (u("organ there", (n,)) < often).float()


def _lesions(u: "_Draws", frame: _Frame) -> tuple[Tensor, ...]:
    n = LESIONS
    centre = frame.at(u.ball("lesion at", n, 0.85))
    radii = (0.06 + 0.10 * u("lesion size", (n, 1))) * (0.8 + 0.4 * u("lesion form", (n, 3)))
    inverse = (1 / radii)[..., None] * _rotation(math.pi * (u("lesion turn", (n, 3)) - 0.5)).mT
    value = torch.where(u("lesion sign", (n,)) < 0.7, 0.45, -0.35) + 0.2 * (u("lesion value", (n,)) - 0.5)
    return centre, inverse, value, (u("lesion there", (n,)) < 0.6).float()


def _vessels(u: "_Draws", frame: _Frame) -> tuple[Tensor, Tensor]:
    """Points on quadratic curves through the body, and the radius at each."""
    ends = torch.stack([u.ball(f"vessel {k}", VESSELS, 0.9, shell=k != 1) for k in range(3)], dim=2)
    ends = frame.at(ends)
    t = torch.linspace(0, 1, PIECES + 1)[:, None]
    points = (1 - t) ** 2 * ends[:, :, :1] + 2 * t * (1 - t) * ends[:, :, 1:2] + t**2 * ends[:, :, 2:]
    return points, (0.05 + 0.05 * u("thick", (VESSELS, 1))) * (1 - 0.5 * t[:, 0])


def draw(found: Phantoms, shape: tuple[int, int, int], *, detail: int = 1) -> Tensor:
    """Voxel values `[phantom, 1, depth, height, width]` on a grid that fills the cube.

    Args:
        found: Phantoms.
        shape: The grid.
        detail: Draw on a grid so many times finer and average: the values of `draw(found, shape * detail)`, block by
            block.
    """
    fine = tuple(n * detail for n in shape)
    chunk = max(1, _CHUNK // math.prod(fine))
    parts = (_draw(found[k : k + chunk], fine) for k in range(0, len(found), chunk))
    return torch.cat([torch.nn.functional.avg_pool3d(x, detail) if detail > 1 else x for x in parts])


def _draw(found: Phantoms, shape: tuple[int, ...]) -> Tensor:
    axes = [(torch.arange(n) + 0.5) * (2 / n) - 1 for n in shape]
    width = 2 / min(shape)
    masks, tubes = _ellipsoids(found, axes, width), _tubes(found, axes, width)
    inside = masks[:, 1]
    image = torch.full_like(inside, AIR)
    bones = _wave(found.ribs, axes)  # none between ribs, nor in the discs
    _paint(image, masks[:, 0], (BONE - FAT) * bones + _level(found.value[:, 0]))
    _paint(image, inside, _level(found.value[:, 1]))
    for k in range(2, 2 + len(ORGANS)):
        _paint(image, masks[:, k] * inside, _level(found.value[:, k]))
    spine = 2 + len(ORGANS)
    _paint(image, masks[:, spine] * inside, _level(found.value[:, spine]) - 0.5 * bones)
    tissue = inside * (2.5 * image + 2.5).clamp_(max=1)  # air has no texture
    image.addcmul_(_spline(found.texture, axes) * 0.08 + _cosines(found.shading, axes), tissue)
    for k in range(VESSELS):
        _paint(image, tubes[:, k] * inside, _level(found.flow[:, k]))
    for k in range(spine + 1, masks.shape[1]):
        image.addcmul_(_level(found.value[:, k]), masks[:, k] * inside)
    return image.clamp_(-1, 1).unsqueeze(1)


def _wave(waves: Tensor, axes: Sequence[Tensor]) -> Tensor:
    at = [waves[:, k, None] * axis for k, axis in enumerate(axes)]
    return _outer_sum(at[0] + waves[:, 3:], at[1], at[2]).sin_().add_(1).mul_(0.5).square_()


def _level(value: Tensor) -> Tensor:
    return value.reshape(-1, 1, 1, 1)


def _paint(image: Tensor, share: Tensor, value: Tensor) -> None:
    image.lerp_(value.expand_as(image), share)


def _ellipsoids(found: Phantoms, axes: Sequence[Tensor], width: float) -> Tensor:
    """Share of each voxel inside each ellipsoid, times its blend: `[phantom, ellipsoid, *grid]`."""
    away = [axis - found.centre[..., k, None] for k, axis in enumerate(axes)]
    gram = found.inverse.mT @ found.inverse
    level, slope = _quadric(gram, away), _quadric(gram @ gram, away)
    # To first order the distance to the surface is (1 - level) / |grad level|, with grad level = 2 G (r - centre).
    slope = slope.clamp_(min=1e-8).rsqrt_().mul_(0.5 / width)
    share = level.neg_().add_(1).mul_(slope).add_(0.5).clamp_(0, 1)
    return share.mul_(found.blend[..., None, None, None])


def _tubes(found: Phantoms, axes: Sequence[Tensor], width: float) -> Tensor:
    """Share of each voxel inside each vessel: a chain of cones with round joints."""
    start, step = found.vessel[:, :, :-1], found.vessel.diff(dim=2)
    length2 = step.square().sum(-1).clamp(min=1e-8)[..., None, None, None]
    away = [axis - start[..., k, None] for k, axis in enumerate(axes)]
    along = _outer_sum(*[a * step[..., k, None] for k, a in enumerate(away)])  # (r - start) . step
    share = (along / length2).clamp_(0, 1)
    # |r - start - share step|^2
    gap2 = _outer_sum(*[a.square() for a in away]).sub_(along.mul_(2).sub_(share * length2).mul_(share))
    radius = share.mul_(found.thickness.diff(dim=2)[..., None, None, None])
    radius.add_(found.thickness[:, :, :-1, None, None, None])
    inside = radius.sub_(gap2.clamp_(min=0).sqrt_()).div_(width).add_(0.5).clamp_(0, 1)
    return inside.amax(dim=2).mul_(found.present[..., None, None, None])


def _quadric(matrix: Tensor, away: Sequence[Tensor]) -> Tensor:
    """`d^T matrix d` on the grid, with `d` given along each axis."""
    m = matrix[..., None, None]
    z, y, x = away[0][..., :, None], away[1], away[2][..., None, :]
    plane = (m[..., 0, 0, :, :] * z + 2 * m[..., 0, 1, :, :] * y[..., None, :]) * z
    plane = plane + m[..., 1, 1, :, :] * y[..., None, :].square()  # depth by height
    side = (2 * m[..., 0, 2, :, :] * z + m[..., 2, 2, :, :] * x) * x  # depth by width
    face = 2 * m[..., 1, 2, :, :] * y[..., :, None] * x  # height by width
    return (plane[..., None] + side[..., None, :]).add_(face[..., None, :, :])


def _outer_sum(z: Tensor, y: Tensor, x: Tensor) -> Tensor:
    return (z[..., :, None] + y[..., None, :])[..., None] + x[..., None, None, :]


def _rotation(angles: Tensor) -> Tensor:
    """Rotations by Euler angles, `[..., 3, 3]`."""
    generators = torch.tensor(
        [
            [[0, 0, 0], [0, 0, -1], [0, 1, 0]],
            [[0, 0, 1], [0, 0, 0], [-1, 0, 0]],
            [[0, -1, 0], [1, 0, 0], [0, 0, 0]],
        ],
        dtype=angles.dtype,
    )
    turns = torch.linalg.matrix_exp(angles[..., None, None] * generators)
    return turns[..., 0, :, :] @ turns[..., 1, :, :] @ turns[..., 2, :, :]


def _spline(lattice: Tensor, axes: Sequence[Tensor]) -> Tensor:
    """A cubic B-spline with coefficients on a lattice over the cube, scaled to about unit variance."""
    value = lattice
    for axis in axes:
        at = (axis + 1) / 2 * (KNOTS - 3) + 1
        d = (at[:, None] - torch.arange(KNOTS)).abs()
        basis = torch.where(d < 1, 2 / 3 - d**2 + d**3 / 2, (2 - d).clamp(min=0) ** 3 / 6)
        value = torch.tensordot(value, basis.T, dims=([1], [0]))  # each axis in turn moves to the end
    return value / 0.48**1.5


def _cosines(coefficients: Tensor, axes: Sequence[Tensor]) -> Tensor:
    value = coefficients
    for axis in axes:
        basis = torch.cos(math.pi / 2 * (axis[:, None] + 1) * torch.arange(3))
        value = torch.tensordot(value, basis.T, dims=([1], [0]))
    return value


@final
class _Draws:
    """Numbers for one purpose each, so that a new kind of shape does not change the others."""

    def __init__(self, source: NoiseSource, ids: Sequence[int]) -> None:
        self.source, self.ids = source, ids

    def __call__(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Uniform in (0, 1)."""
        return self.source.uniform(self.ids, shape, stream=name)

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return self.source.normal(self.ids, shape, stream=name)

    def ball(self, name: str, count: int, radius: float, *, shell: bool = False) -> Tensor:
        """Points in a ball, or near its surface: `[phantom, count, 3]`."""
        direction = torch.nn.functional.normalize(self.normal(name, (count, 3)), dim=-1)
        distance = self(f"{name}, distance", (count, 1))
        return radius * direction * ((0.85 + 0.15 * distance) if shell else distance ** (1 / 3))


def main() -> None:
    """Draws a few and writes a picture."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--picture", type=Path, help="write slices of eight phantoms to this PNG")
    options.add_argument("--side", type=int, default=32)
    options.add_argument("--count", type=int, default=256)
    chosen = options.parse_args()
    start = time.perf_counter()
    made = phantoms(range(chosen.count))
    middle = time.perf_counter()
    x = draw(made, (chosen.side,) * 3)
    print(
        f"{chosen.count} phantoms: {middle - start:.2f} s to choose, {time.perf_counter() - middle:.2f} s to draw"
    )
    print(
        f"mean {float(x.mean()):.3f}, std {float(x.std()):.3f}, {float(x.min()):.2f} to {float(x.max()):.2f}"
    )
    rms = [
        float((x[:32] - draw(made[:32], (chosen.side,) * 3, detail=d)).square().mean().sqrt()) for d in (2, 4)
    ]
    print(f"rms difference to the mean of a drawing 2 and 4 times finer: {rms[0]:.4f}, {rms[1]:.4f}")
    if chosen.picture:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(4, 8, figsize=(16, 8))
        fine = draw(made[:8], (2 * chosen.side,) * 3)
        for k in range(8):
            n = chosen.side
            for row, picture in enumerate(
                (x[k, 0, n // 2], x[k, 0, :, n // 2], x[k, 0, :, :, n // 2], fine[k, 0, n])
            ):
                axes[row, k].imshow(picture, cmap="gray", vmin=-1, vmax=1)
                axes[row, k].axis("off")
        figure.tight_layout()
        figure.savefig(chosen.picture, dpi=60)


if __name__ == "__main__":
    main()
