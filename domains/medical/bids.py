"""BIDS: find the volumes of a data set, and name what is derived from them (BIDS 1.9, derivatives)."""

import fnmatch
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sciLDM.domains.medical.nifti import SUFFIXES, stem
from sciLDM.errors import DataError

__all__ = ["derivative_path", "find_bids", "is_bids", "participants", "patient_of", "write_description"]

_ENTITY = re.compile(r"^[a-zA-Z]+-[a-zA-Z0-9]+$")
_FOLDERS = ("anat", "ct", "pet", "perf", "fmap")


def is_bids(folder: Path) -> bool:
    """Whether a folder is the root of a BIDS data set."""
    return any(p.is_dir() for p in folder.glob("sub-*"))


def find_bids(root: Path, pattern: str | None) -> list[Path]:
    """Volumes of a BIDS data set: `sub-*/[ses-*/]{anat,ct,pet,...}/*`.

    Args:
        root: Folder with `sub-*` folders.
        pattern: File names to take, as a shell pattern.

    Raises:
        DataError: Several kinds of image and no pattern to choose one.
    """
    found = sorted(
        path
        for path in root.glob("sub-*/**/*")
        if path.is_file()
        and path.name.lower().endswith(SUFFIXES)
        and path.parent.name in _FOLDERS
        and fnmatch.fnmatch(path.name, pattern or "*")
    )
    kinds = sorted({stem(p).rsplit("_", 1)[-1] for p in found})
    if len(kinds) > 1 and pattern is None:
        raise DataError(
            f"{root}: holds several kinds of image ({', '.join(kinds)}); choose one by pattern, for instance "
            f"pattern: '*_{kinds[0]}.nii*'"
        )
    return found


def participants(root: Path) -> pd.DataFrame | None:
    """`participants.tsv`, indexed by participant (`sub-01`), or None; `n/a` is a missing value."""
    path = root / "participants.tsv"
    if not path.is_file():
        return None
    table = pd.read_csv(path, sep="\t", na_values=["n/a"], dtype={"participant_id": str})
    if "participant_id" not in table.columns:
        raise DataError(f"{path}: expected a column participant_id, got {', '.join(table.columns)}")
    return table.set_index("participant_id")


def patient_of(path: Path) -> str:
    """Whose volume a file is: `sub-01` of a BIDS name or folder, else the file's own name."""
    for part in (path.name, *reversed(path.parts[:-1])):
        if match := re.match(r"(sub-[a-zA-Z0-9]+)(?=[_.]|$)", part):
            return match.group(1)
    return stem(path)


def derivative_path(folder: Path, source: str, desc: str, *, modality: str, suffix: str = ".nii.gz") -> Path:
    """Where a derived volume goes: `sub-01/anat/sub-01_desc-recon_T1w.nii.gz`.

    A source whose name is not BIDS becomes a subject of that name: `STS_001_CT.nii.gz` gives
    `sub-STS001CT/ct/sub-STS001CT_desc-recon_ct.nii.gz`.

    Args:
        folder: Root of the derivative data set.
        source: File name of the volume it was made from.
        desc: What it is: `recon`, `std`, `lower`, `upper`, `sample-003`.
        modality: `ct`, `mr` or `other`: the folder, and the suffix where the source has none.
        suffix: `.nii.gz` or `.json`.
    """
    parts = stem(source).split("_")
    kind = {"ct": "ct", "mr": "anat", "other": "anat"}[modality]
    if parts[0].startswith("sub-") and all(_ENTITY.match(p) for p in parts[:-1]):
        entities = [p for p in parts[:-1] if not p.startswith("desc-")]
        last = parts[-1] if not _ENTITY.match(parts[-1]) else None
        entities += [] if last else [parts[-1]]
    else:
        entities = ["sub-" + (re.sub("[^a-zA-Z0-9]", "", stem(source)) or "unnamed")]
        last = None
    last = last or {"ct": "ct", "mr": "MR", "other": "image"}[modality]
    place = folder / entities[0]
    if len(entities) > 1 and entities[1].startswith("ses-"):
        place = place / entities[1]
    return place / kind / ("_".join([*entities, f"desc-{desc}", last]) + suffix)


def write_description(folder: Path, *, name: str, generated_by: Mapping[str, Any], source: str = "") -> Path:
    """`dataset_description.json` of a derivative data set; left as it is when there is one already."""
    path = folder / "dataset_description.json"
    if not path.exists():
        content: dict[str, Any] = {
            "Name": name,
            "BIDSVersion": "1.9.0",
            "DatasetType": "derivative",
            "GeneratedBy": [dict(generated_by)],
        }
        if source:
            content["SourceDatasets"] = [{"URL": source}]
        write_json(path, content)
    return path


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """JSON, complete or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=2, default=float) + "\n", encoding="utf-8")
    return partial.replace(path)
