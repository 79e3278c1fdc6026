"""A reconstruction as an imaging scientist wants it: images in the patient's own geometry, with error bars."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, final

import nibabel as nib
import numpy as np

from sciLDM import __version__
from sciLDM.domains.medical.bids import derivative_path, write_description, write_json
from sciLDM.domains.medical.intensity import Modality, units_of
from sciLDM.domains.medical.nifti import to_image, write_nifti
from sciLDM.domains.medical.volume import Volume

__all__ = ["LEVELS", "Reconstruction"]

LEVELS = (0.05, 0.95)
"""Quantiles of `lower` and `upper`: a 90 % interval for each voxel."""

_WHAT = {
    "recon": "Posterior mean: the point estimate",
    "std": "Posterior standard deviation of each voxel",
    "lower": "5 % quantile of the posterior at each voxel",
    "upper": "95 % quantile of the posterior at each voxel",
    "nullspace": "Share of the variance that the observation leaves open: 0 measured, 1 generated",
}


@final
@dataclass(frozen=True)
class Reconstruction:
    """The posterior of one volume.

    Attributes:
        volume: The geometry and type of the output; its values are those that were observed, NaN elsewhere.
        arrays: `recon`, `std`, `lower`, `upper`, `nullspace`, on RAS+ axes, float32.
        draws: Posterior samples, `[sample, x, y, z]` on RAS+ axes.
        chi2: Misfit of the observation; about 1 when it is met to within its noise.
        calibrated: Whether the spread was calibrated for this kind of observation.
        modality: `ct`, `mr` or `other`.
        details: Operator, noise, scale, solver: what the side-car says; `model` is the hash of the weights.
    """

    volume: Volume
    arrays: Mapping[str, np.ndarray]
    draws: np.ndarray
    chi2: float
    calibrated: bool
    modality: Modality
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def mean(self) -> nib.Nifti1Image:
        """The point estimate."""
        return self._image(self.arrays["recon"])

    @property
    def std(self) -> nib.Nifti1Image:
        """Standard deviation of each voxel."""
        return self._image(self.arrays["std"])

    @property
    def lower(self) -> nib.Nifti1Image:
        """Lower end of the 90 % interval of each voxel."""
        return self._image(self.arrays["lower"])

    @property
    def upper(self) -> nib.Nifti1Image:
        """Upper end of the 90 % interval of each voxel."""
        return self._image(self.arrays["upper"])

    @property
    def null_space(self) -> nib.Nifti1Image:
        """What was generated rather than measured, 0 to 1."""
        return self._image(self.arrays["nullspace"])

    @property
    def samples(self) -> list[nib.Nifti1Image]:
        """Posterior samples: any of them may have been the volume."""
        return [self._image(draw) for draw in self.draws]

    def save(
        self,
        folder: str | Path,
        name: str | None = None,
        *,
        dtype: Literal["input", "float32"] = "input",
        samples: int | None = None,
    ) -> list[Path]:
        """Write a BIDS derivative: images, side-cars, `dataset_description.json`.

        Args:
            folder: Root of the derivative data set.
            name: File name of the source; its own when None.
            dtype: Type of the mean and of samples: the input's, with its slope (values are rounded to it), or float32.
                Standard deviation, quantiles and shares are float32 always.
            samples: How many to write; all when None.

        Returns:
            The images written.
        """
        root, source = Path(folder), name or self.volume.name or "volume"
        mark = {"Model": str(self.details.get("model", "")), "GeneratedBy": f"sciLDM {__version__}"}
        written = []
        for what, values in self.arrays.items():
            kind = dtype if what == "recon" else "float32"
            written.append(self._write(root, source, what, values, kind, mark))
        for k, draw in enumerate(self.draws[:samples]):
            written.append(self._write(root, source, f"sample-{k + 1:03d}", draw, dtype, mark))
        write_description(
            root, name="sciLDM reconstructions", generated_by={"Name": "sciLDM", "Version": __version__}
        )
        return written

    def _write(
        self, root: Path, source: str, what: str, values: np.ndarray, dtype: str, mark: Mapping[str, Any]
    ) -> Path:
        kind: Literal["input", "float32"] = "input" if dtype == "input" else "float32"
        path = derivative_path(root, source, what, modality=self.modality)
        write_nifti(self.volume.with_data(values), path, dtype=kind, mark=mark)
        write_json(path.with_name(path.name.removesuffix(".nii.gz") + ".json"), self.sidecar(what, source))
        return path

    def sidecar(self, what: str, source: str | None = None) -> dict[str, Any]:
        """What the JSON beside an image says."""
        described = _WHAT.get(what, "A sample of the posterior: as likely as any other")
        model = self.details.get("model")
        return {
            "Description": described,
            "SyntheticData": True,
            "Sources": [source or self.volume.name],
            "Units": "1" if what == "nullspace" else units_of(self.modality),
            "ChiSquare": self.chi2,
            "Calibrated": self.calibrated,
            "GeneratedBy": [{"Name": "sciLDM", "Version": __version__}],
            **({"Model": model} if model else {}),
            **{k: v for k, v in self.details.items() if k != "model"},
        }

    def _image(self, values: np.ndarray) -> nib.Nifti1Image:
        mark = {"Model": str(self.details.get("model", "")), "GeneratedBy": f"sciLDM {__version__}"}
        return to_image(replace(self.volume, data=values), dtype="float32", mark=mark)
