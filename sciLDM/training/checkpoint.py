"""One file to continue a stage from: `last.ckpt`, replaced atomically, loadable with `weights_only=True`.

Keys: `format`, `stage`, `global_step`, `seconds`, `validation`, `state_dict`, `optimizer_states`, `ema`, `settings`
(plain numbers and strings), `samples` (size of the training split).
"""

import os
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sciLDM.errors import ArtefactError, ConfigError
from sciLDM.training.settings import StageSettings
from sciLDM.training.stage import Stage

__all__ = ["CHECKPOINT", "read_checkpoint", "restore_checkpoint", "write_checkpoint"]

CHECKPOINT = "last.ckpt"

_FORMAT = 1


def write_checkpoint(path: Path, stage: Stage, *, samples: int) -> None:
    """Write the stage's state; a crash leaves either the old file or the new one."""
    state = {"format": _FORMAT, "settings": asdict(stage.settings), "samples": samples, **stage.state()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, executing nothing.

    Raises:
        ArtefactError: The file is damaged, no checkpoint of ours, or newer than this version.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ArtefactError(
            f"cannot read checkpoint {path}: {error}. Delete it to start this stage anew"
        ) from error
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise ArtefactError(f"checkpoint {path}: expected format {_FORMAT}, got {found}; another version's?")
    return state


def restore_checkpoint(path: Path, stage: Stage, settings: StageSettings, *, samples: int) -> None:
    """Put a checkpoint's state into the stage.

    Raises:
        ConfigError: Data or settings that fix the order of batches have changed.
        ArtefactError: An unreadable checkpoint, or one of another network.
    """
    state = read_checkpoint(path)
    now = {"samples": samples, "batch_size": settings.batch_size, "seed": settings.seed}
    then = {"samples": state["samples"], **{name: state["settings"][name] for name in ("batch_size", "seed")}}
    changed = [f"{name} was {then[name]}, is {now[name]}" for name in now if then[name] != now[name]]
    if changed:
        raise ConfigError(
            f"cannot resume {path.parent}: {'; '.join(changed)}. These fix which samples each step sees: "
            "restore them, or start a new run"
        )
    stage.restore(state)
