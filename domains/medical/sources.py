"""Which volumes a data set holds: a folder, a table, a BIDS root, or a known data card."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import pandas as pd

from sciLDM.data.cards import card, cards, locate
from sciLDM.domains.medical.bids import find_bids, is_bids, participants, patient_of
from sciLDM.domains.medical.dicom import find_series, read_series
from sciLDM.domains.medical.nifti import SUFFIXES, read_nifti, stem
from sciLDM.domains.medical.volume import Volume
from sciLDM.errors import DataError

__all__ = ["Entry", "find_entries", "known_cards", "read_entry"]

_LABEL_ENDS = ("_mask", "_seg", "_label", "_labels", "_dseg")
_PATH_COLUMNS = ("path", "file", "filename", "image", "volume", "nifti", "folder")
_PATIENT_COLUMNS = ("patient", "patient_id", "participant_id", "subject", "subject_id")
_TABLES = (".csv", ".tsv", ".txt")


@final
@dataclass(frozen=True)
class Entry:
    """One volume to be read.

    Attributes:
        files: A NIfTI file, or the files of a DICOM series.
        patient: Volumes of one patient never lie on both sides of a split.
        columns: What a table says of it.
        label: Its segmentation, or None.
    """

    files: tuple[Path, ...]
    patient: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    label: Path | None = None

    @property
    def name(self) -> str:
        """For messages and output names."""
        return self.files[0].name if len(self.files) == 1 else self.files[-1].parent.name


def known_cards() -> list[str]:
    """Data sets that `data:` may name instead of a path."""
    return [name for name in cards() if card(name).domain == "medical"]


def read_entry(entry: Entry) -> Volume:
    """The volume of an entry."""
    first, *others = entry.files
    if others or not _is_volume(first):
        return read_series(entry.files, name=entry.name)
    return read_nifti(first)


def find_entries(data: str, *, pattern: str | None = None, labels: str | None = None) -> list[Entry]:
    """All volumes of a data set, in a fixed order; none is read yet.

    Args:
        data: A folder, a BIDS root, a CSV or TSV with a column of paths, one file, or the name of a data card.
        pattern: File names to take, as a shell pattern.
        labels: Folder of segmentations, named like the images or with `_mask`, `_seg`, `_label` added; `beside` for
            the images' own folder.

    Raises:
        DataError: No such place, or no volume in it.
    """
    path = Path(data).expanduser()
    if data in known_cards():
        entries = _from_card(data, pattern)
    elif path.is_dir():
        entries = _from_folder(path, pattern)
    elif path.is_file():
        entries = _from_table(path, pattern) if path.suffix.lower() in _TABLES else [_entry(path)]
    else:
        raise DataError(
            f"data: expected a folder, a table, a volume or one of {', '.join(known_cards())}, got {data!r}, "
            "which does not exist"
        )
    if not entries:
        wanted = f" that match {pattern!r}" if pattern else ""
        raise DataError(
            f"{data}: found no volumes{wanted}; expected NIfTI files ({', '.join(SUFFIXES)}) or DICOM"
        )
    if labels is not None:
        entries = _with_labels(entries, labels)
    return entries


def _from_card(name: str, pattern: str | None) -> list[Entry]:
    paths = locate(name)
    images = [p for p in paths if not _is_label(p) and fnmatch.fnmatch(p.name, pattern or "*")]
    found = {stem(p): p for p in paths if _is_label(p)}
    return [
        Entry((p,), patient_of(p), {}, next((found[k] for k in _label_names(p) if k in found), None))
        for p in images
    ]


def _from_folder(folder: Path, pattern: str | None) -> list[Entry]:
    if is_bids(folder):
        table = participants(folder)
        return [
            Entry((p,), patient_of(p.relative_to(folder)), _row(table, patient_of(p.relative_to(folder))))
            for p in find_bids(folder, pattern)
        ]
    paths = sorted(
        p
        for p in folder.rglob("*")
        if p.is_file() and _is_volume(p) and not p.name.startswith(".") and not _is_label(p)
    )
    paths = [p for p in paths if not (p.name.lower().endswith((".img", ".img.gz")) and _has_header(p))]
    entries = [_entry(p) for p in paths if fnmatch.fnmatch(p.name, pattern or "*")]
    for files in find_series(folder).values():
        if fnmatch.fnmatch(files[0].parent.name, pattern or "*"):
            entries.append(Entry(tuple(files), files[0].parent.name))
    return entries


def _from_table(path: Path, pattern: str | None) -> list[Entry]:
    try:
        table = pd.read_csv(path, sep=None, engine="python", na_values=["n/a"])
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a table ({error})") from error
    column = next((c for c in table.columns if str(c).lower() in _PATH_COLUMNS), None)
    if column is None:
        if "participant_id" in table.columns and is_bids(path.parent):
            return _from_folder(path.parent, pattern)
        raise DataError(
            f"{path}: expected a column of paths called {', '.join(_PATH_COLUMNS)}; it has "
            f"{', '.join(map(str, table.columns))}"
        )
    who = next((c for c in table.columns if str(c).lower() in _PATIENT_COLUMNS), None)
    entries = []
    for row in table.to_dict("records"):
        if not isinstance(row[column], str):
            continue
        place = path.parent / row[column]
        if not fnmatch.fnmatch(place.name, pattern or "*"):
            continue
        patient = str(row[who]) if who is not None and pd.notna(row[who]) else patient_of(place)
        columns = {str(k): v for k, v in row.items() if k not in (column, who)}
        files = tuple(sorted(p for p in place.rglob("*") if p.is_file())) if place.is_dir() else (place,)
        entries.append(Entry(files or (place,), patient, columns))
    return entries


def _with_labels(entries: Sequence[Entry], labels: str) -> list[Entry]:
    folder = None if labels == "beside" else Path(labels).expanduser()
    if folder is not None and not folder.is_dir():
        raise DataError(f"labels: expected a folder of segmentations or 'beside', got {labels!r}")
    made = []
    for entry in entries:
        place = folder or entry.files[0].parent
        options = [place / f"{n}{s}" for n in _label_names(entry.files[0]) for s in (".nii.gz", ".nii")]
        found = next((p for p in options if p.is_file() and p not in entry.files), entry.label)
        made.append(Entry(entry.files, entry.patient, entry.columns, found))
    if all(e.label is None for e in made):
        raise DataError(
            f"labels: {labels} holds no segmentation named like the images, for instance "
            f"{_label_names(entries[0].files[0])[0]}.nii.gz"
        )
    return made


def _label_names(path: Path) -> list[str]:
    return [stem(path), *(stem(path) + end for end in _LABEL_ENDS)]


def _entry(path: Path) -> Entry:
    return Entry((path,), patient_of(path))


def _row(table: pd.DataFrame | None, patient: str) -> dict[str, Any]:
    if table is None or patient not in table.index:
        return {}
    return {str(k): v for k, v in table.loc[patient].to_dict().items()}


def _is_label(path: Path) -> bool:
    return path.parent.name.lower() in ("labels", "labelstr", "masks") or stem(path).lower().endswith(
        _LABEL_ENDS
    )


def _is_volume(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def _has_header(path: Path) -> bool:
    return path.with_name(stem(path) + ".hdr").exists()
