"""Climate fields: a NetCDF file, zarr store or xarray object in, CF-correct ensembles out."""

from sciLDM.domains.climate.accessor import LatentDiffusionAccessor
from sciLDM.domains.climate.codec import ClimateCodec
from sciLDM.domains.climate.domain import Climate
from sciLDM.domains.climate.forecast import ForecastSettings, forecast, forecast_blocks
from sciLDM.domains.climate.read import stage
from sciLDM.domains.climate.settings import (
    ConditionSettings,
    LoadingSettings,
    MaskSettings,
    SplitSettings,
)
from sciLDM.domains.climate.transforms import VariableSettings
from sciLDM.domains.climate.write import write_filled, write_forecast

__all__ = [
    "Climate",
    "ClimateCodec",
    "ConditionSettings",
    "ForecastSettings",
    "LatentDiffusionAccessor",
    "LoadingSettings",
    "MaskSettings",
    "SplitSettings",
    "VariableSettings",
    "forecast",
    "forecast_blocks",
    "stage",
    "write_filled",
    "write_forecast",
]
