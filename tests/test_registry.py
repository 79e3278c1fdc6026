"""Adapters are found by name; a broken one is told, and breaks nobody else."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import sciLDM.registry as registry
from sciLDM.domain import Domain
from sciLDM.errors import ConfigError, MissingExtra
from sciLDM.registry import GROUP, adapters, class_path, load_domain


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Five third-party adapters: one that lacks a library, four that are broken."""
    (tmp_path / "their_climate.py").write_text("import no_such_library_at_all\n")
    (tmp_path / "their_genes.py").write_text("raise RuntimeError('half installed')\n")
    (tmp_path / "their_fields.py").write_text("Fields = dict\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    targets = {
        "climate": "their_climate:Climate",
        "genes": "their_genes:Genes",
        "fields": "their_fields:Fields",
        "volumes": "their_fields:Volumes",
        "gone": "their_removed_package:Gone",
    }
    points = [EntryPoint(name, target, GROUP) for name, target in targets.items()]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == GROUP else [])
    yield
    for name in ("their_climate", "their_genes", "their_fields"):
        sys.modules.pop(name, None)


def test_molecules_are_found() -> None:
    found = load_domain("molecules")
    assert issubclass(found, Domain)
    assert class_path("molecules") == f"{found.__module__}.{found.__qualname__}"
    assert class_path("sciLDM.domains.molecules.Molecules") == "sciLDM.domains.molecules.Molecules"


@pytest.mark.parametrize("name", ["molecule", "Molecules", "moleculs"])
def test_a_slip_gets_a_suggestion(name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"no domain '{name}'; installed: .*molecules.*did you mean 'molecules'\?"
    ):
        load_domain(name)


@pytest.mark.usefixtures("installed")
def test_a_missing_library_names_the_install_line() -> None:
    with pytest.raises(MissingExtra, match=r"domain 'climate' needs no_such_library_at_all.*pip install"):
        load_domain("climate")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("genes", "RuntimeError: half installed"),
        ("fields", "is no sciLDM.domain.Domain"),
        ("volumes", "has no class Volumes"),
        ("gone", "their_removed_package"),
    ],
)
def test_a_broken_adapter_is_a_clear_error(name: str, reason: str) -> None:
    with pytest.raises((ConfigError, MissingExtra), match=reason):
        load_domain(name)


@pytest.mark.usefixtures("installed")
def test_one_broken_adapter_does_not_hide_the_others() -> None:
    found = {adapter.name: adapter.problem for adapter in adapters()}
    assert set(found) == {"climate", "genes", "fields", "volumes", "gone", "medical", "molecules"}
    ours = {"medical", "molecules"}  # `climate` is hidden by a broken one of that name
    assert all((found[name] is None) == (name in ours) for name in found)


@pytest.mark.parametrize("path", ["nothing.here.X", "sciLDM.nothing.X", ".X", "sciLDM..X"])
def test_import_paths_that_lead_nowhere(path: str) -> None:
    with pytest.raises(ConfigError, match=r"no module .*known short names: .*molecules"):
        class_path(path)
