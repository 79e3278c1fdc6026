"""A prepared climate data set: split by time, normalised by what the training period says, in memory or streamed."""

import fnmatch
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

import numpy as np
import torch

from sciLDM.autoencoders.grid import GridFields, GridSettings
from sciLDM.domain import Corpus, Progress
from sciLDM.domains.climate.blocks import BlockReader, StreamedStates
from sciLDM.domains.climate.calendar import Times, period
from sciLDM.domains.climate.codec import ClimateCodec, plain_settings
from sciLDM.domains.climate.outputs import provenance, write_dataset
from sciLDM.domains.climate.packing import pack
from sciLDM.domains.climate.read import Source
from sciLDM.domains.climate.requests import Conditions
from sciLDM.domains.climate.settings import ConditionSettings, SplitSettings
from sciLDM.domains.climate.states import States
from sciLDM.domains.climate.statistics import Fitted, TrainingData, fit_normaliser, resolve_harmonics
from sciLDM.domains.climate.template import Template
from sciLDM.domains.climate.transforms import Normaliser, VariableSettings
from sciLDM.errors import ConfigError, DataError

__all__ = ["ClimateCorpus", "split_states"]

_YEAR = 365.2425 * 86400
_REFERENCE_BYTES = 2**28


@final
class ClimateCorpus(Corpus):
    """States of all runs and their trajectories.

    Args:
        source: What was opened; stays in use where states were left in their files.
        states: All states.
        frames: States of a trajectory.
        split: Periods.
        transforms: Settings per variable; the defaults for those not named.
        conditions: What samples can be asked for.
        autoencoder: Its settings, kept in the state.
        progress: Told how far the work has come.

    Raises:
        DataError: Nothing usable; the message says what is wrong with which variable or time.
        ConfigError: Settings that these data cannot meet.
    """

    def __init__(
        self,
        source: Source,
        states: States,
        *,
        frames: int,
        split: SplitSettings,
        transforms: Mapping[str, VariableSettings],
        conditions: ConditionSettings,
        autoencoder: GridSettings,
        progress: Progress,
    ) -> None:
        if conditions.context and frames == 1:
            raise ConfigError("conditions.context needs trajectories: set `frames` to 2 or more")
        self._states, self._frames, self._conditions = states, frames, conditions
        periods = split_states(states, split)
        starts = _trajectories(states, frames)
        self._starts = {name: starts[_inside(starts, frames, rows)] for name, rows in periods.items()}
        self.sizes = {name: len(rows) for name, rows in self._starts.items()}
        _refuse_empty(states.times, periods, self.sizes, frames)
        train = np.flatnonzero(periods["train"])
        digest = _digest(states)
        normaliser, known = _fitted(source, states, train, transforms, progress)
        exists = known & states.exists
        gaps = _normalise(states, normaliser, exists)
        template = _template(source, states, transforms)
        self._labels = {**({"year": states.times.years} if conditions.year else {}), **states.forcing}
        chosen = [frames, {name: rows.tolist() for name, rows in self._starts.items()}, normaliser.to_dict()]
        self.fingerprint = hashlib.sha256(digest + json.dumps(chosen).encode()).hexdigest()
        self.notes = (*states.notes, *_notes(states, template))
        self.state = {
            "frames": frames,
            "template": template.to_dict(),
            "normaliser": normaliser.to_dict(),
            "exists": pack(exists),
            "gaps": gaps,
            "context": conditions.context,
            "conditions": self._drawn(),
            "autoencoder": plain_settings(autoencoder),
            "source": {
                "name": source.name,
                "fingerprint": self.fingerprint,
                "runs": list(states.runs),
                "periods": {name: _span(states.times, rows) for name, rows in periods.items()},
                "variables": {name: asdict(value) for name, value in transforms.items()},
                "harmonics": (normaliser.terms - 1) // 2,
            },
        }
        self._codec = ClimateCodec(self.state)
        self._readers: dict[str, BlockReader] = {}
        if isinstance(states.values, StreamedStates):
            self._readers = {split: self._reader(split, states.values, exists) for split in self._starts}

    def _drawn(self) -> dict[str, Any]:
        """State of the conditions, with the dates that samples may have."""
        states, conditions, begin = self._states, self._conditions, self._starts["train"]
        return Conditions.build(
            starts=states.times.take(begin),
            step=states.step,
            season=_resolved_season(states, conditions),
            scenarios=list(conditions.scenario),
            scenario=_scenarios(states, conditions)[begin],
            scalars={name: values[begin] for name, values in self._labels.items()},
            dropout=conditions.dropout,
        )

    def fields(self, split: str, indices: np.ndarray) -> GridFields:
        complete = not self.state["gaps"]
        if self._readers:
            x = torch.from_numpy(self._readers[split](indices))
            return self._codec.fields(x[:, 0] if self._frames == 1 else x.transpose(1, 2), complete=complete)
        start = self._starts[split][indices]
        if self._frames == 1:
            return self._codec.fields(torch.from_numpy(self._states.values[start]), complete=complete)
        rows = start[:, None] + np.arange(self._frames)
        values = torch.from_numpy(self._states.values[rows]).transpose(1, 2)
        return self._codec.fields(values, complete=complete)

    def epoch(self, split: str, rng: np.random.Generator) -> np.ndarray:
        """A random order of a split's samples: any in memory, within a window of blocks where they are streamed."""
        return self._readers[split].epoch(rng) if self._readers else rng.permutation(self.sizes[split])

    def _reader(self, split: str, states: StreamedStates, exists: np.ndarray) -> BlockReader:
        normaliser, phase = self._codec.normaliser, self._states.times.phase
        absent = None if exists.all() else ~exists

        def prepare(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
            normaliser.normalise_(torch.from_numpy(values), torch.from_numpy(phase[rows]).float())
            if absent is not None:
                values[:, absent] = np.nan
            return values

        # Training has most of the memory; held-out samples are read in order.
        budget = states.budget if split == "train" else states.budget // 8
        return BlockReader(states, self._starts[split], self._frames, prepare, budget=budget)

    def labels(self, split: str) -> Mapping[str, np.ndarray]:
        start = self._starts[split]
        asked, found = self._codec.asked, {}
        if asked.season:
            found["season"] = asked.season_labels(self._states.times.take(start))
        if asked.scenarios:
            found["scenario"] = _scenarios(self._states, self._conditions)[start]
        for name in asked.scalars:
            found[name] = self._labels[name][start].astype(np.float32)
        return found

    def times(self, split: str) -> Times:
        """Dates of a split's trajectories, `[trajectory, state]`."""
        rows = self._starts[split][:, None] + np.arange(self._frames)
        return Times(self._states.times.seconds[rows], self._states.times.calendar, self._states.times.dtype)

    def write_reference(self, folder: Path) -> None:
        """Test and training periods in the user's layout (thinned where they are large), one file a run and period."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {
            "period": self.state["source"]["periods"],
            "runs": self._write_period(folder, "test"),
            "train": self._write_period(folder, "train"),
            "notes": list(self.notes),
        }
        (folder / "reference.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    def _write_period(self, folder: Path, split: str) -> list[dict[str, Any]]:
        """The latest part of a test run where it is large; of a training run, states spread over all of it."""
        rows = np.unique(self._starts[split][:, None] + np.arange(self._frames))
        per_state = 4 * int(np.prod(self._states.values.shape[1:]))
        most = max(_REFERENCE_BYTES // max(per_state, 1), self._frames)
        codec, template = self._codec, self._codec.template
        time = (template.axes.time or "time",)
        written: list[dict[str, Any]] = []
        for run in np.unique(self._states.run[rows]):
            chosen = rows[self._states.run[rows] == run]
            chosen = chosen[-most:] if split == "test" else chosen[:: -(-len(chosen) // most)]
            dataset = template.with_times(
                template.dataset(self._units(chosen), time), self._states.times.take(chosen), time
            )
            name = f"{split}-{len(written)}.nc"
            dataset = provenance(dataset, f"{split} period", codec.provenance)
            write_dataset(dataset.drop_encoding(), folder / name)
            written.append({"file": name, "run": self._states.runs[int(run)], "states": len(chosen)})
        return written

    def _units(self, rows: np.ndarray) -> np.ndarray:
        """States in their units, `[state, channel, H, W]`, NaN where missing."""
        stored = self._states.values
        if isinstance(stored, StreamedStates):
            return np.where(self._codec.exists.numpy(), stored.read(rows), np.float32(np.nan))
        x = torch.from_numpy(stored[rows])
        phase = torch.from_numpy(self._states.times.phase[rows]).float()[:, None]
        return self._codec.normaliser.to_units(x, phase).numpy()


def split_states(states: States, split: SplitSettings) -> dict[str, np.ndarray]:
    """Which states belong to which period; none to two.

    Raises:
        ConfigError: Periods that overlap.
    """
    times, seconds = states.times, states.times.seconds
    held = np.isin(
        states.run,
        [k for k, r in enumerate(states.runs) if any(fnmatch.fnmatch(r, p) for p in split.test_runs)],
    )
    if split.test_runs and not held.any():
        raise ConfigError(
            f"split.test_runs {list(split.test_runs)} match none of the runs {', '.join(states.runs)}"
        )
    if held.all():
        raise ConfigError("split.test_runs leave no run to train on")
    own = seconds[~held]
    start, end = float(own.min()), float(own.max())
    if split.test is not None:
        test = period(times, split.test, "test")
    elif split.test_runs:
        test = np.zeros(len(seconds), dtype=bool)
    else:
        length = (end - start) / 5 if split.test_years is None else split.test_years * _YEAR
        test = seconds > end - length
    before = seconds[test].min() if test.any() else np.inf
    if split.validation is not None:
        validation = period(times, split.validation, "validation")
    else:
        left = own[own < before] if (own < before).any() else own
        validation = (seconds >= left.max() - 0.1 * (left.max() - start)) & (seconds < before) & ~test
    if split.train is not None:
        train = period(times, split.train, "train")
        validation = validation if split.validation is not None else validation & ~train
    else:
        later = seconds[validation].min() if validation.any() else before
        train = seconds < min(before, later)
    found = {"train": train & ~held, "validation": validation & ~held, "test": (test & ~held) | held}
    for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")):
        if (found[a] & found[b]).any():
            raise ConfigError(f"split: {a} and {b} overlap; no state may be in both")
    return found


def _trajectories(states: States, frames: int) -> np.ndarray:
    starts = states.starts(frames)
    if len(starts) == 0:
        raise DataError(
            f"irregular time: nowhere are there {frames} consecutive states of {states.step}; set frames: 1, or give "
            "data with regular steps"
        )
    return starts


def _inside(starts: np.ndarray, frames: int, rows: np.ndarray) -> np.ndarray:
    """Whether all states of a trajectory belong to a period."""
    return np.all(rows[starts[:, None] + np.arange(frames)], axis=1)


def _refuse_empty(
    times: Times, periods: Mapping[str, np.ndarray], sizes: Mapping[str, int], frames: int
) -> None:
    for name, size in sizes.items():
        if size == 0:
            what = f"trajectory of {frames} consecutive states" if frames > 1 else "state"
            raise DataError(f"split.{name}: no {what} in {_span(times, periods[name])}; choose other periods")


def _fitted(
    source: Source,
    states: States,
    train: np.ndarray,
    transforms: Mapping[str, VariableSettings],
    progress: Progress,
) -> Fitted:
    """Links, climatology and spread, from the training period alone."""
    known = states.times.take(train)
    years = float(np.ptp(known.seconds)) / _YEAR
    harmonics = resolve_harmonics(None, known.months, years, states.step.seconds)
    options = [
        (c.variable, transforms.get(c.variable, VariableSettings()), dict(source.first[c.variable].attrs))
        for c in states.channels
    ]
    return fit_normaliser(
        TrainingData(states.values, states.times.phase, train),
        options,
        harmonics,
        states.grid.area,
        lambda d, n: progress("statistics of the training period", d, n),
    )


def _normalise(states: States, normaliser: Normaliser, exists: np.ndarray) -> bool:
    """Replace states in memory by normalised ones; whether values are missing where cells exist."""
    if isinstance(states.values, StreamedStates):
        return bool((states.values.counts[exists] < len(states.times)).any())
    gaps, absent = False, None if exists.all() else ~exists
    for i in range(0, len(states.values), 256):
        part = slice(i, i + 256)
        phase = torch.from_numpy(states.times.phase[part]).float()[:, None]
        x = _normalised(normaliser, states.values[part], phase, absent)
        states.values[part] = x
        gaps = gaps or bool(np.isnan(x[:, exists]).any())
    return gaps


def _normalised(
    normaliser: Normaliser, values: np.ndarray, phase: torch.Tensor, absent: np.ndarray | None
) -> np.ndarray:
    x = normaliser.from_units(torch.from_numpy(values), phase).numpy()
    if absent is not None:
        x[:, absent] = np.nan
    return x


def _digest(states: States) -> bytes:
    if isinstance(states.values, StreamedStates):
        return states.values.digest
    digest = hashlib.sha256(states.times.seconds.tobytes() + states.run.tobytes())
    for i in range(0, len(states.values), 256):
        digest.update(np.ascontiguousarray(states.values[i : i + 256]).tobytes())
    return digest.digest()


def _template(source: Source, states: States, transforms: Mapping[str, VariableSettings]) -> Template:
    template = Template.of(source.first, source.variables, source.axes, states.grid)
    for variable in template.variables:
        told = transforms.get(variable.name, VariableSettings()).units
        if told is not None:
            variable.attrs["units"] = told  # type: ignore[index]
    return template


def _resolved_season(states: States, conditions: ConditionSettings) -> bool:
    if conditions.season is not None:
        return conditions.season
    if states.step.months and states.step.months % 12 == 0:
        return False
    phase = np.exp(2j * np.pi * states.times.phase)
    return bool(np.abs(phase - phase.mean()).max() > 0.2)


def _scenarios(states: States, conditions: ConditionSettings) -> np.ndarray:
    """Number of the scenario of each state, -1 for none."""
    number = np.full(len(states.runs), -1)
    for k, (name, pattern) in enumerate(conditions.scenario.items()):
        matched = [i for i, run in enumerate(states.runs) if fnmatch.fnmatch(run, pattern)]
        if not matched:
            raise ConfigError(
                f"conditions.scenario.{name}: {pattern!r} matches none of the runs {', '.join(map(repr, states.runs))}"
            )
        number[matched] = k
    return number[states.run]


def _span(times: Times, rows: np.ndarray) -> str:
    if not rows.any():
        return "an empty period"
    inside = np.flatnonzero(rows)
    ends = inside[[times.seconds[inside].argmin(), times.seconds[inside].argmax()]]
    return " to ".join(times.take(ends).text())


def _notes(states: States, template: Template) -> list[str]:
    grid = states.grid
    kind = (
        "global, periodic in longitude"
        if grid.periodic
        else "regional"
        if grid.kind != "plain"
        else "without coordinates"
    )
    notes = [
        f"grid: {grid.kind}, {kind}, {grid.shape[0]} x {grid.shape[1]} ({grid}); calendar {states.times.calendar}, "
        f"steps of {states.step}, {len(states.runs)} run{'s' if len(states.runs) > 1 else ''}"
    ]
    unknown = [v.name for v in template.variables if v.units is None]
    if unknown:
        notes.append(f"no units in the file for {', '.join(unknown)}; say them in `variables.<name>.units`")
    return notes
