"""Three orthogonal slices of several images of one volume, beside each other, as inline SVG."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sciLDM.errors import DataError, MissingExtra
from sciLDM.evaluate.figures import INK, svg

__all__ = ["middle_of", "orthogonal_slices"]

_PLANES = ("axial", "coronal", "sagittal")
_DIVERGING, _SEQUENTIAL = ("error",), ("std",)


def middle_of(scored: np.ndarray | None, shape: Sequence[int]) -> tuple[int, int, int]:
    """The voxel to cut through: the centre of what was lost where it is a region, else the volume's middle."""
    if scored is None or not scored.any():
        x, y, z = (n // 2 for n in shape)
        return x, y, z
    inside = np.argwhere(scored)
    middle = inside.mean(axis=0)
    # The nearest lost voxel: between kept slices the centre itself may have been measured.
    x, y, z = inside[((inside - middle) ** 2).sum(axis=1).argmin()].tolist()
    return x, y, z


def orthogonal_slices(
    images: Mapping[str, np.ndarray],
    alt: str,
    *,
    at: Sequence[int] | None = None,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    window: tuple[float, float] | None = None,
) -> str:
    """A figure: one column an image, rows axial, coronal and sagittal, right is right.

    Images called `error...` are shown about zero, `std...` from zero; all others share one grey scale.

    Args:
        images: On the same RAS+ voxels; NaN is left blank.
        alt: What it shows, for readers who do not see it.
        at: Voxel to cut through; the middle when None.
        spacing: Of voxels, in mm.
        window: Black and white; the range of the first image when None.

    Raises:
        DataError: Images of different shapes.
        MissingExtra: matplotlib is absent.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtra("figures need matplotlib: pip install matplotlib") from error
    shapes = {np.shape(a) for a in images.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 3:
        raise DataError(f"pictures: expected volumes of one shape, got {sorted(shapes)}")
    first = next(iter(images.values()))
    cut = middle_of(None, first.shape) if at is None else tuple(int(i) for i in at)
    sizes = [_plane(first, k, cut).shape for k in range(3)]
    heights = [s[0] * _ratio(k, spacing) / max(s[1], 1) for k, s in enumerate(sizes)]
    figure = Figure(figsize=(1.55 * len(images), 1.55 * sum(heights) + 0.35))
    figure.patch.set_alpha(0.0)
    figure.set_layout_engine("constrained", w_pad=0.02, h_pad=0.02)
    axes = figure.subplots(3, len(images), squeeze=False, gridspec_kw={"height_ratios": heights})
    low, high = window or (float(np.nanmin(first)), float(np.nanmax(first)))
    for column, (name, image) in enumerate(images.items()):
        colours = _colours(name, image, low, high)
        for row in range(3):
            ax: Any = axes[row][column]
            ax.imshow(
                _plane(image, row, cut), aspect=_ratio(row, spacing), interpolation="nearest", **colours
            )
            ax.set_xticks([])
            ax.set_yticks([])
            for side in ax.spines.values():
                side.set_visible(False)
            if row == 0:
                ax.set_title(_title(name, colours), fontsize=7.5, color=INK)
            if column == 0:
                ax.set_ylabel(_PLANES[row], fontsize=7.5, color=INK)
    return svg(figure, alt)


def _colours(name: str, image: np.ndarray, low: float, high: float) -> dict[str, Any]:
    if name.startswith(_DIVERGING):
        top = float(np.nanmax(np.abs(image))) or 1.0
        return {"cmap": "RdBu_r", "vmin": -top, "vmax": top}
    if name.startswith(_SEQUENTIAL):
        return {"cmap": "magma", "vmin": 0.0, "vmax": float(np.nanmax(image)) or 1.0}
    return {"cmap": "gray", "vmin": low, "vmax": high}


def _title(name: str, colours: Mapping[str, Any]) -> str:
    if name.startswith(_DIVERGING):
        return f"{name} (±{colours['vmax']:.3g})"
    if name.startswith(_SEQUENTIAL):
        return f"{name} (0 to {colours['vmax']:.3g})"
    return name


def _plane(image: np.ndarray, row: int, at: Sequence[int]) -> np.ndarray:
    """Up is front (axial) or head; the patient's right is on the right."""
    part = (image[:, :, at[2]], image[:, at[1], :], image[at[0], :, :])[row]
    return np.asarray(part, dtype=np.float64).T[::-1]


def _ratio(row: int, spacing: Sequence[float]) -> float:
    """Height over width of a voxel."""
    across, up = ((0, 1), (0, 2), (1, 2))[row]
    return float(spacing[up]) / float(spacing[across])
