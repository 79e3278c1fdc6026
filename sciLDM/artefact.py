"""A saved model: three files in a folder, none of which can run code.

    model.safetensors   all weights: autoencoder, latent statistics, network
    config.yaml         how to build the modules that hold them
    card.json           what it is: format, versions, checksums, training data, scores

A folder is written whole or not at all. It is checked whole, too: a checksum that does not fit is an error,
since weights that are slightly wrong give samples that are slightly wrong.
"""

import difflib
import hashlib
import importlib.metadata
import importlib.resources
import json
import math
import os
import platform
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sciLDM.data.eight_bit import to_eight_bit, to_floats
from sciLDM.errors import ArtefactError

__all__ = ["Artefact", "find_artefact", "load_artefact", "save_artefact", "shipped_artefacts"]

FORMAT = "sciLDM"
FORMAT_VERSION, EIGHT_BIT_VERSION = 2, 2
"""Raised when an older sciLDM could not read the result: from 2 on weights may be 8-bit integers; others are 1."""

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.yaml", "card.json"
LIBRARIES = ("torch", "numpy", "safetensors", "lightning")


@final
@dataclass(frozen=True)
class Artefact:
    """A saved model as read from disk.

    Attributes:
        tensors: Weights by name, on the CPU.
        config: What builds the modules.
        card: What the model is. The entries `format`, `format_version`, `sciLDM`, `created`, `files` and
            `libraries` are written by `save_artefact`.
    """

    tensors: dict[str, Tensor]
    config: dict[str, Any]
    card: dict[str, Any]


def save_artefact(
    folder: str | os.PathLike[str],
    *,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    card: Mapping[str, Any],
    dtype: torch.dtype | None = None,
) -> Path:
    """Write a model folder; an earlier one is replaced only once the new one is complete.

    Args:
        folder: Where to; other files that lie there are kept.
        tensors: Weights by name.
        config: What builds the modules; plain values (numbers, strings, lists, mappings).
        card: What the model is; plain values, where numbers that are not finite become null.
        dtype: Type of matrices and kernels as stored, say `torch.bfloat16`; None keeps each. Vectors (biases, norms,
            latent statistics) keep theirs: small, and their rounding would show. `torch.int8` stores weights with one
            scale a channel (`sciLDM.data.eight_bit`), and other matrices (bases, tables) as bfloat16.

    Returns:
        The folder.

    Raises:
        ArtefactError: Values that cannot be stored, a folder that holds something else, a full disk.
    """
    folder = Path(folder).resolve()
    small = to_eight_bit(tensors) if dtype == torch.int8 else tensors
    floats = torch.bfloat16 if dtype == torch.int8 else dtype
    weights = {name: _stored(name, tensor, floats) for name, tensor in small.items()}
    # ASCII with escapes: PyYAML does not read back every character that it writes bare.
    config_text = yaml.safe_dump(_plain(config, "config"), sort_keys=False)
    theirs = _plain(card, "card", finite=True)
    _check_replaceable(folder)
    draft = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        draft.mkdir(parents=True)
        if folder.is_dir():
            _copy_others(folder, draft)
        save_file(weights, draft / WEIGHTS, metadata={"format": "pt"})
        (draft / CONFIG).write_text(config_text, encoding="utf-8", newline="\n")
        version = EIGHT_BIT_VERSION if dtype == torch.int8 else 1
        own = _own_entries({name: _describe(draft / name) for name in (WEIGHTS, CONFIG)}, version)
        entries = {**own, **{name: value for name, value in theirs.items() if name not in own}}
        (draft / CARD).write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8", newline="\n")
        for name in (WEIGHTS, CONFIG, CARD):
            _to_disk(draft / name)
        _to_disk(draft)
        _swap(draft, folder)
    except OSError as error:
        raise ArtefactError(
            f"could not write the model to {folder}: {error}; what was there before is untouched. "
            "Free some space or choose a folder you may write to"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def load_artefact(folder: str | os.PathLike[str]) -> Artefact:
    """Read a model folder and check it against its card.

    Raises:
        ArtefactError: Missing, damaged, changed, foreign or newer than this version.
    """
    folder = Path(folder)
    if not folder.exists() and _previous(folder.resolve()).is_dir():
        folder = _previous(folder.resolve())  # a save was killed between its renames: the old model counts
    if not (folder / CARD).is_file():
        raise ArtefactError(_why_no_card(folder))
    card = _read_card(folder / CARD)
    for name in (WEIGHTS, CONFIG):
        _check_size(folder / name, card)
    config = _read_config(folder / CONFIG)
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtefactError(f"{folder / WEIGHTS} is damaged: {error}; {_AGAIN}") from error
    for name in (WEIGHTS, CONFIG):
        _check_hash(folder / name, card)
    return Artefact(tensors=to_floats(tensors), config=config, card=card)


def find_artefact(name_or_path: str | os.PathLike[str]) -> Path:
    """The folder of a model, given that folder, a run folder with `model/` in it, or the name of a shipped model.

    A path that holds a model wins over a shipped name.

    Raises:
        ArtefactError: Neither a path nor a shipped name; lists the names and those that look alike.
    """
    path, name = Path(name_or_path), os.fspath(name_or_path)
    for candidate in (path, path / "model"):
        if (candidate / CARD).is_file() or _previous(candidate.resolve()).is_dir():
            return candidate
    shipped = shipped_artefacts()
    if name in shipped:
        return shipped[name]
    if path.exists():
        raise ArtefactError(_why_no_card(path))
    near = difflib.get_close_matches(name, shipped, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ArtefactError(
        f"no model {name!r}: expected a model folder, a run folder with model/ in it, or a shipped name "
        f"({', '.join(shipped) or 'none are installed'}), got a path that does not exist{hint}"
    )


def shipped_artefacts() -> dict[str, Path]:
    """Models that come with the package, by name."""
    root = Path(str(importlib.resources.files("sciLDM") / "weights"))
    return {card.parent.name: card.parent for card in sorted(root.glob(f"*/{CARD}"))}


# --- writing ---------------------------------------------------------------------------------------------


def _stored(name: str, tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    stored = tensor.detach().cpu()
    if dtype is not None and stored.is_floating_point() and stored.ndim >= 2:
        stored = stored.to(dtype)
        if not torch.equal(stored.isfinite(), tensor.detach().cpu().isfinite()):
            raise ArtefactError(
                f"{name} reaches {tensor.abs().max().item():.3g}, expected values that {dtype} holds; "
                "store it as torch.bfloat16"
            )
    # A copy of its own: safetensors refuses tensors that share memory, as tied weights do.
    return stored.clone(memory_format=torch.contiguous_format)


def _plain(value: Any, where: str, *, finite: bool = False) -> Any:
    """Numpy scalars, paths and tuples as YAML and JSON know them."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, Mapping):
        return {str(k): _plain(v, f"{where}.{k}", finite=finite) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, f"{where}[{i}]", finite=finite) for i, v in enumerate(value)]
    if isinstance(value, float) and finite and not math.isfinite(value):
        return None
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise ArtefactError(
        f"{where} is a {type(value).__name__}, expected plain values (numbers, strings, lists, mappings); "
        "convert it first"
    )


def _own_entries(files: Mapping[str, Any], version: int) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "format_version": version,
        "sciLDM": _version("sciLDM"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "files": dict(files),
        "libraries": {"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}},
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None  # absent, or run from a checkout


def _describe(path: Path) -> dict[str, Any]:
    return {"sha256": _sha256(path), "bytes": path.stat().st_size}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_replaceable(folder: Path) -> None:
    """A wrong path must not cost a user their files."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ArtefactError(f"{folder} is a file, expected a folder for the model; choose another name")
    present = {path.name for path in folder.iterdir()}
    if present <= {WEIGHTS, CONFIG, CARD} or (folder / CARD).is_file():
        return
    if taken := sorted(present & {WEIGHTS, CONFIG}):
        raise ArtefactError(
            f"{folder} is no sciLDM model yet holds {', '.join(taken)}; choose another folder"
        )


def _copy_others(folder: Path, draft: Path) -> None:
    """Keep what a user laid beside the model, say a README."""
    for path in folder.iterdir():
        if path.name in (WEIGHTS, CONFIG, CARD):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, draft / path.name, symlinks=True)
        else:
            shutil.copy2(path, draft / path.name, follow_symlinks=False)


def _to_disk(path: Path) -> None:
    if path.is_dir() and os.name != "posix":
        return  # Windows cannot open folders
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _previous(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.previous"


def _swap(draft: Path, folder: Path) -> None:
    """No system call replaces a full folder: the old one steps aside, and comes back if the new one cannot."""
    previous = _previous(folder)
    if folder.exists():
        shutil.rmtree(previous, ignore_errors=True)
        folder.rename(previous)
    try:
        draft.rename(folder)
    except OSError:
        if previous.exists():
            previous.rename(folder)
        raise
    _to_disk(folder.parent)
    shutil.rmtree(previous, ignore_errors=True)


# --- reading ---------------------------------------------------------------------------------------------

_AGAIN = "copy or download the model folder again, or save it again from the run"
_PICKLED = (".ckpt", ".pt", ".pth", ".bin", ".pkl")
_HUGGING_FACE = ("config.json", "model_index.json", "diffusion_pytorch_model.safetensors")


def _why_no_card(folder: Path) -> str:
    wanted = f"expected a folder with {WEIGHTS}, {CONFIG} and {CARD}"
    if folder.suffix in _PICKLED and folder.is_file():
        return (
            f"{folder} is a checkpoint for resuming training, and reading pickles can run code; {wanted}; "
            "load the model folder of its run, or resume the run and let it finish"
        )
    if folder.is_file():
        return f"{folder} is a file, {wanted}; name the folder it lies in"
    if not folder.exists():
        return f"{folder} does not exist, {wanted}; check the path"
    names = sorted(path.name for path in folder.iterdir())
    if (folder / "model" / CARD).is_file():
        return f"{folder} is a run folder, {wanted}; load {folder / 'model'}"
    if CONFIG in names and WEIGHTS not in names:
        return f"{folder} is a run that has not finished, so it holds no model yet; give the same `scildm fit` again"
    if any(name in _HUGGING_FACE for name in names):
        return f"{folder} is a Hugging Face model folder, {wanted}; sciLDM loads only models that it saved"
    if pickled := [name for name in names if name.endswith(_PICKLED)]:
        return f"{folder} holds a checkpoint ({pickled[0]}) but no finished model, {wanted}; resume the run"
    found = ", ".join(names[:6]) or "nothing"
    return f"{folder} holds no {CARD} (it holds {found}), {wanted}; {_AGAIN}"


def _read_card(path: Path) -> dict[str, Any]:
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError among them
        raise ArtefactError(f"{path} is no valid JSON: {error}; {_AGAIN}") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        got = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise ArtefactError(f"{path} is not ours: expected format {FORMAT!r}, got {got!r}; check the path")
    version = card.get("format_version")
    if type(version) is not int or version < 1:
        raise ArtefactError(f"{path} is damaged: expected a format_version from 1, got {version!r}; {_AGAIN}")
    if version > FORMAT_VERSION:
        raise ArtefactError(
            f"{path.parent} was saved by sciLDM {card.get('sciLDM')}: expected a format_version up to "
            f"{FORMAT_VERSION}, got {version}; upgrade with `pip install -U sciLDM`"
        )
    return card


def _recorded(path: Path, card: Mapping[str, Any], key: str) -> Any:
    try:
        return card["files"][path.name][key]
    except (KeyError, TypeError) as error:
        what = f"expected the {key} of {path.name} in it, got none"
        raise ArtefactError(f"{path.parent / CARD} is damaged: {what}; {_AGAIN}") from error


def _check_size(path: Path, card: Mapping[str, Any]) -> None:
    expected = _recorded(path, card, "bytes")
    if not path.is_file():
        raise ArtefactError(f"{path} is missing, expected a file of {expected} bytes; {_AGAIN}")
    got = path.stat().st_size
    # Only the weights are judged by size: a shorter or longer config was edited, and is better told so.
    if path.name == WEIGHTS and got != expected:
        what = "truncated" if got < expected else "damaged"
        raise ArtefactError(f"{path} is {what}: expected {expected} bytes, got {got}; {_AGAIN}")


def _check_hash(path: Path, card: Mapping[str, Any]) -> None:
    expected, got = _recorded(path, card, "sha256"), _sha256(path)
    if got != expected:
        raise ArtefactError(
            f"{path} was changed after it was saved: expected sha256 {expected}, got {got}; {_AGAIN}"
        )


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ArtefactError(f"{path} is no valid YAML: {error}; {_AGAIN}") from error
    if not isinstance(config, dict):
        raise ArtefactError(f"{path} is damaged: expected a mapping, got {type(config).__name__}; {_AGAIN}")
    return config
