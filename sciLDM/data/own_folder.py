"""The folder of a model that is made from another: continued by the same call, refused to any other."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from sciLDM.data.run_folder import rank, write_json
from sciLDM.errors import ConfigError

__all__ = ["own_folder"]

_ASKED = "asked.json"
_MAY_DIFFER = ("max_steps", "max_minutes", "validate_every", "checkpoint_every", "log_every", "workers")


def own_folder(folder: Path, asked: Mapping[str, Any], say: Callable[[str], None]) -> None:
    """Take a folder, or go on in it.

    Args:
        folder: New, empty, or left by the same call.
        asked: What decides the result; how long it runs may change.
        say: Receives a line.

    Raises:
        ConfigError: It holds something else.
    """
    path = folder / _ASKED
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file, expected a folder for the new model; choose another --output")
    plain = json.loads(json.dumps(asked))
    if path.exists():
        if _kept(json.loads(path.read_text(encoding="utf-8"))) != _kept(plain):
            raise ConfigError(
                f"{folder} holds a model that was made from other weights, other data or with other settings; choose "
                "another --output, or remove that folder"
            )
        say(f"continuing {folder}")
    elif folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} exists and holds something else; choose another --output")
    if rank() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, plain)


def _kept(asked: Any) -> Any:
    if isinstance(asked, dict):
        return {name: _kept(value) for name, value in asked.items() if name not in _MAY_DIFFER}
    return asked
