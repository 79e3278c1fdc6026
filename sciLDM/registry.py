"""Domain adapters, found by entry point and loaded only when used.

A broken or incomplete installation of one adapter never breaks the others: the error comes when that adapter is asked
for, and says what to install.
"""

import difflib
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec

from sciLDM.domain import Domain
from sciLDM.errors import ConfigError, MissingExtra

__all__ = ["GROUP", "Adapter", "adapters", "class_path", "load_domain"]

GROUP = "sciLDM.domains"

_BUILT_IN = {
    "climate": "sciLDM.domains.climate:Climate",
    "medical": "sciLDM.domains.medical:Medical",
    "molecules": "sciLDM.domains.molecules:Molecules",
}
"""Found without installation metadata too, so that a plain checkout on the path works."""


@dataclass(frozen=True)
class Adapter:
    """A domain that is installed, or could be.

    Attributes:
        name: Short name.
        target: `module:class`.
        problem: Why it cannot be loaded, or None.
    """

    name: str
    target: str
    problem: str | None


def adapters() -> list[Adapter]:
    """All adapters, those that cannot be loaded included, with the reason."""
    found = []
    for name, target in sorted(_targets().items()):
        try:
            load_domain(name)
            problem = None
        except Exception as error:  # an adapter may fail in any way; the others must not suffer
            problem = str(error)
        found.append(Adapter(name, target, problem))
    return found


def load_domain(name: str) -> type[Domain]:
    """The adapter class of a short name.

    Raises:
        ConfigError: No such adapter.
        MissingExtra: Its libraries are absent.
        ConfigError: It is broken.
    """
    targets = _targets()
    if name not in targets:
        near = difflib.get_close_matches(name.casefold(), targets, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"no domain {name!r}; installed: {', '.join(sorted(targets)) or 'none'}{hint}")
    module, _, attribute = targets[name].partition(":")
    package = targets[name].partition(".")[0].partition(":")[0]
    try:
        loaded = getattr(import_module(module), attribute, None)
    except ModuleNotFoundError as error:
        missing = error.name or module
        if missing.partition(".")[0] == package:
            raise ConfigError(
                f"domain {name!r}: there is no module {missing}; install its package again"
            ) from error
        remedy = f"sciLDM[{name}]" if name in _BUILT_IN else missing
        raise MissingExtra(
            f'domain {name!r} needs {missing}, which is not installed: pip install "{remedy}"'
        ) from error
    except Exception as error:  # somebody else's code: it may fail in any way
        raise ConfigError(f"domain {name!r} cannot be loaded ({type(error).__name__}: {error})") from error
    if loaded is None:
        raise ConfigError(f"domain {name!r}: {module} has no class {attribute}; install its package again")
    if not (isinstance(loaded, type) and issubclass(loaded, Domain)):
        raise ConfigError(f"domain {name!r}: {targets[name]} is no sciLDM.domain.Domain")
    return loaded


def class_path(name: str) -> str:
    """Import path of a domain given by short name or by import path."""
    if "." in name:
        module = name.rpartition(".")[0]
        try:
            known = find_spec(module) is not None
        except (ImportError, ValueError):
            known = False
        if not known:
            raise ConfigError(
                f"domain: no module {module!r}; known short names: {', '.join(sorted(_targets()))}"
            )
        return name
    loaded = load_domain(name)
    return f"{loaded.__module__}.{loaded.__qualname__}"


def _targets() -> dict[str, str]:
    return {**_BUILT_IN, **{point.name: point.value for point in entry_points(group=GROUP)}}
