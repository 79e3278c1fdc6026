"""Climate fields: a NetCDF file, zarr store or xarray object in, CF-correct ensembles out."""

from sciLDM.domains.climate.accessor import LatentDiffusionAccessor
from sciLDM.domains.climate.codec import ClimateCodec
from sciLDM.domains.climate.domain import Climate
from sciLDM.domains.climate.read import stage
from sciLDM.domains.climate.settings import ConditionSettings, MaskSettings, SplitSettings
from sciLDM.domains.climate.transforms import VariableSettings

__all__ = [
    "Climate",
    "ClimateCodec",
    "ConditionSettings",
    "LatentDiffusionAccessor",
    "MaskSettings",
    "SplitSettings",
    "VariableSettings",
    "stage",
]
