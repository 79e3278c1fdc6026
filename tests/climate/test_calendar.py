"""Dates of every CF calendar: phases against cftime's own day of year, steps, text."""

import cftime
import numpy as np
import pytest

from sciLDM.domains.climate.calendar import Step, Times, parse_date, period
from sciLDM.errors import ConfigError, DataError
from tests.climate.fields import dates

CALENDARS = ("standard", "proleptic_gregorian", "noleap", "all_leap", "360_day", "julian")
LENGTHS = {"noleap": (365, 365), "all_leap": (366, 366), "360_day": (360, 360)}


@pytest.mark.parametrize("calendar", CALENDARS)
@pytest.mark.parametrize("year", [2003, 2004])
def test_phase_is_day_over_length_of_that_year(calendar: str, year: int) -> None:
    times = Times.of(dates(300, calendar, start=year))
    length = LENGTHS.get(calendar, (365, 366))[year == 2004]
    expected = [(d.dayofyr - 1) / length for d in times.dates]
    np.testing.assert_allclose(times.phase, expected, atol=1e-12)
    assert times.calendar == calendar
    np.testing.assert_array_equal(times.native, dates(300, calendar, start=year))


def test_numpy_dates_come_back_exactly() -> None:
    for unit in ("ns", "us", "s"):
        values = (np.datetime64("1999-12-31T18:30:15") + np.arange(5) * np.timedelta64(6, "h")).astype(
            f"datetime64[{unit}]"
        )
        back = Times.of(values).native
        assert back.dtype == values.dtype
        np.testing.assert_array_equal(back, values)
    fine = np.array(["2001-02-03T04:05:06.123456789"], dtype="datetime64[ns]")
    assert abs((Times.of(fine).native - fine) / np.timedelta64(1, "ns")).max() < 1000


@pytest.mark.parametrize("calendar", CALENDARS)
def test_months_and_years_are_steps(calendar: str) -> None:
    months = [cftime.datetime(y, m, 15, calendar=calendar) for y in (2000, 2001) for m in range(1, 13)]
    times = Times.of(np.array(months))
    step = Step.infer(times)
    assert step.months == 1
    assert step.follows(times).all()
    again = step.after(times.take(np.array([0])), 24)
    np.testing.assert_array_equal(again.dates[0], months)
    years = Times.of(np.array([cftime.datetime(y, 7, 1, calendar=calendar) for y in range(1900, 1910)]))
    assert Step.infer(years).months == 12
    assert str(Step.infer(years)) == "1 a"


def test_the_last_day_of_a_month_stays_in_the_month() -> None:
    start = Times.of(np.array([cftime.datetime(2001, 1, 31, calendar="noleap")]))
    found = Step(31 * 86400.0, 1).after(start, 3).dates[0]
    assert [(d.month, d.day) for d in found] == [(1, 31), (2, 28), (3, 31)]


def test_gaps_break_the_sequence() -> None:
    days = np.concatenate([dates(10), dates(5, start=2002)])
    times = Times.of(days)
    step = Step.infer(times)
    assert (step.seconds, step.months) == (86400.0, 0)
    assert step.follows(times).tolist() == [True] * 9 + [False] + [True] * 4


def test_text_is_read_in_the_calendar() -> None:
    assert parse_date("2001-02-30", "360_day") - parse_date("2001-02-29", "360_day") == 86400
    with pytest.raises(ConfigError, match="no date of the calendar 'noleap'"):
        parse_date("2004-02-29", "noleap")
    with pytest.raises(ConfigError, match="expected a date such as"):
        parse_date("next week", "standard")
    assert parse_date("2001", "noleap", end=True) == pytest.approx(parse_date("2002", "noleap") - 1e-3)
    assert parse_date("2001-12", "360_day", end=True) == pytest.approx(parse_date("2002", "360_day") - 1e-3)


def test_a_period_has_both_ends() -> None:
    times = Times.of(dates(800))
    inside = period(times, ("2001-03", "2002"), "train")
    chosen = times.take(np.flatnonzero(inside)).text()
    assert (chosen[0], chosen[-1]) == ("2001-03-01", "2002-12-31")
    with pytest.raises(ConfigError, match="start before the end"):
        period(times, ("2002", "2001"), "train")


def test_what_is_no_date_is_refused() -> None:
    with pytest.raises(DataError, match="decoded times"):
        Times.of(np.arange(5))
    with pytest.raises(DataError, match="NaT"):
        Times.of(np.array(["2001-01-01", "NaT"], dtype="datetime64[ns]"))
    mixed = np.array([cftime.datetime(2001, 1, 1, calendar=c) for c in ("noleap", "360_day")])
    with pytest.raises(DataError, match="one calendar"):
        Times.of(mixed)
