"""What is asked for, and when: conditions of climate models and the dates that belong to them.

Samples nobody gave a date to are given one of the training period, drawn by the sample's own number; year, scenario and
forcings then are those of that date, so that what comes out is the training distribution, not a mixture of its margins.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sciLDM.conditions import Category, Condition, Scalar, Vector
from sciLDM.domain import Request, broadcast_labels
from sciLDM.domains.climate.calendar import Step, Times, parse_date
from sciLDM.domains.climate.packing import pack, unpack
from sciLDM.errors import ConfigError

__all__ = ["Conditions", "DatedRequest"]

_KEPT = 20_000


@dataclass(frozen=True)
class DatedRequest(Request):
    """A request that knows its dates.

    Attributes:
        times: Date of every state, `[sample, state]`.
        seed: Of the samples, for their history.
        ids: Numbers of the samples.
    """

    times: Times = field(default_factory=lambda: Times(np.zeros((0, 1))))
    seed: int | None = None
    ids: tuple[int, ...] = ()

    @property
    def phase(self) -> Tensor:
        """Phase of the year of every state."""
        return torch.from_numpy(self.times.phase).float()


@final
class Conditions:
    """The conditions of one model, their labels, and the dates of the training period.

    Args:
        state: As made by `build`.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.state = state
        self.season, self.dropout = bool(state["season"]), float(state["dropout"])
        self.scenarios = tuple(state["scenarios"])
        self.scalars = {name: tuple(v) for name, v in state["scalars"].items()}
        self.step = Step(state["step"]["seconds"], state["step"]["months"])
        self.drawn = Times(unpack(state["drawn"]["seconds"]), state["calendar"], state["dtype"])
        self._scenario = unpack(state["drawn"]["scenario"])
        self._values = {name: unpack(v) for name, v in state["drawn"]["scalars"].items()}

    @staticmethod
    def build(
        *,
        starts: Times,
        step: Step,
        season: bool,
        scenarios: Sequence[str],
        scenario: np.ndarray,
        scalars: Mapping[str, np.ndarray],
        dropout: float,
    ) -> dict[str, Any]:
        """The state, as plain JSON.

        Args:
            starts: First dates of the training trajectories.
            step: Distance of states.
            season: Whether the phase of the year is a condition.
            scenarios: Names of the scenarios.
            scenario: Which one each training trajectory belongs to, -1 for none.
            scalars: Year and forcings of each training trajectory.
            dropout: Share of hidden labels.
        """
        thin = slice(None, None, max(1, -(-len(starts) // _KEPT)))
        statistics = {}
        for name, values in scalars.items():
            known = values[np.isfinite(values)]
            spread = float(known.std()) if known.size else 0.0
            if spread < 1e-12 * max(1.0, float(np.abs(known).max(initial=0.0))):
                raise ConfigError(f"condition {name!r} is constant in the training period; leave it out")
            statistics[name] = [float(known.mean()), spread]
        return {
            "season": season,
            "dropout": dropout,
            "scenarios": list(scenarios),
            "scalars": statistics,
            "step": {"seconds": step.seconds, "months": step.months},
            "calendar": starts.calendar,
            "dtype": starts.dtype,
            "drawn": {
                "seconds": pack(starts.seconds[thin]),
                "scenario": pack(np.asarray(scenario, dtype=np.int64)[thin]),
                "scalars": {n: pack(np.asarray(v, dtype=np.float64)[thin]) for n, v in scalars.items()},
            },
        }

    @property
    def declared(self) -> tuple[Condition, ...]:
        """As the denoiser needs them."""
        found: list[Condition] = []
        if self.season:
            found.append(Vector("season", dropout=0.0, size=2, spreads=True))
        if self.scenarios:
            found.append(Category("scenario", dropout=self.dropout, classes=len(self.scenarios)))
        found += [Scalar(n, dropout=self.dropout, mean=m, std=s) for n, (m, s) in self.scalars.items()]
        return tuple(found)

    @property
    def always(self) -> frozenset[str]:
        """Conditions that guidance must not drop."""
        return frozenset({"season"}) if self.season else frozenset()

    def season_labels(self, start: Times) -> np.ndarray:
        """Sine and cosine of the year's phase, `[sample, 2]`, at the first state."""
        angle = 2 * np.pi * start.phase
        return np.stack([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)

    def draw(self, count: int, wanted: Mapping[str, Any], u: np.ndarray) -> tuple[Times, dict[str, Tensor]]:
        """First dates, and labels of all conditions.

        Args:
            count: Number of samples.
            wanted: `time` (a date, or one a sample), `day` (of the year), `scenario`, `year`, forcings.
            u: Uniform numbers in (0, 1), one a sample.

        Raises:
            ConfigError: An unknown condition or a value that it cannot have.
        """
        wanted = {k: v for k, v in wanted.items() if v is not None}
        if "season" in wanted:
            raise ConfigError(
                "season: give `time` (a date) or `day` (of the year) instead; the phase follows from it"
            )
        dates = self._dates(wanted.pop("time", None), count)
        scenario = self._scenarios(wanted.pop("scenario", None), count)
        labels = broadcast_labels(
            wanted, count, ["time", "day", *(["scenario"] if self.scenarios else []), *self.scalars]
        )
        day = labels.pop("day", None)
        rows = np.empty(count, dtype=np.int64)
        for i in range(count):
            pool = (
                np.arange(len(self.drawn))
                if scenario[i] < 0
                else np.flatnonzero(self._scenario == scenario[i])
            )
            if dates is not None:
                away = np.abs(self.drawn.seconds[pool] - dates.seconds[i])
                pool = pool[away == away.min()]
            elif "year" in labels and bool(torch.isfinite(labels["year"][i])):
                away = np.abs(np.floor(self._values["year"][pool]) - np.floor(float(labels["year"][i])))
                pool = pool[away == away.min()]
            rows[i] = pool[min(int(u[i] * len(pool)), len(pool) - 1)]
        start = self.drawn.take(rows) if dates is None else dates
        start = self._moved(
            start, labels.get("year") if dates is None else None, day if dates is None else None
        )
        return start, self._labels(start, rows, scenario, labels, given=dates is not None)

    def labels(self, start: Times, wanted: Mapping[str, Any]) -> dict[str, Tensor]:
        """Labels of cases whose dates are known (reconstruction)."""
        return self.draw(len(start), {**wanted, "time": start}, np.full(len(start), 0.5))[1]

    def _labels(
        self, start: Times, rows: np.ndarray, scenario: np.ndarray, labels: dict[str, Tensor], *, given: bool
    ) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        if self.season:
            found["season"] = torch.from_numpy(self.season_labels(start))
        if self.scenarios:
            # With a date of the user's and no scenario, none is claimed.
            drawn = np.where(scenario >= 0, scenario, -1 if given else self._scenario[rows])
            found["scenario"] = torch.from_numpy(drawn.astype(np.int64))
        near = np.abs(self.drawn.seconds[rows] - start.seconds) <= max(self.step.seconds, 86400.0)
        for name in self.scalars:
            drawn = start.years if name == "year" else np.where(near, self._values[name][rows], np.nan)
            own = torch.from_numpy(np.asarray(drawn)).float()
            asked = labels.get(name)
            found[name] = own if asked is None else torch.where(torch.isfinite(asked), asked, own)
        return found

    def _dates(self, time: Any, count: int) -> Times | None:
        if time is None:
            return None
        if isinstance(time, Times):
            return time
        several = not isinstance(time, str) and np.ndim(time) > 0
        values = list(np.asarray(time, dtype=object).ravel()) if several else [time] * count
        if len(values) != count:
            raise ConfigError(
                f"time: expected one date, or one for each of {count} samples, got {len(values)}"
            )
        seconds = [parse_date(_plain_date(v), self.drawn.calendar) for v in values]
        return Times(np.array(seconds, dtype=float), self.drawn.calendar, self.drawn.dtype)

    def _scenarios(self, value: Any, count: int) -> np.ndarray:
        if value is None:
            return np.full(count, -1)
        if not self.scenarios:
            raise ConfigError("scenario: this model was trained without scenarios (conditions.scenario)")
        several = not isinstance(value, str) and np.ndim(value) > 0
        values = list(np.asarray(value, dtype=object).ravel()) if several else [value] * count
        if len(values) != count:
            raise ConfigError(
                f"scenario: expected one name, or one for each of {count} samples, got {len(values)}"
            )
        found = []
        for entry in values:
            if isinstance(entry, str) and entry in self.scenarios:
                found.append(self.scenarios.index(entry))
            elif (
                not isinstance(entry, str)
                and float(entry) == int(entry)
                and -1 <= int(entry) < len(self.scenarios)
            ):
                found.append(int(entry))
            else:
                raise ConfigError(f"scenario {entry!r}: this model knows {', '.join(self.scenarios)}")
        return np.array(found, dtype=np.int64)

    def _moved(self, start: Times, year: Tensor | None, day: Tensor | None) -> Times:
        """Dates moved to a year or a day of the year that was asked for."""
        if year is None and day is None:
            return start
        seconds = start.seconds.copy()
        for i, date in enumerate(start.dates):
            if year is not None and bool(torch.isfinite(year[i])):
                number = int(np.floor(float(year[i])))
                month, last = date.month, date.day if not (date.month == 2 and date.day > 28) else 28
                seconds[i] = parse_date(
                    f"{number:04d}-{month:02d}-{last:02d}T{date.hour:02d}", start.calendar
                )
            if day is not None and bool(torch.isfinite(day[i])):
                wanted = float(day[i])
                if not 1 <= wanted < 367:
                    raise ConfigError(f"day: expected a day of the year, 1 to 366, got {wanted:g}")
                here = (
                    start.take(np.array([i])) if year is None else Times(seconds[i : i + 1], start.calendar)
                )
                first = parse_date(f"{here.dates[0].year:04d}", start.calendar)
                seconds[i] = first + 86400.0 * (wanted - 1)
        return Times(seconds, start.calendar, start.dtype)


def _plain_date(value: Any) -> Any:
    if hasattr(value, "to_datetime64"):
        return value.to_datetime64()
    if hasattr(value, "isoformat") and not hasattr(value, "calendar"):
        return value.isoformat()[:19]
    return value
