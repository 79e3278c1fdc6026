r"""Time in any CF calendar: dates as seconds, the phase of the year, steps, and text that names a date.

Season is the *phase* `(day of year - 1 + hour / 24) / (length of that year in that calendar)`, in [0, 1), so that
1 July means the same in a 360-day calendar and in the Gregorian one, leap year or not.
"""

import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, final

import cftime
import numpy as np
import xarray as xr

from sciLDM.errors import ConfigError, DataError

__all__ = ["CALENDARS", "Step", "Times", "parse_date", "period"]

CALENDARS = ("standard", "gregorian", "proleptic_gregorian", "noleap", "365_day", "all_leap", "366_day", "360_day",
             "julian")  # fmt: skip
"""The calendars of the CF conventions."""

_EPOCH = "seconds since 1970-01-01"
_DATE = re.compile(r"(-?\d{1,6})(?:-(\d{1,2})(?:-(\d{1,2})(?:[T ](\d{1,2})(?::(\d{2})(?::(\d{2}))?)?)?)?)?")
_MONTH = 31 * 86400.0


@final
@dataclass(frozen=True, eq=False)
class Times:
    """Dates of one calendar.

    Attributes:
        seconds: Seconds since 1970-01-01 in that calendar, one per date.
        calendar: CF name of the calendar.
        dtype: `cftime` when the dates were cftime objects, else numpy's (`datetime64[ns]`), so that they can be given
            back as they came.
    """

    seconds: np.ndarray
    calendar: str = "proleptic_gregorian"
    dtype: str = "datetime64[ns]"

    @staticmethod
    def of(values: Any, *, calendar: str | None = None) -> "Times":
        """From numpy dates or cftime objects.

        Args:
            values: Any array of them.
            calendar: What cftime objects are expected to have; taken from the first one when None.

        Raises:
            DataError: No dates, dates that are missing, or several calendars.
        """
        array = np.atleast_1d(np.asarray(values))
        if array.dtype.kind == "M":
            if np.isnat(array).any():
                raise DataError(
                    f"time: {int(np.isnat(array).sum())} dates are missing (NaT); drop those times"
                )
            whole = array.astype("datetime64[s]").astype(np.int64)
            rest = (array - array.astype("datetime64[s]")) / np.timedelta64(1, "s")
            return Times(whole + rest, "proleptic_gregorian", str(array.dtype))
        if array.dtype.kind == "O" and all(isinstance(v, cftime.datetime) for v in array.ravel()):
            found = {v.calendar for v in array.ravel()} or {calendar or "standard"}
            if len(found) > 1 or (calendar is not None and found != {calendar}):
                raise DataError(
                    f"time: expected dates of one calendar ({calendar or 'any'}), got {sorted(found)}; convert them "
                    "with `Dataset.convert_calendar`"
                )
            name = found.pop()
            seconds = np.array(
                [cftime.date2num(v, _EPOCH, calendar=name) for v in array.ravel()], dtype=float
            )
            return Times(seconds.reshape(array.shape), name, "cftime")
        raise DataError(
            f"time: expected dates (numpy datetime64 or cftime), got {array.dtype}; open the file with decoded times, "
            "or give the variable CF units such as 'days since 2000-01-01'"
        )

    def __len__(self) -> int:
        return len(self.seconds)

    def take(self, index: Any) -> "Times":
        """Some of them."""
        return Times(np.atleast_1d(self.seconds[index]), self.calendar, self.dtype)

    @cached_property
    def dates(self) -> np.ndarray:
        """As cftime objects."""
        flat = [cftime.num2date(float(s), _EPOCH, calendar=self.calendar) for s in self.seconds.ravel()]
        out = np.empty(len(flat), dtype=object)
        out[:] = flat
        return out.reshape(self.seconds.shape)

    @property
    def native(self) -> np.ndarray:
        """As they came: numpy dates or cftime objects."""
        if self.dtype == "cftime":
            return self.dates
        nanoseconds = np.round(self.seconds * 1e9) if "[ns]" in self.dtype else None
        if nanoseconds is not None and np.abs(nanoseconds).max(initial=0) < 9.2e18:
            whole = np.floor(self.seconds).astype(np.int64)
            rest = np.round((self.seconds - whole) * 1e9).astype(np.int64)
            return (whole * 1_000_000_000 + rest).astype("datetime64[ns]").astype(self.dtype)
        micro = np.round((self.seconds - np.floor(self.seconds)) * 1e6).astype(np.int64)
        wide = (np.floor(self.seconds).astype(np.int64) * 1_000_000 + micro).astype("datetime64[us]")
        return wide if "[ns]" in self.dtype else wide.astype(self.dtype)

    @cached_property
    def phase(self) -> np.ndarray:
        """Phase of the year, in [0, 1)."""
        flat = self.dates.ravel()
        first = [(_year_start(d.year, self.calendar), _year_start(d.year + 1, self.calendar)) for d in flat]
        seconds = self.seconds.ravel()
        phase = [(s - a) / (b - a) for s, (a, b) in zip(seconds, first, strict=True)]
        return np.array(phase, dtype=float).reshape(self.seconds.shape)

    @cached_property
    def years(self) -> np.ndarray:
        """Decimal years."""
        return np.array([d.year for d in self.dates.ravel()]).reshape(self.seconds.shape) + self.phase

    @property
    def months(self) -> np.ndarray:
        """Months, 1 to 12."""
        return np.array([d.month for d in self.dates.ravel()], dtype=int).reshape(self.seconds.shape)

    def text(self) -> list[str]:
        """ISO dates, without a time of day where all are midnight."""
        midnight = bool((self.seconds % 86400 == 0).all())
        return [d.strftime("%Y-%m-%d" if midnight else "%Y-%m-%dT%H:%M") for d in self.dates.ravel()]

    def to_variable(self, dims: tuple[str, ...]) -> xr.Variable:
        """As a coordinate variable."""
        return xr.Variable(dims, self.native)


@lru_cache(maxsize=4096)
def _year_start(year: int, calendar: str) -> float:
    if year == 0 and calendar in ("standard", "gregorian", "julian"):
        year = 1  # these have no year 0, and cftime refuses to make one
    return float(cftime.date2num(cftime.datetime(year, 1, 1, calendar=calendar), _EPOCH, calendar=calendar))


@final
@dataclass(frozen=True)
class Step:
    """The distance of consecutive states: seconds, or calendar months.

    Attributes:
        seconds: Length of a step; its mean when `months` is not 0.
        months: Months per step (12 for years), 0 for a fixed number of seconds.
    """

    seconds: float
    months: int = 0

    @staticmethod
    def infer(times: Times) -> "Step":
        """The most frequent distance. One date gives a step of a day."""
        if len(times) < 2:
            return Step(86400.0)
        gaps = np.diff(times.seconds)
        if np.median(gaps) < 27.5 * 86400:
            values, counts = np.unique(np.round(gaps, 3), return_counts=True)
            return Step(float(values[counts.argmax()]))
        jumps = np.diff(_month_number(times))
        values, counts = np.unique(jumps, return_counts=True)
        months = int(values[counts.argmax()])
        return Step(float(gaps[jumps == months].mean()), months)

    def follows(self, times: Times) -> np.ndarray:
        """Whether each date but the first lies one step after the one before."""
        if self.months:
            # Years of 365 days written in a calendar with leap years drift across the ends of months.
            regular = np.abs(np.diff(times.seconds) - self.seconds) < 0.05 * self.seconds
            return (np.diff(_month_number(times)) == self.months) | regular
        return np.abs(np.diff(times.seconds) - self.seconds) < 1e-3 * self.seconds + 1e-3

    def after(self, start: Times, count: int) -> Times:
        """`count` dates from each start on, `[start, count]`."""
        if not self.months:
            seconds = start.seconds[:, None] + self.seconds * np.arange(count)
        else:
            rows = [
                [_add_months(d, self.months * k, start.calendar) for k in range(count)] for d in start.dates
            ]
            seconds = np.array(rows, dtype=float).reshape(len(start), count)
        return Times(seconds, start.calendar, start.dtype)

    def __str__(self) -> str:
        if self.months:
            months = "1 month" if self.months == 1 else f"{self.months} months"
            return f"{self.months // 12} a" if self.months % 12 == 0 else months
        hours = self.seconds / 3600
        return (
            f"{hours / 24:g} d"
            if hours >= 24
            else f"{hours:g} h"
            if hours >= 1
            else f"{self.seconds / 60:g} min"
        )


def _month_number(times: Times) -> np.ndarray:
    return np.array([12 * d.year + d.month for d in times.dates])


def _add_months(date: Any, months: int, calendar: str) -> float:
    """Seconds of the same day and hour some months later; the last of a month stays within it."""
    total = 12 * date.year + date.month - 1 + months
    year, month = divmod(total, 12)
    for day in range(date.day, 0, -1):
        try:
            moved = date.replace(year=year, month=month + 1, day=day)
        except ValueError:
            continue
        return float(cftime.date2num(moved, _EPOCH, calendar=calendar))
    raise AssertionError("every month has a first day")


def parse_date(value: Any, calendar: str, *, end: bool = False) -> float:
    """Seconds of a date given as text (`2001`, `2001-03`, `2001-03-15T12:00`), numpy date or cftime object.

    Args:
        value: The date.
        calendar: The calendar it is read in.
        end: Read `2001` as its last moment instead of its first.

    Raises:
        ConfigError: It is no date of that calendar.
    """
    if isinstance(value, cftime.datetime):
        value = value.strftime("%Y-%m-%dT%H:%M:%S")
    elif isinstance(value, np.datetime64):
        value = str(value.astype("datetime64[s]"))
    found = _DATE.fullmatch(str(value).strip())
    if found is None:
        raise ConfigError(f"expected a date such as 2001, 2001-03 or 2001-03-15T12:00, got {value!r}")
    parts = [None if p is None else int(p) for p in found.groups()]
    given = sum(p is not None for p in parts)
    year, month, day, hour, minute, second = (
        p if p is not None else d for p, d in zip(parts, (0, 1, 1, 0, 0, 0), strict=True)
    )
    try:
        date = cftime.datetime(year, month, day, hour, minute, second, calendar=calendar)
        start = float(cftime.date2num(date, _EPOCH, calendar=calendar))
        if not end:
            return start
        if given <= 2:
            return _add_months(date, 12 if given == 1 else 1, calendar) - 1e-3
    except ValueError as error:
        raise ConfigError(f"{value!r} is no date of the calendar {calendar!r} ({error})") from error
    return start + {3: 86400, 4: 3600, 5: 60, 6: 1}[given] - 1e-3


def period(times: Times, bounds: tuple[Any, Any], name: str) -> np.ndarray:
    """Which dates lie in a period, both ends included (`("2001", "2003")` is three years).

    Raises:
        ConfigError: The end lies before the start.
    """
    start, end = parse_date(bounds[0], times.calendar), parse_date(bounds[1], times.calendar, end=True)
    if end < start:
        raise ConfigError(f"split.{name}: expected a start before the end, got {bounds[0]} to {bounds[1]}")
    return (times.seconds >= start) & (times.seconds <= end)
