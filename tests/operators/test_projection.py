"""Projections against scikit-image, analytic line integrals, and their own adjoints."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.operators.base import LinearOperator
from sciLDM.operators.projection import ConeBeam, FanBeam, ParallelBeam
from sciLDM.operators.projection_fbp import filtered_back_projection
from sciLDM.operators.projection_matrix import RayMatrix
from sciLDM.operators.projection_rays import cone_rays

F64 = torch.float64
BUILDERS: dict[str, Callable[[], LinearOperator]] = {
    "parallel, image": lambda: ParallelBeam((2, 17, 12), [0, 31.5, 90, 141], spacing=(0.7, 1.3), pixel=0.9),
    "parallel, other planes": lambda: ParallelBeam((1, 9, 5, 8), [10.0, 100.0], axes=(3, 1), detectors=11),
    "fan": lambda: FanBeam((1, 3, 12, 14), [0, 45, 200], source_to_axis=40.0, source_to_detector=75.0),
    "cone": lambda: ConeBeam(
        (2, 8, 10, 9),
        [0, 50, 270],
        source_to_axis=30.0,
        source_to_detector=50.0,
        spacing=(1.5, 1, 1),
        pixel=2.0,
    ),
    "cone, other axis": lambda: ConeBeam(
        (1, 8, 10, 9), [5, 80], source_to_axis=30.0, source_to_detector=50.0, axis=2, detectors=(7, 12)
    ),
}


def smooth(side: int) -> np.ndarray:
    """Three Gaussian blobs inside the circle."""
    v, u = np.mgrid[:side, :side] / (side - 1) * 2 - 1
    blobs = ((0.2, 0.1, 0.2, 1.0), (-0.3, 0.3, 0.1, 0.7), (0.1, -0.4, 0.15, -0.5))
    inside = np.hypot(v, u) < 0.98
    return inside * sum(a * np.exp(-((v - y) ** 2 + (u - x) ** 2) / (2 * s * s)) for y, x, s, a in blobs)


def shepp_logan(side: int) -> np.ndarray:
    from skimage.data import shepp_logan_phantom
    from skimage.transform import resize

    image = resize(shepp_logan_phantom(), (side, side), anti_aliasing=True)
    v, u = np.mgrid[:side, :side] - (side - 1) / 2
    return image * (np.hypot(v, u) < side / 2 - 1)


def dome(
    shape: tuple[int, ...],
    radius: float,
    centre: tuple[float, ...],
    spacing: tuple[float, ...],
    *,
    sharp: bool,
) -> Tensor:
    """A ball of value 1, or of `1 - r^2 / radius^2`; each voxel is the mean over 4^d points."""
    fine = [
        (torch.arange(4 * n, dtype=F64) - (4 * n - 1) / 2) * h / 4
        for n, h in zip(shape, spacing, strict=True)
    ]
    axes = torch.meshgrid(*fine, indexing="ij")
    height = 1 - sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) / radius**2
    value = (height > 0).double() if sharp else height.clamp(min=0)
    pool = torch.nn.functional.avg_pool2d if len(shape) == 2 else torch.nn.functional.avg_pool3d
    return pool(value[None, None], 4)


def check_dome(ours: Tensor, gap: Tensor, radius: float, *, sharp: bool) -> None:
    """`gap` is each ray's distance from the centre; rays that graze a sharp edge are left out."""
    half = (radius**2 - gap**2).clamp(min=0).sqrt()
    exact = 2 * half if sharp else 4 * half**3 / (3 * radius**2)
    seen = (gap < 0.9 * radius) | (gap > 1.2 * radius) if sharp else torch.ones_like(gap, dtype=torch.bool)
    assert relative(ours[seen], exact[seen]) < 0.01


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (F64, 1e-10)])
def test_adjoint(name: str, dtype: torch.dtype, tolerance: float) -> None:
    operator = BUILDERS[name]()
    x, y = torch.rand(2, *operator.in_shape, dtype=dtype), torch.rand(2, *operator.out_shape, dtype=dtype)
    ax, aty = operator(x), operator.adjoint(y)
    assert ax.shape == y.shape
    assert aty.shape == x.shape
    for row in range(2):
        one, other = (ax[row] * y[row]).sum(), (x[row] * aty[row]).sum()
        assert abs(float(one - other)) < tolerance * float(ax[row].norm() * y[row].norm())


@pytest.mark.parametrize("phantom", [smooth, shepp_logan], ids=["smooth", "shepp-logan"])
def test_parallel_beam_agrees_with_scikit_image(phantom: Callable[[int], np.ndarray]) -> None:
    from skimage.transform import radon

    side, angles = 129, np.arange(0.0, 180.0, 7.5)  # odd: scikit-image's centre is a pixel then, as ours
    image = phantom(side)
    theirs = torch.from_numpy(radon(image, angles, circle=True)).T
    operator = ParallelBeam((1, side, side), angles.tolist(), detectors=side, spacing=0.5)
    ours = operator(torch.from_numpy(image)[None, None])[0, 0] / 0.5  # scikit-image counts in pixels
    assert relative(ours, theirs) < 0.01


@pytest.mark.parametrize("sharp", [True, False])
def test_parallel_beam_of_a_disk_off_centre(sharp: bool) -> None:
    spacing, centre, radius = (0.5, 0.8), (3.0, -5.0), 9.0
    operator = ParallelBeam((1, 96, 60), [0, 20, 77, 90, 135], spacing=spacing)
    angle = torch.deg2rad(operator.angles)[:, None]
    s = (torch.arange(operator.out_shape[-1]) - (operator.out_shape[-1] - 1) / 2) * operator.pixel
    gap = (s - (-angle.sin() * centre[0] + angle.cos() * centre[1])).abs()
    check_dome(operator(dome((96, 60), radius, centre, spacing, sharp=sharp))[0, 0], gap, radius, sharp=sharp)


def distance(source: Tensor, pixel: Tensor, centre: tuple[float, ...]) -> Tensor:
    """Of a point from the lines between `source` and `pixel`."""
    direction = (pixel - source) / (pixel - source).norm(dim=-1, keepdim=True)
    to_centre = torch.tensor(centre, dtype=F64) - source
    along = (to_centre * direction).sum(-1)
    return (to_centre.square().sum(-1) - along**2).clamp(min=0).sqrt()


@pytest.mark.parametrize("sharp", [True, False])
def test_fan_beam_of_a_disk(sharp: bool) -> None:
    centre, radius, spacing = (4.0, -6.0), 8.0, (0.5, 0.5)
    operator = FanBeam(
        (1, 80, 80), [0, 33, 120, 250], source_to_axis=60.0, source_to_detector=100.0, spacing=0.5
    )
    u = (torch.arange(operator.out_shape[-1], dtype=F64) - (operator.out_shape[-1] - 1) / 2) * operator.pixel
    angle = torch.deg2rad(operator.angles)[:, None, None]
    along, across = torch.cat([angle.cos(), angle.sin()], -1), torch.cat([-angle.sin(), angle.cos()], -1)
    gap = distance(-60 * along, 40 * along + u[:, None] * across, centre)
    check_dome(operator(dome((80, 80), radius, centre, spacing, sharp=sharp))[0, 0], gap, radius, sharp=sharp)


@pytest.mark.parametrize("sharp", [True, False])
@pytest.mark.parametrize("axis", [1, 2, 3])
def test_cone_beam_of_a_ball(axis: int, sharp: bool) -> None:
    place, radius, size = (2.0, -3.0, 4.0), 7.5, (0.4, 0.5, 0.45)
    shape = (60, 56, 58)
    operator = ConeBeam(
        (1, *shape), [65, 200], source_to_axis=60.0, source_to_detector=90.0, spacing=size, axis=axis
    )
    rows, columns = (
        (torch.arange(n, dtype=F64) - (n - 1) / 2) * h
        for n, h in zip(operator.out_shape[-2:], operator.pixel, strict=True)
    )
    centre = (place[axis - 1], *[place[k] for k in range(3) if k != axis - 1])
    angle = torch.deg2rad(operator.angles)[:, None, None, None]
    zero = torch.zeros_like(angle)
    along = torch.cat([zero, angle.cos(), angle.sin()], -1)
    across = torch.cat([zero, -angle.sin(), angle.cos()], -1)
    up = torch.tensor([1.0, 0, 0], dtype=F64)
    pixel = 30 * along + rows[:, None, None] * up + columns[:, None] * across
    gap = distance((-60 * along).expand_as(pixel), pixel, centre)
    check_dome(operator(dome(shape, radius, place, size, sharp=sharp))[0, 0], gap, radius, sharp=sharp)


def test_a_far_source_is_a_parallel_beam() -> None:
    x = torch.from_numpy(smooth(33))[None, None]
    angles, far = [0, 40, 90], 1e6
    parallel = ParallelBeam((1, 33, 33), angles, detectors=33)
    fan = FanBeam((1, 33, 33), angles, source_to_axis=far, source_to_detector=far, detectors=33, pixel=1.0)
    assert relative(fan(x), parallel(x)) < 1e-3
    deep = x[:, :, None].expand(1, 1, 5, 33, 33)
    cone = ConeBeam(
        (1, 5, 33, 33), angles, source_to_axis=far, source_to_detector=far, detectors=(5, 33), pixel=1.0
    )
    assert relative(cone(deep), parallel(x)[:, :, :, None].expand(1, 1, 3, 5, 33)) < 1e-3


def test_large_matrices_are_computed_on_the_way() -> None:
    rays = cone_rays(torch.tensor([0.0, 70.0]), (9, 11), (1.0, 1.0), 20.0, 30.0)
    kept, computed = (RayMatrix(rays, (6, 7, 8), (1.0, 1.0, 1.0), kept=kept) for kept in (True, False))
    computed.block = 50  # several blocks, the last one short
    x, y = torch.rand(2, 6 * 7 * 8), torch.rand(2, 2 * 9 * 11)
    assert torch.allclose(kept.project(x), computed.project(x), atol=1e-5)
    assert torch.allclose(kept.back_project(y), computed.back_project(y), atol=1e-5)


def test_derivatives_in_both_modes_and_vmap() -> None:
    operator = BUILDERS["fan"]()
    x, v = torch.rand(2, 2, *operator.in_shape, dtype=F64)
    y, pullback = torch.func.vjp(lambda x: operator(x).square(), x)
    w = torch.rand_like(y)
    assert torch.allclose(pullback(w)[0], operator.adjoint(2 * operator(x) * w))
    _, tangent = torch.func.jvp(lambda x: operator(x).square(), (x,), (v,))
    assert torch.allclose(tangent, 2 * operator(x) * operator(v))
    stacked = torch.func.vmap(operator, in_dims=1)(torch.stack([x, v], dim=1))
    assert torch.allclose(stacked, torch.stack([operator(x), operator(v)]))
    leaf = x.clone().requires_grad_()
    first = torch.autograd.grad(operator(leaf).pow(3).sum(), leaf, create_graph=True)[0]
    second = torch.autograd.grad((first * v).sum(), leaf)[0]
    assert torch.allclose(second, operator.adjoint(6 * operator(x) * operator(v)))


def test_rows_do_not_depend_on_the_batch() -> None:
    operator = BUILDERS["cone"]()
    x = torch.rand(3, *operator.in_shape)
    assert torch.allclose(operator(x)[1:2], operator(x[1:2]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("arc", [180.0, 360.0])
def test_filtered_back_projection_inverts(arc: float) -> None:
    x = torch.from_numpy(np.stack([smooth(64), shepp_logan(64)]))[:, None] * 0.02
    operator = ParallelBeam((1, 64, 64), (torch.arange(180) * arc / 180).tolist(), spacing=0.8, pixel=0.6)
    image = filtered_back_projection(operator, operator(x))
    assert relative(image[0], x[0]) < 0.02
    assert relative(image[1], x[1]) < 0.25  # edges
    assert abs(float(image[1].mean() / x[1].mean()) - 1) < 0.01  # the ramp keeps the mean
    soft = filtered_back_projection(operator, operator(x), hann=True)
    assert relative(soft[0], x[0]) < 0.04


def test_filtered_back_projection_weighs_uneven_views_and_keeps_planes_apart() -> None:
    x = torch.from_numpy(smooth(48))[None, None, :, None].expand(1, 1, 48, 2, 48).clone()
    x[..., 1, :] *= -2
    angles = [*range(0, 90), *[90 + 0.5 * k for k in range(180)]]  # twice as dense in one half
    operator = ParallelBeam((1, 48, 2, 48), angles, axes=(1, 3))
    assert relative(filtered_back_projection(operator, operator(x)), x) < 0.03


def test_impossible_geometries() -> None:
    with pytest.raises(ConfigError, match="would touch"):
        FanBeam((1, 64, 64), [0], source_to_axis=40.0, source_to_detector=90.0)
    with pytest.raises(ConfigError, match="at least source_to_axis"):
        ConeBeam((1, 8, 8, 8), [0], source_to_axis=40.0, source_to_detector=20.0)
    with pytest.raises(ConfigError, match="different axes"):
        ParallelBeam((1, 8, 8), [0], axes=(0, 1))
    with pytest.raises(ConfigError, match="finite number"):
        ParallelBeam((1, 8, 8), [math.nan])
    with pytest.raises(ConfigError, match="positive number in mm"):
        ParallelBeam((1, 8, 8), [0], spacing=0.0)
    operator = ParallelBeam((1, 8, 8), [0])
    with pytest.raises(ShapeMismatch, match="acts on fields"):
        operator(torch.zeros(1, 1, 9, 8))
    with pytest.raises(ShapeMismatch, match="observations of shape"):
        operator.adjoint(torch.zeros(1, 1, 2, 12))
    with pytest.raises(ShapeMismatch, match="sinograms of shape"):
        filtered_back_projection(operator, torch.zeros(1, 1, 2, 12))
