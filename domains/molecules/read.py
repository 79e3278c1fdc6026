"""A user's file of molecules to a table: a column ``smiles`` and numeric property columns.

CSV and TSV (any of tab, comma, semicolon, bar as separator), SMILES files with or without header and names,
SDF with data tags; each also gzipped. What was left out, and why, stands in ``table.attrs["notes"]``.
"""

import io
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import pandas as pd
from jaxtyping import Int64
from rdkit import Chem, rdBase

from sciLDM.domains.molecules._textfiles import (
    is_smiles_name,
    looks_like_smiles,
    near_names,
    read_bytes,
    read_strings,
)
from sciLDM.errors import DataError

__all__ = ["Merged", "merge_duplicates", "read_table"]

_MISSING = {"", "-", "--", "?", "na", "n/a", "#n/a", "nan", "null", "none", "nil", "missing"}
_RUNNING_NUMBERS = {"", "id", "idx", "index", "no", "nr", "number", "row", "cid", "unnamed: 0"}
_STRUCTURES = "smiles (from the structures)"
_SAMPLE = 50


def read_table(
    path: str | os.PathLike[str], *, smiles_column: str | None = None, columns: Sequence[str] | None = None
) -> pd.DataFrame:
    """Read molecules and their properties.

    Args:
        path: ``.csv``, ``.tsv``, ``.smi``, ``.smiles``, ``.txt``, ``.sdf``, each also with ``.gz``.
        smiles_column: the column (SDF: tag) that holds SMILES; ``None`` finds it by its name, then by its
            content. An SDF's structures are used unless a tag is named here.
        columns: the properties to keep; ``None`` keeps every numeric column that is not a running number, and
            none of a file without header.

    Returns:
        ``smiles`` (as written; "" where absent) and the properties as float64, NaN where a value is missing.
        A property that is constant or empty is left out with a warning. ``attrs["notes"]`` lists all that was
        left out.

    Raises:
        DataError: the file cannot be read or holds no rows; no column of SMILES; a column asked for is absent
            (near names are suggested) or holds text.
    """
    path = Path(path)
    suffix = "".join(path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:]).lower()
    notes: list[str] = []
    if suffix.removesuffix(".gz") in (".sdf", ".sd", ".mol"):
        cells, header = _read_sdf(path, notes), True
        source = _STRUCTURES if smiles_column is None else _pick(path, cells, smiles_column)
    else:
        cells, header = read_strings(path)
        source = _smiles_column(path, cells, smiles_column, notes)
    names = [str(name) for name in cells.columns if name != source]
    if columns is not None:
        names = [_pick(path, cells, name) for name in ([columns] if isinstance(columns, str) else columns)]
    elif not header:
        if names:
            notes.append(f"no header: {', '.join(names)} left out (ask for one with columns=['{names[0]}'])")
        names = []
    table = pd.DataFrame({"smiles": cells[source].astype(str)})
    for name in names:
        values = _property(path, cells[name], name, notes, asked=columns is not None)
        if values is not None:
            table[name] = values
    table.attrs["notes"] = notes
    return table


@final
@dataclass(frozen=True, eq=False)
class Merged:
    """One row for each different molecule.

    Args:
        first: the row of each molecule's first copy, ascending; selects graphs and SMILES.
        properties: mean of the copies' known values; NaN where no copy has one.
        report: the molecules that had copies: ``smiles``, ``copies``, and for each property the ``spread``
            (largest less smallest value) in its unit.
    """

    first: Int64[np.ndarray, " molecules"]
    properties: pd.DataFrame
    report: pd.DataFrame


def merge_duplicates(smiles: Sequence[str], properties: pd.DataFrame) -> Merged:
    """Merge rows of the same molecule; to be called with canonical SMILES, hence after `featurise`.

    Args:
        smiles: canonical SMILES (``Featurised.smiles``).
        properties: numeric columns, a row for each SMILES (``table.iloc[featurised.kept]``); a column
            ``smiles`` is ignored.

    Raises:
        DataError: their lengths differ.
    """
    if len(smiles) != len(properties):
        raise DataError(
            f"expected one row of properties for each of {len(smiles)} SMILES, got {len(properties)}; "
            "select the rows that featurise kept: table.iloc[featurised.kept]"
        )
    values = properties.drop(columns="smiles", errors="ignore").reset_index(drop=True).astype(float)
    codes, different = pd.factorize(np.asarray(smiles, dtype=object))
    _, first, copies = np.unique(codes, return_index=True, return_counts=True)
    groups = values.groupby(codes, sort=True)
    report = (groups.max() - groups.min()).add_prefix("spread ")
    report.insert(0, "smiles", different)
    report.insert(1, "copies", copies)
    merged = groups.mean() if len(values.columns) else pd.DataFrame(index=range(len(different)))
    return Merged(
        first.astype(np.int64), merged.reset_index(drop=True), report[copies > 1].reset_index(drop=True)
    )


def _pick(path: Path, cells: pd.DataFrame, name: str) -> str:
    """The column of that name, in any case if that is unambiguous."""
    known = [str(column) for column in cells.columns]
    if name in known:
        return name
    folded = [column for column in known if column.lower() == name.lower()]
    if len(folded) == 1:
        return folded[0]
    hint = near_names(name, known)
    raise DataError(f"{path} has no column {name!r}; {hint}its columns are {', '.join(known)}")


def _smiles_column(path: Path, cells: pd.DataFrame, asked: str | None, notes: list[str]) -> str:
    """The column that holds SMILES: as told, or by name, or by content."""

    def sample(name: str) -> list[str]:
        return [text for text in cells[name].head(10 * _SAMPLE) if text][:_SAMPLE]

    known = [str(name) for name in cells.columns]
    if asked is not None:
        name = _pick(path, cells, asked)
        if not looks_like_smiles(sample(name)):
            begin = ", ".join(sample(name)[:3]) or "empty"
            raise DataError(f"{path}: column {name!r} does not hold SMILES; it begins {begin}")
        return name
    ranks = {name: rank for name in known if (rank := is_smiles_name(name)) is not None}
    for name in [*sorted(ranks, key=lambda name: ranks[name]), *known]:
        if looks_like_smiles(sample(name)):
            if len(known) > 1 and list(ranks) != [name]:
                notes.append(f"SMILES taken from column {name!r}; name another with smiles_column=")
            return name
    raise DataError(
        f"{path}: no column holds SMILES; its columns are {', '.join(known)} "
        "(the file may also be damaged: a column counts when four in five of its first values can be parsed)"
    )


def _property(path: Path, cells: pd.Series, name: str, notes: list[str], *, asked: bool) -> pd.Series | None:
    """Numbers of one column, or ``None`` when it is left out."""
    text = cells.where(~cells.astype(str).str.lower().isin(_MISSING), None)
    values = _numbers(text)
    # A decimal comma: where it alone makes every value a number, and cannot be a thousands separator (1,234).
    if values.isna().sum() > text.isna().sum():
        comma = _numbers(text.str.replace(r"^([+-]?\d*),(\d+)$", r"\1.\2", regex=True))
        changed = text[values.isna() & comma.notna()]
        if comma.isna().sum() == text.isna().sum() and not changed.str.fullmatch(r".*,\d{3}").all():
            notes.append(f"column {name!r}: commas read as decimal points ({changed.iloc[0]!r})")
            values = comma
    values = values.where(np.isfinite(values))
    wrong = text[values.isna() & text.notna()]
    if len(wrong):
        shown = ", ".join(repr(value) for value in wrong.unique()[:3])
        problem = f"column {name!r}: {len(wrong)} of {len(text)} values are not finite numbers ({shown})"
        if asked:
            raise DataError(f"{path}, {problem}; correct them, or leave the cells empty if they are unknown")
        notes.append(f"{problem}: left out")
        if len(wrong) < 0.5 * text.notna().sum():  # meant as a property, unlike a column of names
            warnings.warn(notes[-1], stacklevel=3)
        return None
    if not asked and name.lower() in _RUNNING_NUMBERS:
        notes.append(f"column {name!r} is a running number: left out (ask for it with columns=)")
        return None
    if values.nunique() < 2:
        what = f"is constant ({values.dropna().iloc[0]:g})" if values.notna().any() else "has no values"
        notes.append(f"property {name!r} {what}: left out, a model cannot learn from it")
        warnings.warn(notes[-1], stacklevel=3)
        return None
    return values


def _numbers(text: pd.Series) -> pd.Series:
    return pd.Series(pd.to_numeric(text, errors="coerce"), dtype=float)


def _read_sdf(path: Path, notes: list[str]) -> pd.DataFrame:
    """One row a record: its tags as text, and its structure as SMILES ("" where RDKit cannot read it)."""
    rows: list[dict[str, str]] = []
    unreadable = 0
    with rdBase.BlockLogs():
        for molecule in Chem.ForwardSDMolSupplier(io.BytesIO(read_bytes(path))):
            row = {_STRUCTURES: ""}
            if molecule is None:
                unreadable += 1
            else:
                row[_STRUCTURES] = Chem.MolToSmiles(molecule)
                row |= {name: molecule.GetProp(name).strip() for name in molecule.GetPropNames()}
            rows.append(row)
    if unreadable == len(rows):
        raise DataError(f"{path} holds no structure RDKit can read ({len(rows)} records)")
    if unreadable:
        notes.append(f"{unreadable} of {len(rows)} records cannot be read as structures")
        warnings.warn(notes[-1], stacklevel=3)
    return pd.DataFrame(rows, dtype=object).fillna("")
