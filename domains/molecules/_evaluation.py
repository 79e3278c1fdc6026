"""The result of an evaluation: metrics with floors, sample sizes, protocols, caveats and package versions."""

import importlib.metadata
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, final

import pandas as pd

__all__ = ["Evaluation", "MetricRow", "package_versions"]


@final
@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric.

    Attributes:
        metric: its name.
        value: of the generated set.
        floor: of an equally large random sample of the training set (NaN where it makes no sense).
        sample_size: number of generated molecules it was computed from.
        protocol: whose protocol, and what exactly is compared.
    """

    metric: str
    value: float
    floor: float
    sample_size: int
    protocol: str


@final
@dataclass(frozen=True, slots=True)
class Evaluation:
    """Result of `evaluate_set`.

    Attributes:
        rows: the metrics.
        notes: caveats that apply to them.
        versions: of the packages that computed them.
    """

    rows: tuple[MetricRow, ...]
    notes: tuple[str, ...]
    versions: Mapping[str, str]

    def __getitem__(self, metric: str) -> float:
        """Value of one metric."""
        return {row.metric: row.value for row in self.rows}[metric]

    def table(self) -> pd.DataFrame:
        """One row a metric: `metric, value, floor, sample_size, protocol`."""
        return pd.DataFrame([asdict(row) for row in self.rows])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; a missing number is `None`."""
        rows = [{k: None if v != v else v for k, v in asdict(row).items()} for row in self.rows]
        return {"metrics": rows, "notes": list(self.notes), "versions": dict(self.versions)}


def package_versions() -> dict[str, str]:
    """Versions of the packages whose results can change a metric."""
    found: dict[str, str] = {}
    for name in ("rdkit", "fcd", "numpy", "scipy", "torch"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
