"""Outputs that are made in blocks, survive a kill, and appear when they are complete.

Beside the output lies, until it is complete, a folder of the same name with `.partial`:

    out.zarr.partial/ request.json   what was asked for: another request is refused
                      content/...    the output as far as it is done
                      done/<block>   one empty file a finished block, made by a rename

A block counts as done only after all of it was written, so that a killed run repeats at most the block it was at.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
from torch import Tensor

from sciLDM.errors import ConfigError, DataError

__all__ = ["Draft", "plain"]

_CREATED = "created"


@final
class Draft:
    """An unfinished output; made by `open`.

    Attributes:
        path: Where the complete output will be.
        content: Where it is written.
        request: What was asked for, as plain JSON.
    """

    def __init__(self, path: Path, folder: Path, request: Mapping[str, Any]) -> None:
        self.path, self.request = path, dict(request)
        self._folder = folder
        self.content = folder / "content" / path.name
        self._done = folder / "done"

    @staticmethod
    def open(path: str | os.PathLike[str], request: Mapping[str, Any]) -> "Draft":
        """Start, or go on with what an interrupted call left.

        Args:
            path: Of the complete output.
            request: Everything that decides its content, as plain JSON (see `plain`).

        Raises:
            ConfigError: The unfinished output there was asked for in another way.
            DataError: The folder cannot be written to.
        """
        path = Path(path)
        folder = path.with_name(f"{path.name}.partial")
        asked = json.loads(json.dumps(dict(request)))
        stored = folder / "request.json"
        try:
            before = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else None
            if before is None:
                shutil.rmtree(folder, ignore_errors=True)  # killed before it had begun
                for part in ("done", "content"):
                    (folder / part).mkdir(parents=True)
                _at_once(stored, json.dumps(asked, indent=1))
        except (OSError, ValueError) as error:
            raise DataError(
                f"cannot write to {folder}: {error}; remove it, or choose another path"
            ) from error
        if before is not None:
            _refuse_other(folder, before, asked)
        return Draft(path, folder, asked)

    @property
    def created(self) -> bool:
        """Whether the content's layout is there, so that blocks can be written."""
        return (self._done / _CREATED).exists()

    @property
    def finished(self) -> bool:
        """Whether the output has been delivered and only the draft's folder is left."""
        return self.created and not self.content.exists() and self.path.exists()

    def clear(self) -> None:
        """Remove a layout that was not completed."""
        shutil.rmtree(self.content, ignore_errors=True)

    def created_now(self) -> None:
        """The layout is complete."""
        _at_once(self._done / _CREATED, "")

    def pending(self, blocks: int) -> list[int]:
        """Blocks of `0 .. blocks - 1` that are not done."""
        there = {entry.name for entry in self._done.iterdir()}
        return [k for k in range(blocks) if f"{k}" not in there]

    def mark(self, block: int) -> None:
        """This block is written."""
        _at_once(self._done / f"{block}", "")

    def finish(self) -> Path:
        """Put the complete output in its place; one that was there before is replaced."""
        if self.content.exists():
            if self.path.is_dir():
                self.path.rename(self._folder / "replaced")
            self.content.rename(self.path)
        shutil.rmtree(self._folder, ignore_errors=True)
        return self.path


def plain(value: Any) -> Any:
    """Settings as JSON: numbers and text stay, arrays and tensors become lists (long ones a hash), the rest text."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.generic):
        value = value.item() if value.dtype.kind in "biuf" else str(value)
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.size > 1000:
        digest = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return {"shape": list(value.shape), "dtype": value.dtype.str, "sha256": digest}
    if isinstance(value, np.ndarray | list | tuple | range):
        return [plain(v) for v in value]
    return str(value)


def _refuse_other(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if before != now:
        name = next(n for n in sorted({*before, *now}) if before.get(n) != now.get(n))
        raise ConfigError(
            f"{folder} holds an unfinished output that was asked for in another way ({name} was "
            f"{before.get(name)!r:.60}, is {now.get(name)!r:.60}); finish it with the same options, or remove it"
        )


def _at_once(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
