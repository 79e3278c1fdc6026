"""Small volumes with known content, and the folders that hold them."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

TURN = 0.35
"""Angle of the oblique affine, in radians."""


def affines() -> dict[str, np.ndarray]:
    """Affines as scanners write them: axial, coronal, sagittal, flipped, oblique, anisotropic."""
    c, s = np.cos(TURN), np.sin(TURN)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
    tilt = np.array([[1, 0, 0], [0, c, -s], [0, s, c]])
    parts = {
        "axial": np.diag([1.0, 1.0, 1.0]),
        "coronal": np.array([[1.1, 0, 0], [0, 0, 2.0], [0, -0.9, 0]]),
        "sagittal": np.array([[0, 0, 1.5], [-1.0, 0, 0], [0, 0.8, 0]]),
        "flipped": np.diag([-1.0, -1.0, 2.5]),
        "oblique": turn @ tilt @ np.diag([0.9, 0.9, 3.0]),
        "anisotropic": np.diag([0.4, 0.5, 6.0]),
    }
    made = {}
    for name, part in parts.items():
        made[name] = np.eye(4)
        made[name][:3, :3], made[name][:3, 3] = part, [-12.5, 7.25, 101.125]
    return made


def blob(shape: tuple[int, ...], rng: np.random.Generator, *, scale: float = 1000.0) -> np.ndarray:
    """A smooth bright spot at a random place, with faint noise; positive."""
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    centre = rng.uniform(-0.3, 0.3, 3)
    distance = sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True))
    return (scale * (np.exp(-3 * distance) + 0.01 * rng.random(shape))).astype(np.float32)


def body(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Whole numbers in HU: soft tissue in air, and a piece of bone."""
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    radius = np.sqrt(axes[0] ** 2 + axes[1] ** 2)
    hu = np.where(radius < 0.8, 40.0, -1000.0)
    hu[np.sqrt((axes[0] - rng.uniform(-0.2, 0.2)) ** 2 + axes[1] ** 2) < 0.2] = 900.0
    return np.rint(hu + 10 * rng.standard_normal(shape)).astype(np.int16)


def save(path: Path, data: np.ndarray, affine: np.ndarray | None = None, **header: Any) -> Path:
    """Write a NIfTI file; `header` sets fields of the header."""
    image = nib.Nifti1Image(data, np.eye(4) if affine is None else affine)
    image.set_sform(image.affine, 1)
    image.set_qform(image.affine, 1)
    for name, value in header.items():
        image.header[name] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def folder(place: Path, count: int = 8, *, spacing: tuple[float, float, float] = (1.0, 1.0, 2.0)) -> Path:
    """A folder of MR volumes of several sizes and very different intensity scales."""
    rng = np.random.default_rng(0)
    for k in range(count):
        shape = tuple(int(n) for n in rng.integers(10, 17, 3))
        data = blob(shape, rng, scale=10.0 ** (1 + k % 4))
        save(place / f"p{k:02d}.nii.gz", data, np.diag([*spacing, 1.0]))
    return place


SMALL: dict[str, Any] = {"channels": 4, "widths": [8, 16], "blocks": [1, 1]}
"""A small autoencoder, four voxels to a cell."""


def experiment(data: Path, **options: Any) -> dict[str, Any]:
    """The configuration of a small run."""
    init = {"data": str(data), "grid": [16, 16, 16], "autoencoder": SMALL, "psnr": -100.0, **options}
    stage = {"max_steps": 20, "batch_size": 4, "warmup_steps": 2, "learning_rate": 3e-3}
    return {
        "domain": {"class_path": "sciLDM.domains.medical.Medical", "init_args": init},
        "network": {"class_path": "sciLDM.nets.UNetNetwork", "init_args": {"widths": [8, 16]}},
        "sampler": {"class_path": "DPMSolverPP2MSDE", "init_args": {"steps": 3}},
        "autoencoder_stage": stage,
        "denoiser_stage": stage,
        "trainer": {"accelerator": "cpu", "progress_bar": False},
    }
