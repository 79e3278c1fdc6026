"""A study's numbers: one record for each volume, task and method; means with intervals; files."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import pandas as pd

from sciLDM.domains.medical.bids import write_json
from sciLDM.domains.medical.result import Reconstruction
from sciLDM.domains.medical.study_tasks import Observed, StudyTask
from sciLDM.errors import DataError
from sciLDM.evaluate.calibration_statistics import bootstrap
from sciLDM.posterior.conformal import Conformal
from sciLDM.rng import NoiseSource

__all__ = ["OURS", "Study", "example_of", "read_study"]

OURS = "sciLDM"
"""Our method's name in tables."""

_MEANS = ("psnr", "ssim", "coverage", "coverage_family", "coverage_raw", "crps", "chi2", "seconds")


@final
@dataclass(frozen=True)
class Study:
    """Outcome of `reconstruction_study`.

    Attributes:
        records: One for each task, method and volume: `psnr`, `ssim`, `mae`, `crps` (shares of the range), `chi2`,
            `seconds`; ours also `coverage` at 90 % after calibration on this task's validation volumes,
            `coverage_family` with the factors that a model ships (one set for each family of operators), and
            `coverage_raw` before.
        protocol: Sizes, noise, data range, tuned weights.
        conformal: Factors by operator family, for `LatentDiffusion.calibration`.
        examples: By task: `truth`, `input`, `recon`, `std`, and images of other methods, of the first test volume.
    """

    records: tuple[Mapping[str, Any], ...]
    protocol: Mapping[str, Any]
    conformal: Conformal
    examples: Mapping[str, Mapping[str, np.ndarray]]

    @property
    def cases(self) -> pd.DataFrame:
        """The records as a table."""
        return pd.DataFrame(list(self.records))

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Means over volumes, every method in the order in which it was run.

        `psnr_ahead` is by how much our PSNR lies above the row's, volume by volume, with its 95 % interval.
        """
        table, noise, rows = self.cases, NoiseSource(0), []
        for task, method in dict.fromkeys((str(r["task"]), str(r["method"])) for r in self.records):
            part = table[(table["task"] == task) & (table["method"] == method)]
            row: dict[str, Any] = {"task": task, "method": method, "volumes": len(part)}
            for name in _MEANS:
                values = part[name].dropna() if name in part.columns else pd.Series(dtype=float)
                row[name] = float(values.mean()) if len(values) else None
            ours = table[(table["task"] == task) & (table["method"] == OURS)].set_index("volume")["psnr"]
            ahead = (ours.to_numpy() - part["psnr"].to_numpy()) if len(ours) == len(part) else np.array([])
            if method != OURS and len(ahead) and np.isfinite(ahead).all():
                found = bootstrap(ahead, np.ones(len(ahead)), noise)
                row |= {"psnr_ahead": found.value, "lower": found.lower, "upper": found.upper}
            rows.append(row)
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "rows": self.rows,
            "cases": [dict(r) for r in self.records],
            "protocol": dict(self.protocol),
            "calibration": self.conformal.state(),
        }

    def save(self, folder: str | Path) -> Path:
        """Write `study.json`, `cases.csv` (for `scildm audit`) and `examples.npz`; returns the folder."""
        root = Path(folder)
        root.mkdir(parents=True, exist_ok=True)
        write_json(root / "study.json", _plain(self.to_dict()))
        self.cases.to_csv(root / "cases.csv", index=False)
        flat = {f"{task}/{name}": a for task, images in self.examples.items() for name, a in images.items()}
        partial = root / ".examples.partial"
        with partial.open("wb") as stream:
            np.savez_compressed(stream, **flat)  # type: ignore[arg-type]
        partial.replace(root / "examples.npz")
        return root


def read_study(folder: str | Path) -> Study:
    """What `Study.save` wrote.

    Raises:
        DataError: No study there, or a damaged one.
    """
    root = Path(folder)
    try:
        content = json.loads((root / "study.json").read_text(encoding="utf-8"))
        examples: dict[str, dict[str, np.ndarray]] = {}
        with (root / "examples.npz").open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
            for key in stored.files:
                task, _, name = key.partition("/")
                examples.setdefault(task, {})[name] = stored[key]
        factors = Conformal.from_state(content["calibration"])
        return Study(tuple(content["cases"]), content["protocol"], factors, examples)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{root}: expected a study written by Study.save ({error})") from error


def example_of(observed: Observed, result: Reconstruction, task: StudyTask) -> dict[str, np.ndarray]:
    """Images of one case for the report."""
    given = observed.scan.volume.data
    if np.isnan(given).all():  # not seen voxel by voxel
        given = task.guess(observed)
    return {
        "truth": observed.case.volume.data.astype(np.float32),
        "input": given.astype(np.float32),
        "recon": result.arrays["recon"],
        "std": result.arrays["std"],
        "scored": observed.scored,
    }


def _plain(value: Any) -> Any:
    """JSON without NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value
