"""The errors users meet. Each is also a builtin, so that `except ValueError` keeps working."""

__all__ = [
    "ArtefactError",
    "ConfigError",
    "DataError",
    "GateError",
    "MissingExtra",
    "SciLDMError",
    "ShapeMismatch",
    "TrainingDiverged",
]


class SciLDMError(Exception):
    """Base class. A message says what was expected, what was got, and what to do about it."""


class ConfigError(SciLDMError, ValueError):
    """An option or a combination of options that cannot work."""


class DataError(SciLDMError, ValueError):
    """A user's file or table that cannot be read, or holds nothing usable."""


class ShapeMismatch(SciLDMError, ValueError):
    """Tensors whose shapes do not belong together."""


class MissingExtra(SciLDMError, ImportError):
    """An optional dependency is absent; the message names the `pip install` line."""


class ArtefactError(SciLDMError, OSError):
    """A saved model that is damaged, foreign, or newer than this version."""


class GateError(SciLDMError, RuntimeError):
    """Stage 2 refused: the autoencoder does not rebuild held-out data well enough."""


class TrainingDiverged(SciLDMError, RuntimeError):
    """Training stopped because a loss or gradient is no longer finite; the message names the cause."""
