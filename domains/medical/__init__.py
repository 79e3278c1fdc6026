"""Medical volumes: NIfTI and DICOM in, synthetic volumes and calibrated reconstructions out.

from sciLDM.domains.medical import damaged, keep_slices, thick_slices

result = model.reconstruct(thick_slices("sub-01_T2w.nii.gz", spacing=1.0), noise_std=5.0)
result.save("derivatives/sciLDM")

What examines a model has modules of its own: `study.reconstruction_study` (beside classical methods and a supervised
network), `autoencoder_report.autoencoder_report`, `audit.audit`, `watermark.mark_volume`. Saved as `study/`,
`autoencoder.json` and `audit.json` in a run folder, they are part of `scildm report`.
"""

from sciLDM.domains.medical.codec import MedicalCodec
from sciLDM.domains.medical.corpus import DataSettings
from sciLDM.domains.medical.dicom import read_series
from sciLDM.domains.medical.dicom_out import write_series
from sciLDM.domains.medical.domain import Medical
from sciLDM.domains.medical.hounsfield import Hounsfield, to_attenuation, to_hounsfield
from sciLDM.domains.medical.intensity import IntensitySettings
from sciLDM.domains.medical.nifti import read_nifti, write_nifti
from sciLDM.domains.medical.result import Reconstruction
from sciLDM.domains.medical.samples import VolumeSamples
from sciLDM.domains.medical.scan import Scan, damaged, keep_slices, measured, read_volume, thick_slices
from sciLDM.domains.medical.volume import Volume, crop

__all__ = [
    "DataSettings",
    "Hounsfield",
    "IntensitySettings",
    "Medical",
    "MedicalCodec",
    "Reconstruction",
    "Scan",
    "Volume",
    "VolumeSamples",
    "crop",
    "damaged",
    "keep_slices",
    "measured",
    "read_nifti",
    "read_series",
    "read_volume",
    "thick_slices",
    "to_attenuation",
    "to_hounsfield",
    "write_nifti",
    "write_series",
]
