"""The climate adapter: a NetCDF, zarr or xarray data set in, ensembles of fields out."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, final

import xarray as xr

from sciLDM.autoencoders.grid import GridSettings
from sciLDM.domain import Codec, Corpus, Domain, Evaluation, Progress
from sciLDM.domains.climate.blocks import StreamedStates
from sciLDM.domains.climate.codec import ClimateCodec
from sciLDM.domains.climate.corpus import ClimateCorpus
from sciLDM.domains.climate.outputs import read_dataset, write_dataset
from sciLDM.domains.climate.read import open_dataset, open_source
from sciLDM.domains.climate.settings import ConditionSettings, LoadingSettings, MaskSettings, SplitSettings
from sciLDM.domains.climate.streaming import open_states
from sciLDM.domains.climate.transforms import variable_settings
from sciLDM.errors import ConfigError, DataError
from sciLDM.evaluate.doctor_run import Finding
from sciLDM.evaluate.hooks import Material, Section

__all__ = ["Climate"]


@final
class Climate(Domain):
    """Gridded fields in time.

    Args:
        data: A NetCDF file, glob, folder, zarr store, URL or data card name, or several; in Python also an
            xarray object.
        variables: Those to model together, perhaps each with options of `VariableSettings` (`{pr: {dry: 1.0e-6}}`); all
            gridded variables with time when empty.
        frames: Consecutive states that are modelled together; 1 for single maps.
        split: Training, validation and test periods.
        mask: Which cells exist, beyond missing values.
        conditions: What samples can be asked for.
        autoencoder: Size and losses of the autoencoder.
        explained: Smallest share of the held-out anomalies' variance that the autoencoder must rebuild before the
            denoiser may train.

    Attributes:
        loading: How much of the data is kept in memory, a property of the machine: see `LoadingSettings`.
    """

    name: ClassVar[str] = "climate"
    formats: ClassVar[tuple[str, ...]] = (".nc", ".zarr")
    evaluated: ClassVar[int] = 256

    def __init__(
        self,
        data: str | list[str] | xr.Dataset | xr.DataArray = "ncep_slp",
        *,
        variables: Sequence[str] | Mapping[str, Any] = (),
        frames: int = 1,
        split: SplitSettings = SplitSettings(),  # noqa: B008 - frozen
        mask: MaskSettings = MaskSettings(),  # noqa: B008 - frozen
        conditions: ConditionSettings = ConditionSettings(),  # noqa: B008 - frozen
        autoencoder: GridSettings = GridSettings(pca=-1),  # noqa: B008 - frozen
        explained: float = 0.8,
    ) -> None:
        if frames < 1:
            raise ConfigError(f"frames must be at least 1, got {frames}")
        if not explained <= 1:
            raise ConfigError(f"explained must be at most 1, got {explained}")
        if len(set(variables)) != len(variables):
            raise ConfigError(f"variables must differ, got {list(variables)}")
        self.data, self.variables, self.frames = data, tuple(variables), frames
        self.split, self.mask, self.conditions = split, mask, conditions
        given = variables if isinstance(variables, Mapping) else {}
        self.transforms = {name: variable_settings(name, options or {}) for name, options in given.items()}
        self.autoencoder, self.loading = autoencoder, LoadingSettings.of_this_machine()
        self.gate = {"explained": explained}

    def prepare(self, cache: Path, progress: Progress) -> Corpus:
        source = open_source(
            self.data, variables=self.variables, mask=self.mask.variable, forcing=self.conditions.forcing
        )
        streamed = False
        try:
            states = open_states(
                source, self.mask, self.conditions.forcing, self.loading, cache=cache, progress=progress
            )
            streamed = isinstance(states.values, StreamedStates)
            return ClimateCorpus(
                source,
                states,
                frames=self.frames,
                split=self.split,
                transforms=self.transforms,
                conditions=self.conditions,
                autoencoder=self.autoencoder,
                progress=progress,
            )
        finally:
            if not streamed:  # else training goes on reading
                source.close()

    def codec(self, state: Mapping[str, Any]) -> Codec:
        return ClimateCodec(state)

    def evaluate(self, samples: Any, codec: Codec, reference: Path | None, progress: Progress) -> Evaluation:
        from sciLDM.domains.climate.evaluation import evaluate_samples

        assert isinstance(codec, ClimateCodec)
        if reference is None:
            raise DataError("evaluation needs the test period: evaluate a run folder made by `scildm fit`")
        return evaluate_samples(samples, codec, reference, progress)

    def report_sections(self, material: Material) -> Sequence[Section]:
        """Maps, spectra and studies for the report."""
        from sciLDM.domains.climate.report import report_sections

        return report_sections(material)

    def examine_loading(self, wanted: float | None) -> tuple[Mapping[str, Any], Sequence[Finding]]:
        """For `scildm doctor`: how fast the data are read, and whether their chunks are in the way."""
        from sciLDM.domains.climate.loading import examine

        source = open_source(self.data, variables=self.variables)
        try:
            return examine(source, self.loading, wanted)
        finally:
            source.close()

    needs_reference: ClassVar[bool] = True
    """For `scildm evaluate`: scores compare with the test period, which a shipped model does not bring."""
    forecast_formats: ClassVar[tuple[str, ...]] = (".nc", ".zarr")

    def forecast_file(
        self,
        model: Any,
        source: Path,
        output: Path,
        *,
        leads: int,
        members: int,
        seed: int,
        steps: int | None,
        guidance: float | None,
        cond: Mapping[str, Any],
        batch_size: int,
        progress: Callable[[int, int], None],
    ) -> Path:
        """For `scildm forecast`: continue the last states of a file."""
        from sciLDM.domains.climate.forecast import ForecastSettings, forecast
        from sciLDM.domains.climate.write import write_forecast

        settings = ForecastSettings(
            sampler_steps=steps, batch_size=batch_size, guidance=guidance, cond=dict(cond)
        )
        with open_dataset(source) as initial:
            if output.suffix != ".zarr":
                made = forecast(model, initial, steps=leads, members=members, seed=seed, settings=settings)
                return write_dataset(made, output)
            return write_forecast(
                model,
                initial,
                output,
                steps=leads,
                members=members,
                seed=seed,
                settings=settings,
                members_at_once=batch_size,
                progress=progress,
            )

    def read_samples(self, path: Path) -> xr.Dataset:
        """Samples written earlier."""
        return read_dataset(path)

    def write_samples(self, samples: xr.Dataset, path: Path) -> Path:
        """Write samples as NetCDF or zarr, by the ending."""
        return write_dataset(samples, path)
