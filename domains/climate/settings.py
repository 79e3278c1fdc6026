"""What a user sets about climate data. Plain frozen dataclasses: their attribute docstrings become `--help`."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from sciLDM.errors import ConfigError

__all__ = ["ConditionSettings", "LoadingSettings", "MaskSettings", "SplitSettings"]

Period = tuple[str, str]


@dataclass(frozen=True)
class SplitSettings:
    """Periods for training, validation and test: trajectories never cross their borders.

    Dates as text in the data's calendar, both ends included: `[2001, 2005-06]` ends with June 2005.
    """

    train: Period | None = None
    """Training period; everything before validation and test when null."""
    validation: Period | None = None
    """Validation period; the last tenth of what is not test when null."""
    test: Period | None = None
    """Test period; the last `test_years` when null."""
    test_years: float | None = None
    """Length of the test period where it is not given; a fifth of the data when null."""
    test_runs: tuple[str, ...] = ()
    """Runs (ensemble members, files) that are test data as a whole; shell patterns."""

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            value = getattr(self, name)
            if value is not None and len(value) != 2:
                raise ConfigError(f"split.{name}: expected [start, end], got {list(value)}")
        if self.test_years is not None and not self.test_years > 0:
            raise ConfigError(f"split.test_years must be positive, got {self.test_years}")


@dataclass(frozen=True)
class MaskSettings:
    """Which cells exist. Missing values (NaN) are always found; this is for cells whose values do not count."""

    variable: str | None = None
    """A variable of the data (say, the land fraction) that decides; only its first time is used."""
    above: float = 0.5
    """Cells where that variable is above this exist."""
    invert: bool = False
    """Cells where it is not above exist."""


@dataclass(frozen=True)
class LoadingSettings:
    """How training reads the data: a property of the machine, not of the experiment, so it is no option of a
    configuration. `SCILDM_MEMORY_GIB` and `SCILDM_READERS` in the environment set it."""

    memory_gib: float = 2.0
    """Data of up to this size (as float32) are read once and kept. Of larger ones whole chunks along time are read,
    shuffled in a window, and this much of them is kept."""
    threads: int = 2
    """Threads that read and decode larger data ahead of the training; they change no number."""

    def __post_init__(self) -> None:
        if not self.memory_gib >= 0:
            raise ConfigError(f"SCILDM_MEMORY_GIB must be 0 or more, got {self.memory_gib}")
        if self.threads < 1:
            raise ConfigError(f"SCILDM_READERS must be at least 1, got {self.threads}")

    @staticmethod
    def of_this_machine() -> "LoadingSettings":
        """From the environment.

        Raises:
            ConfigError: Something that is no number, or out of range.
        """
        found = {}
        for name, kind, field_name in (
            ("SCILDM_MEMORY_GIB", float, "memory_gib"),
            ("SCILDM_READERS", int, "threads"),
        ):
            if text := os.environ.get(name):
                try:
                    found[field_name] = kind(text)
                except ValueError as error:
                    raise ConfigError(f"{name}: expected a number, got {text!r}") from error
        return LoadingSettings(**found)

    @property
    def budget(self) -> int:
        """In bytes."""
        return int(self.memory_gib * 2**30)


@dataclass(frozen=True)
class ConditionSettings:
    """What samples can be asked for."""

    season: bool | None = None
    """Phase of the year (sine and cosine); when null, wherever the data resolve it."""
    year: bool = False
    """The year, for data with a trend."""
    scenario: Mapping[str, str] = field(default_factory=dict)
    """Scenario names and shell patterns of the runs that belong to them: `{ssp126: "*ssp126*"}`."""
    forcing: tuple[str, ...] = ()
    """Variables of the data that have time alone (CO2, an ENSO index)."""
    context: bool = False
    """Trajectories can be continued from known states: forecasts. Needs `frames` above 1, and an objective with
    `RandomContext`, which reveals states in training."""
    dropout: float = 0.1
    """Share of training samples whose label is hidden, per condition but the season."""

    def __post_init__(self) -> None:
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"conditions.dropout must be in [0, 1), got {self.dropout}")
        taken = {"season", "year", "scenario", "time", "day", "context"} & set(self.forcing)
        if taken:
            raise ConfigError(
                f"conditions.forcing: {sorted(taken)} are names of other conditions; rename the variable"
            )
