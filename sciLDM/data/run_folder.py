"""A run folder belongs to one configuration and one data set: it is claimed, continued, or refused."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from sciLDM.domain import Corpus
from sciLDM.errors import ConfigError

__all__ = ["claim", "rank", "same_data", "write_json"]


def claim(
    run: Path,
    config: Mapping[str, Any],
    say: Callable[[str], None],
    *,
    complete: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
) -> None:
    """Take the folder for this configuration, or refuse to mix two.

    Args:
        run: The folder.
        config: A complete configuration.
        say: Receives a line.
        complete: Fills what a stored configuration does not say: an older version knew fewer options.
    """
    stored = run / "config.yaml"
    if run.exists() and not run.is_dir():
        raise ConfigError(f"{run} is a file, expected a folder for the run; choose another --output")
    if stored.exists() and _started(run):
        before = _read_stored(stored)
        with suppress(ConfigError):  # an option has gone or changed its meaning: compared as it is
            before = complete(before)
        _check_same_run(run, before, config)
        say(f"continuing {run} ({time.strftime('%Y-%m-%d %H:%M')})")
    elif not stored.exists() and run.exists() and any(run.iterdir()):
        raise ConfigError(f"{run} exists and is not a run of sciLDM; choose another --output")
    try:
        run.mkdir(parents=True, exist_ok=True)
        if rank() == 0:
            partial = run / ".config.partial"
            partial.write_text(yaml.safe_dump(dict(config), sort_keys=False), encoding="utf-8")
            partial.replace(stored)
    except OSError as error:
        raise ConfigError(
            f"cannot write to {run}: {error.strerror or error}; choose another --output"
        ) from error


def _started(run: Path) -> bool:
    """Whether anything was trained there; until then a mended configuration or table may take over."""
    return any((run / part).exists() for part in ("autoencoder", "denoiser", "model"))


def _read_stored(path: Path) -> Mapping[str, Any]:
    try:
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is damaged ({error}); remove {path.parent}, or choose another --output"
        ) from error
    if not isinstance(before, Mapping):
        raise ConfigError(f"{path} is damaged; remove {path.parent}, or choose another --output")
    return before


def _check_same_run(run: Path, before: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    if differing := sorted(_differences(before, dict(config))):
        name = differing[0]
        raise ConfigError(
            f"{run} holds a run with another configuration (differs in {', '.join(differing[:5])}; {name} was "
            f"{_at(before, name)!r}, is {_at(config, name)!r}); choose another --output, or remove that folder"
        )
    trained = (run / "denoiser" / "last.ckpt").exists()
    for name in ("autoencoder_stage.max_steps", "autoencoder_stage.max_minutes"):
        if trained and _at(before, name) != _at(config, name):
            raise ConfigError(
                f"{run}: {name} was {_at(before, name)}, is {_at(config, name)}, but the denoiser has been trained on "
                f"latents of that autoencoder; remove {run / 'denoiser'} to train both, or restore {name}"
            )


def _at(config: Mapping[str, Any], dotted: str) -> Any:
    here: Any = config
    for part in dotted.split("."):
        here = here.get(part) if isinstance(here, Mapping) else None
    return here


def same_data(run: Path, corpus: Corpus) -> None:
    """The options name a file, and files change: an unfinished run must not go on with other data."""
    path = run / "data.json"
    if not path.exists() or not _started(run):
        if rank() == 0:
            write_json(path, {"fingerprint": corpus.fingerprint, "sizes": dict(corpus.sizes)})
        return
    try:
        known = json.loads(path.read_text(encoding="utf-8"))["fingerprint"]
    except (ValueError, KeyError, TypeError):
        known = None
    if known != corpus.fingerprint:
        raise ConfigError(
            f"the data are not those that {run} was started with; restore the file, choose another --output, or remove "
            "that folder"
        )


def _differences(a: Any, b: Any, path: str = "") -> Iterator[str]:
    """Dotted names of options that differ. Where and how long it runs may change when a run is continued."""
    if path in ("trainer", "ignore_gate") or path.endswith(
        ("_stage.max_steps", "_stage.max_minutes", "_every")
    ):
        return
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in sorted({*a, *b}, key=str):
            yield from _differences(a.get(key), b.get(key), f"{path}.{key}".strip("."))
    elif a != b:
        yield path


def rank() -> int:
    """Number of this process among those that train together; 0 writes."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write at once or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2, default=float) + "\n", encoding="utf-8")
    partial.replace(path)
