"""Domain adapters, found by entry point and loaded only when used.

A broken or incomplete installation of one adapter never breaks the others: the error comes when that adapter is asked
for, and says what to install.
"""

import difflib
from dataclasses import dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec

from sciLDM.domain import Domain
from sciLDM.errors import ConfigError, MissingExtra

__all__ = ["GROUP", "Adapter", "adapters", "class_path", "load_domain"]

GROUP = "sciLDM.domains"

_BUILT_IN = {"molecules": "sciLDM.domains.molecules:Molecules"}
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
    """
    targets = _targets()
    if name not in targets:
        near = difflib.get_close_matches(name, targets, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"no domain {name!r}; installed: {', '.join(sorted(targets)) or 'none'}{hint}")
    module, _, attribute = targets[name].partition(":")
    try:
        loaded = getattr(__import__(module, fromlist=[attribute]), attribute)
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"domain {name!r} needs {error.name}, which is not installed: pip install \"sciLDM[{name}]\""
        ) from error
    return loaded


def class_path(name: str) -> str:
    """Import path of a domain given by short name or by import path."""
    if "." in name:
        module = name.rpartition(".")[0]
        try:
            known = find_spec(module) is not None
        except ModuleNotFoundError:
            known = False
        if not known:
            raise ConfigError(f"domain: no module {module!r}; known short names: {', '.join(sorted(_targets()))}")
        return name
    loaded = load_domain(name)
    return f"{loaded.__module__}.{loaded.__qualname__}"


def _targets() -> dict[str, str]:
    return {**_BUILT_IN, **{point.name: point.value for point in entry_points(group=GROUP)}}
