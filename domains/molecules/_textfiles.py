"""Bytes on disk to a table of strings: compression, encoding, separator, header."""

import csv
import difflib
import gzip
import io
import zlib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from rdkit import Chem, rdBase

from sciLDM.errors import DataError

__all__ = ["is_smiles_name", "looks_like_smiles", "near_names", "read_bytes", "read_strings"]

_SMILES_NAMES = (
    "smiles",
    "canonicalsmiles",
    "isomericsmiles",
    "smiles1",
    "smi",
    "structure",
    "molecule",
    "mol",
)  # by preference
_SAMPLE = 50


def is_smiles_name(name: str) -> int | None:
    """Rank of a column name among those that announce SMILES (0 is the surest), or ``None``."""
    plain = "".join(letter for letter in name.lower() if letter.isalnum())
    if plain in _SMILES_NAMES:
        return _SMILES_NAMES.index(plain)
    return len(_SMILES_NAMES) if "smiles" in plain else None


def looks_like_smiles(values: Sequence[str]) -> bool:
    """Whether four in five of the values parse as SMILES."""
    with rdBase.BlockLogs():
        good = sum(text != "" and Chem.MolFromSmiles(text, sanitize=False) is not None for text in values)
    return good > 0 and good >= 0.8 * len(values)


def near_names(name: str, known: Sequence[str]) -> str:
    """``did you mean ...? `` or nothing."""
    folded = {entry.lower(): entry for entry in known}
    near = difflib.get_close_matches(name.lower(), folded, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(repr(folded[key]) for key in near)}? " if near else ""


def read_bytes(path: Path) -> bytes:
    """The file's content, unpacked if it is gzipped (whatever its name says).

    Raises:
        DataError: absent, a folder, not readable, damaged, or empty.
    """
    if path.is_dir():
        inside = ", ".join(sorted(item.name for item in path.iterdir())[:5]) or "it is empty"
        raise DataError(f"expected a file, got the folder {path}; name a file in it ({inside})")
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except FileNotFoundError as error:
        siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        hint = near_names(path.name, siblings) or f"the current folder is {Path.cwd()}"
        raise DataError(f"there is no file {path}; {hint}") from error
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path} is a damaged gzip file ({error}); fetch it again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if not content.strip():
        raise DataError(f"{path} is empty")
    return content


def read_strings(path: Path) -> tuple[pd.DataFrame, bool]:
    """All cells as text, "" where there is none, and whether the file names its columns.

    Raises:
        DataError: not text, no rows, or a row longer than the others.
    """
    text = _decode(path, read_bytes(path))
    lines = [line for line in text.splitlines() if line.strip()]
    separator = _separator(lines[:_SAMPLE])
    if separator is None:
        # Blanks. SMILES files carry names of any number of words, so then only the first blank separates.
        tokens = [line.split() for line in lines]
        regular = len({len(row) for row in tokens}) == 1
        rows = tokens if regular else [line.split(None, 1) for line in lines]
    else:
        rows = _rows(path, text, separator)
    header = _has_header(rows[: _SAMPLE + 1])
    names = [name.strip() for name in rows[0]]
    if header:
        if len(rows) == 1:
            raise DataError(f"{path} holds a header and no rows (columns: {', '.join(names)})")
        rows = rows[1:]
    width = max(len(row) for row in rows)
    if header and width > len(names) and any(any(row[len(names) :]) for row in rows):
        line = next(k for k, row in enumerate(rows) if any(row[len(names) :])) + 2
        raise DataError(
            f"{path}: row {line} has {len(rows[line - 2])} cells, the header {len(names)} "
            f"(separator {separator or 'blank'!r}); put text that holds the separator in double quotes"
        )
    if not header:
        names = [f"column_{k + 1}" for k in range(width)]
    columns = {}
    for position, name in enumerate(names):
        unique = name if name not in columns else f"{name}_{position + 1}"
        columns[unique] = [row[position].strip() if position < len(row) else "" for row in rows]
    return pd.DataFrame(columns, dtype=object), header


def _decode(path: Path, content: bytes) -> str:
    if content[:4] == b"PK\x03\x04":
        raise DataError(f"{path} is a workbook or zip archive, not text; save the sheet as 'CSV UTF-8'")
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not {encoding.removesuffix('-sig')}; "
            f"save it as UTF-8, for instance with `iconv -f latin1 -t utf-8`"
        ) from error
    if "\0" in text:
        raise DataError(f"{path} is a binary file; expected CSV, TSV, SMILES or SDF")
    return text


def _separator(sample: Sequence[str]) -> str | None:
    """The character that cuts all lines into the same number of cells, the most; ``None`` for blanks."""
    widths: dict[str, int] = {}
    for candidate in ("\t", ",", ";", "|"):
        counts = {len(row) for row in csv.reader(sample, delimiter=candidate) if row}
        if len(counts) == 1 and counts != {1}:
            widths[candidate] = counts.pop()
    if widths:
        return max(widths, key=lambda candidate: widths[candidate])
    # Ragged: the header is the best witness (an unquoted separator in a name is reported by row later on).
    first = {candidate: sample[0].count(candidate) for candidate in ("\t", ",", ";")}
    best = max(first, key=lambda candidate: first[candidate])
    named = any(is_smiles_name(name) is not None for name in sample[0].split(best))
    return best if first[best] and named else None


def _rows(path: Path, text: str, separator: str) -> list[list[str]]:
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        return [row for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise DataError(f"{path} is not a regular table separated by {separator!r}: {error}") from error


def _has_header(rows: Sequence[Sequence[str]]) -> bool:
    """A first line is data when one of its cells, and the column below it, read as SMILES.

    That comes first: "CCO my favourite molecule" names no column.
    """
    first, body = rows[0], rows[1:]
    if not body and any(is_smiles_name(name) is not None for name in first):
        return True
    return not any(
        is_smiles_name(cell) is None
        and looks_like_smiles([cell.strip()])
        and (not body or looks_like_smiles([row[k].strip() for row in body if k < len(row)]))
        for k, cell in enumerate(first)
    )
