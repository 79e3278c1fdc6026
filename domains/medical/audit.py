"""Whether all groups of patients are served alike: accuracy and coverage by group, the worst one, what chance does.

The unit is the volume: intervals come from a bootstrap over volumes, p-values from permuting group labels, corrected
for the number of tests (Holm 1979).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import pandas as pd

from sciLDM.domains.medical.bids import patient_of, write_json
from sciLDM.domains.medical.nifti import stem
from sciLDM.errors import ConfigError, DataError
from sciLDM.evaluate.calibration_statistics import bootstrap
from sciLDM.rng import NoiseSource

__all__ = ["METRICS", "Audit", "audit", "audit_files", "group_labels", "join_participants"]

METRICS: Mapping[str, bool] = {
    "psnr": True,
    "ssim": True,
    "coverage": True,
    "crps": False,
    "mae": False,
    "bias": False,
}
"""What is audited where a table has it, and whether more is better."""

_KEYS = ("participant_id", "patient", "subject", "volume", "name", "file", "path")
_BINS = 3
_FEWEST = 3


@final
@dataclass(frozen=True)
class Audit:
    """Scores by group.

    Attributes:
        rows: `attribute`, `group`, `metric`, `volumes`, `value`, `lower`, `upper` (95 % bootstrap), `overall`.
        tests: One for each attribute and metric: the `worst` group, its `gap` to the rest (positive: worse), `p` of the
            differences between groups by permutation, `p_holm`.
        notes: Lines that a strict reader must see.
    """

    rows: tuple[dict[str, Any], ...]
    tests: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]

    def unfair(self, level: float = 0.05) -> list[dict[str, Any]]:
        """Tests that chance does not explain."""
        return [t for t in self.tests if t["p_holm"] < level]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"rows": list(self.rows), "tests": list(self.tests), "notes": list(self.notes)}


def audit(
    cases: pd.DataFrame,
    by: Sequence[str],
    *,
    metrics: Sequence[str] | None = None,
    permutations: int = 2000,
    resamples: int = 1000,
    seed: int = 0,
) -> Audit:
    """Compare groups.

    Args:
        cases: One row a volume: scores, and what is known of the patient.
        by: Columns that make groups; numbers are cut into thirds.
        metrics: Columns with scores; those of `METRICS` that there are when None.
        permutations: Of group labels, for each test.
        resamples: Of volumes, for each interval.
        seed: Of both.

    Raises:
        ConfigError: A column that is not there, or no metric.
        DataError: No volume with a group.
    """
    wanted = [m for m in METRICS if m in cases.columns] if metrics is None else list(metrics)
    missing = [c for c in (*by, *wanted) if c not in cases.columns]
    if missing or not wanted or not by:
        raise ConfigError(
            f"audit: expected columns for groups and scores, missing {missing or 'any of ' + ', '.join(METRICS)}; "
            f"the table has {', '.join(map(str, cases.columns))}"
        )
    noise, rows, tests, notes = NoiseSource(seed), [], [], []
    for attribute in by:
        labels = group_labels(cases[attribute])
        absent = int(labels.isna().sum())
        if absent == len(cases):
            raise DataError(f"audit: no volume has a value of {attribute!r}")
        if absent:
            notes.append(f"{attribute}: {absent} of {len(cases)} volumes have no value and are left out")
        small = [str(g) for g, n in labels.value_counts().items() if n < _FEWEST]
        if small:
            notes.append(
                f"{attribute}: fewer than {_FEWEST} volumes in {', '.join(small)}; no claim is made of them"
            )
        for metric in wanted:
            known = labels.notna() & cases[metric].notna() & np.isfinite(cases[metric].astype(float))
            values, groups = cases.loc[known, metric].to_numpy(float), labels[known].to_numpy()
            if not len(values):
                continue
            rows += _groups(attribute, metric, values, groups, noise, resamples)
            test = _test(attribute, metric, values, groups, noise, permutations)
            tests += [] if test is None else [test]
    _holm(tests)
    return Audit(tuple(rows), tuple(tests), tuple(notes))


def audit_files(
    cases: str | Path, groups: str | Path | None, by: Sequence[str], output: str | Path | None = None
) -> dict[str, Audit]:
    """Audit `cases.csv` of a study, task by task; our own reconstructions alone where methods are told apart.

    Args:
        cases: Written by `Study.save`, or any table with scores and a column `volume`.
        groups: `participants.tsv` or another table of patients; None where `cases` has the columns.
        by: Columns that make groups.
        output: A JSON file to write.

    Raises:
        DataError: Tables that cannot be read or do not belong together.
    """
    table = _read(cases)
    if "method" in table.columns:
        table = table[table["method"] == "sciLDM"].reset_index(drop=True)
    if groups is not None:
        table = join_participants(table, _read(groups))
    if table.empty:
        raise DataError(f"{cases}: no case of ours to audit")
    parts = table.groupby("task", sort=False) if "task" in table.columns else [("all", table)]
    found = {str(task): audit(part.reset_index(drop=True), by) for task, part in parts}
    if output is not None:
        write_json(Path(output), {task: a.to_dict() for task, a in found.items()})
    return found


def join_participants(cases: pd.DataFrame, people: pd.DataFrame) -> pd.DataFrame:
    """Add the columns of a table of patients, found by a column such as `participant_id` or by file name.

    Raises:
        DataError: Nothing in common, or a patient named twice.
    """
    keys = [k for k in _KEYS if k in people.columns]
    if "volume" not in cases.columns or not keys:
        raise DataError(
            f"audit: expected a column `volume` in the cases and one of {', '.join(_KEYS)} in the table of patients"
        )
    key = keys[0]
    index = pd.Index([_plain_name(str(v)) for v in people[key]])
    if index.has_duplicates:
        raise DataError(
            f"audit: {key} {index[index.duplicated()][0]!r} occurs twice in the table of patients"
        )
    names = [str(v) for v in cases["volume"]]
    candidates = [(_plain_name(n), _plain_name(patient_of(Path(n)))) for n in names]
    at = [next((c for c in pair if c in index), None) for pair in candidates]
    if all(a is None for a in at):
        raise DataError(
            f"audit: none of the volumes ({names[0]}, ...) is named in column {key} ({people[key].iloc[0]}, ...)"
        )
    rest = people.drop(columns=[key, *[c for c in people.columns if c in cases.columns]], errors="ignore")
    found = rest.set_axis(index).reindex(at).reset_index(drop=True)
    return pd.concat([cases.reset_index(drop=True), found], axis=1)


def group_labels(values: pd.Series) -> pd.Series:
    """Groups of a column: its own values, or thirds where it holds more than a few different numbers."""
    numbers = pd.to_numeric(values, errors="coerce")
    if numbers.notna().sum() < values.notna().sum() or numbers.nunique() <= 2 * _BINS - 1:
        return values.astype(object).where(values.notna(), None).map(lambda v: None if v is None else str(v))
    edges = np.unique(np.nanquantile(numbers, np.linspace(0, 1, _BINS + 1)))
    cut = pd.cut(numbers, list(edges), include_lowest=True)
    names = {c: f"{max(c.left, edges[0]):.4g} to {c.right:.4g}" for c in cut.cat.categories}
    return cut.astype(object).map(lambda c: names.get(c) if isinstance(c, pd.Interval) else None)


def _groups(
    attribute: str, metric: str, values: np.ndarray, groups: np.ndarray, noise: NoiseSource, resamples: int
) -> list[dict[str, Any]]:
    rows = []
    for group in sorted(set(groups)):
        part = values[groups == group]
        found = bootstrap(part, np.ones(len(part)), noise.fork(f"{attribute}/{metric}/{group}"), resamples)
        rows.append(
            {
                "attribute": attribute,
                "group": group,
                "metric": metric,
                "volumes": len(part),
                "value": found.value,
                "lower": found.lower,
                "upper": found.upper,
                "overall": float(values.mean()),
            }
        )
    return rows


def _test(
    attribute: str, metric: str, values: np.ndarray, groups: np.ndarray, noise: NoiseSource, permutations: int
) -> dict[str, Any] | None:
    """None where fewer than two groups are large enough to speak of."""
    names, code = np.unique(groups, return_inverse=True)
    count = np.bincount(code)
    large = np.flatnonzero(count >= _FEWEST)
    if len(large) < 2:
        return None
    inside = np.isin(code, large)
    values, code = values[inside], code[inside]
    sign = 1.0 if METRICS.get(metric, True) else -1.0
    gaps = [sign * (values[code != g].mean() - values[code == g].mean()) for g in large]
    worst = int(np.argmax(gaps))
    u = noise.uniform([0], (permutations, len(values)), f"audit/{attribute}/{metric}")[0].numpy()
    shuffled = code[u.argsort(axis=1)]
    observed = _between(values, code[None], large)[0]
    # The observed labelling is one of the possible ones: p is never 0.
    p = (1 + int((_between(values, shuffled, large) >= observed * (1 - 1e-9)).sum())) / (1 + permutations)
    return {
        "attribute": attribute,
        "metric": metric,
        "worst": str(names[large[worst]]),
        "gap": float(gaps[worst]),
        "p": p,
    }


def _between(values: np.ndarray, codes: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Sum of squares between groups, for each labelling."""
    centred = values - values.mean()
    total = np.zeros(len(codes))
    for g in groups:
        there = codes == g
        total += (there @ centred) ** 2 / there.sum(axis=1)
    return total


def _holm(tests: list[dict[str, Any]]) -> None:
    """Adds `p_holm`."""
    order = sorted(range(len(tests)), key=lambda k: tests[k]["p"])
    last = 0.0
    for rank, k in enumerate(order):
        last = max(last, min(1.0, tests[k]["p"] * (len(tests) - rank)))
        tests[k]["p_holm"] = last


def _plain_name(name: str) -> str:
    return stem(name).removeprefix("sub-").lower()


def _read(path: str | Path) -> pd.DataFrame:
    path = Path(path)
    try:
        return pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", na_values=["n/a"])
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a table ({error})") from error
