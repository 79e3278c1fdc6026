"""Observations named on a command line: `scildm reconstruct RUN brain.nii.gz --operator thick:spacing=1`."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from sciLDM.domains.medical.hounsfield import MU_WATER_70_KEV
from sciLDM.domains.medical.scan import Scan, damaged, keep_slices, measured, read_volume, thick_slices
from sciLDM.errors import ConfigError, DataError
from sciLDM.operators import Fourier, ParallelBeam
from sciLDM.posterior.hooks import OperatorSpec

__all__ = ["OPERATORS", "read_observation"]

OPERATORS = {
    "gaps": "voxels that are NaN in the file (also when no operator is named)",
    "mask": "file=MASK.nii.gz: not 0 where damaged",
    "slices": "axis=2,every=4,first=0: only every 4th slice was recorded (axes x=0, y=1, z=2)",
    "thick": "spacing=1,thickness=4,axis=2,profile=box: thick slices to thin ones, in mm",
    "views": "like=REF.nii.gz,mu_water=0.01928: an .npz with `values` (line integrals) and `angles` (degrees), CT",
    "kspace": "like=REF.nii.gz,axes=2: an .npz with complex `values` and a boolean `mask`",
}
"""What can be named, and its options."""

_OPTIONS = {
    "gaps": set(),
    "mask": {"file"},
    "slices": {"axis", "every", "first"},
    "thick": {"spacing", "thickness", "axis", "profile"},
    "views": {"like", "mu_water"},
    "kspace": {"like", "axes"},
}


def read_observation(path: Path, spec: OperatorSpec | None) -> Scan:
    """A scan from a file.

    Raises:
        ConfigError: An operator or option that does not exist; those there are, are listed.
        DataError: A file that cannot be read.
    """
    name, options = ("gaps", {}) if spec is None else (spec.name, dict(spec.options))
    if name not in OPERATORS:
        known = "; ".join(f"{k}: {v}" for k, v in OPERATORS.items())
        raise ConfigError(f"operator {name!r} is not known; there are {known}")
    if wrong := sorted(set(options) - _OPTIONS[name]):
        raise ConfigError(f"operator {name}: unknown options {', '.join(wrong)}; {OPERATORS[name]}")
    if name == "gaps":
        return damaged(path)
    if name == "mask":
        return damaged(path, Path(_needed(options, "file", name)))
    if name == "slices":
        return keep_slices(path, **{k: _whole(v, k) for k, v in options.items()})
    if name == "thick":
        return _thick(path, options)
    return _raw(path, name, options)


def _thick(path: Path, options: dict[str, Any]) -> Scan:
    profile = options.get("profile", "box")
    if profile not in ("box", "gauss"):
        raise ConfigError(f"operator thick: profile is box or gauss, got {profile!r}")
    return thick_slices(
        path,
        spacing=_number(options, "spacing"),
        thickness=_number(options, "thickness"),
        axis=None if "axis" not in options else _whole(options["axis"], "axis"),
        profile=profile,
    )


def _raw(path: Path, name: str, options: dict[str, Any]) -> Scan:
    content = _npz(path)
    like = read_volume(_needed(options, "like", name))
    shape = (1, *like.stored.shape[:3])
    spacing = np.sqrt((like.stored.affine[:3, :3] ** 2).sum(axis=0))
    if name == "views":
        angles = _entry(content, "angles", path)
        # Rotation about the third axis on disk: the planes are its first two.
        operator = ParallelBeam(
            shape, angles.tolist(), spacing=(float(spacing[0]), float(spacing[1])), axes=(1, 2)
        )
        mu_water = _number(options, "mu_water") or MU_WATER_70_KEV
        return measured(_entry(content, "values", path), operator, like=like, mu_water=mu_water)
    mask = torch.from_numpy(_entry(content, "mask", path).astype(bool))
    fourier = Fourier(shape, mask, axes=_whole(options.get("axes", 2), "axes"))
    return measured(_entry(content, "values", path), fourier, like=like)


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with Path(path).open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            return {k: stored[k] for k in stored.files}
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: expected an .npz of measurements ({error})") from error


def _entry(content: dict[str, np.ndarray], name: str, path: Path) -> np.ndarray:
    if name not in content:
        raise DataError(f"{path}: expected an array `{name}`, it holds {', '.join(content) or 'none'}")
    return content[name]


def _needed(options: dict[str, Any], key: str, name: str) -> str:
    if key not in options:
        raise ConfigError(f"operator {name}: expected {OPERATORS[name]}")
    return str(options[key])


def _number(options: dict[str, Any], key: str) -> float | None:
    value = options.get(key)
    if value is not None and not isinstance(value, float | int):
        raise ConfigError(f"operator: {key} is a number, got {value!r}")
    return None if value is None else float(value)


def _whole(value: Any, key: str) -> int:
    named = {"x": 0, "y": 1, "z": 2}.get(str(value), value) if key == "axis" else value
    if not isinstance(named, int | float) or named != int(named):
        raise ConfigError(f"operator: {key} is a whole number, got {value!r}")
    return int(named)
