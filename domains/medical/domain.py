"""The medical adapter: a folder of NIfTI or DICOM volumes in; samples and calibrated reconstructions out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final, get_args

from sciLDM.autoencoders.grid import GridSettings
from sciLDM.domain import Codec, Corpus, Domain, Evaluation, Progress
from sciLDM.domains.medical.codec import MedicalCodec
from sciLDM.domains.medical.corpus import DataSettings, MedicalCorpus
from sciLDM.domains.medical.intensity import IntensitySettings, Modality
from sciLDM.domains.medical.samples import VolumeSamples, read_samples
from sciLDM.domains.medical.sources import find_entries
from sciLDM.errors import ConfigError
from sciLDM.evaluate.hooks import Material, Section

if TYPE_CHECKING:
    from sciLDM.domains.medical.watermark_marks import FileVerification

__all__ = ["Medical"]


@final
class Medical(Domain):
    """Volumes of CT, MR or another modality.

    Args:
        data: A folder of NIfTI files or DICOM series, a BIDS root, a CSV or TSV with a column of paths, or a data card
            (`msd_hippocampus`, `sts_sarcoma`, `mni152`).
        modality: `ct` (HU), `mr` or `other`.
        grid: Voxels of the model's grid along x (right), y (front), z (up). Smaller volumes are padded to it, larger
            ones are cut into patches.
        conditions: Columns of the table (or of `participants.tsv`) that samples can be asked for.
        autoencoder: Size of the autoencoder; every axis of the grid must be a multiple of its factors.
        intensity: Window or percentiles.
        psnr: Least peak signal-to-noise ratio [dB] of held-out volumes, scaled to [0, 1], before the denoiser trains.
        settings: How volumes are chosen, cut and split.
    """

    name: ClassVar[str] = "medical"
    formats: ClassVar[tuple[str, ...]] = (".csv", ".nii", ".gz")
    evaluated: ClassVar[int] = 32

    def __init__(
        self,
        data: str,
        *,
        modality: Modality = "mr",
        grid: tuple[int, int, int] = (32, 32, 32),
        conditions: Sequence[str] = (),
        autoencoder: GridSettings = GridSettings(),  # noqa: B008 - frozen
        intensity: IntensitySettings = IntensitySettings(),  # noqa: B008 - frozen
        psnr: float = 30.0,
        settings: DataSettings = DataSettings(),  # noqa: B008 - frozen
    ) -> None:
        if modality not in get_args(Modality):
            raise ConfigError(f"modality: expected ct, mr or other, got {modality!r}")
        if len(set(conditions)) != len(conditions):
            raise ConfigError(f"conditions must differ, got {list(conditions)}")
        self.data, self.modality, self.grid = data, modality, grid
        self.conditions, self.autoencoder = tuple(conditions), autoencoder
        self.intensity, self.settings = intensity, settings
        self.gate = {"psnr": psnr}

    def prepare(self, cache: Path, progress: Progress) -> Corpus:
        entries = find_entries(str(self.data), pattern=self.settings.pattern, labels=self.settings.labels)
        corpus = MedicalCorpus(
            entries,
            name=Path(self.data).name,
            modality=self.modality,
            grid=self.grid,
            conditions=self.conditions,
            autoencoder=self.autoencoder,
            intensity=self.intensity,
            settings=self.settings,
        )
        return corpus.read(cache, progress, dropout=0.2 if self.conditions else 0.0)

    def codec(self, state: Mapping[str, Any]) -> Codec:
        return MedicalCodec(state)

    def evaluate(self, samples: Any, codec: Codec, reference: Path | None, progress: Progress) -> Evaluation:
        from sciLDM.domains.medical.evaluation import evaluate_samples

        assert isinstance(samples, VolumeSamples)
        assert isinstance(codec, MedicalCodec)
        return evaluate_samples(samples, codec, reference, progress)

    def read_samples(self, path: Path) -> VolumeSamples:
        """Samples written earlier by `VolumeSamples.write`."""
        return read_samples(path)

    def report_sections(self, material: Material) -> Sequence[Section]:
        """Samples, reconstructions beside all baselines, the autoencoder, groups of patients: what the run holds."""
        from sciLDM.domains.medical.report import sections

        return sections(material)

    @staticmethod
    def audit_cases(
        cases: str, groups: str | None, by: Sequence[str], output: str | None = None
    ) -> Mapping[str, Any]:
        """For `scildm audit`; see `audit.audit_files`."""
        from sciLDM.domains.medical.audit import audit_files

        return audit_files(cases, groups, by, output)

    @staticmethod
    def verify_file(path: str, key: str | None = None) -> "FileVerification":
        """For `scildm verify`; see `watermark_marks.verify_file`."""
        from sciLDM.domains.medical.watermark_marks import verify_file

        return verify_file(path, key)
