"""Options of the configuration on the command line: `--a.b=c`, `--a.b c`, `--set a.b=c`."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sciLDM.cli._near import near
from sciLDM.cli._parser import UsageError
from sciLDM.errors import ConfigError

__all__ = ["complete_config", "names_of", "parse_overrides"]


def parse_overrides(tokens: Sequence[str], options: Sequence[str]) -> dict[str, Any]:
    """Dotted names and their values, read as YAML.

    Args:
        tokens: `a.b=c` from --set, and what argparse did not know: `--a.b=c`, or `--a.b` and `c`.
        options: The command's own options, for hints.

    Raises:
        UsageError: A name without a value, or a value without a name.
    """
    found: dict[str, Any] = {}
    waiting: str | None = None
    for token in tokens:
        if waiting is not None and not token.startswith("--"):
            found[waiting], waiting = _value(token, waiting), None
            continue
        if waiting is not None:
            raise UsageError(_no_value(waiting, options))
        name, equals, text = token.removeprefix("--").partition("=")
        if not equals and not token.startswith("--"):
            raise UsageError(f"unexpected argument {token!r}: expected NAME=VALUE or --name=value")
        if token.startswith("-") and not token.startswith("--"):
            raise UsageError(f"no option {token!r}{near(token, options)} (see `scildm fit --help`)")
        if equals:
            found[name] = _value(text, name)
        else:
            waiting = name
    if waiting is not None:
        raise UsageError(_no_value(waiting, options))
    return found


def complete_config(config: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`read_config`, with near names where an override does not exist.

    Raises:
        ConfigError: As `read_config`.
    """
    from sciLDM.experiment import read_config

    path = Path(config)
    if not path.exists():
        near_by = path.parent if path.parent != Path(".") else Path("configs")
        there = [
            str(p) for p in sorted((near_by if near_by.is_dir() else Path("configs")).rglob("*.yaml"))[:200]
        ]
        listed = f"; there are {', '.join(there[:6])}" if there else ""
        raise ConfigError(f"no configuration {config!r}{near(config, there) or listed}")
    try:
        return read_config(path, overrides)
    except ConfigError as error:
        known = list(names_of(read_config(path)))
        groups = {name.rpartition(".")[0] for name in known} | {name.partition(".")[0] for name in known}
        # Another class has other options; then only the parser itself knows.
        exchanged = {name.removesuffix(".class_path") for name in overrides if name.endswith(".class_path")}
        for name in overrides:
            if name in known or name in groups or any(name.startswith(group) for group in exchanged):
                continue
            hint = near(name, [*known, "output", "set", "threads"]) or _by_last_part(name, known)
            raise ConfigError(
                f"no option {name!r} in this configuration{hint} (all: `scildm fit {config} --print-config`)"
            ) from error
        raise


def names_of(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of all values in a configuration."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from names_of(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _by_last_part(name: str, known: Sequence[str]) -> str:
    last = name.rpartition(".")[2]
    found = [k for k in known if k.rpartition(".")[2] == last][:3]
    return f"; did you mean {' or '.join(found)}?" if found else ""


def _no_value(name: str, options: Sequence[str]) -> str:
    return f"option --{name} has no value: expected --{name}=VALUE{near(f'--{name}', options)}"


def _value(text: str, name: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UsageError(f"--{name}: {text!r} is not YAML ({str(error).splitlines()[0]})") from error
    if isinstance(value, str):
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as text
        except ValueError:
            return value
    return value
