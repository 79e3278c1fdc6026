"""`scildm report`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from sciLDM.cli._console import note, out
from sciLDM.cli._models import Model, results_folder
from sciLDM.errors import ArtefactError, SciLDMError
from sciLDM.evaluate.hooks import Material, ReportsSections, Section
from sciLDM.evaluate.report import write_report
from sciLDM.evaluate.store import Stored

__all__ = ["make_report", "run"]


def run(args: argparse.Namespace) -> None:
    """Write the report and say where it is."""
    from sciLDM.model import load

    folder = results_folder(args.run, args.output)
    try:
        model = load(args.run)
    except ArtefactError:
        # An unfinished run has curves worth looking at.
        if not (folder / "config.yaml").exists() or (folder / "model").exists():
            raise
        note("this run has no finished model yet: the report shows its training alone")
        model = None
    out(str(make_report(model, folder, name=folder.resolve().name)))


def make_report(model: Model | None, folder: Path, *, name: str | None = None) -> Path:
    """Generic report, with the domain's sections when there is a model and the domain has some."""
    folder.mkdir(parents=True, exist_ok=True)
    if model is None:
        return write_report(folder, name=name)
    sections = _domain_sections(model, folder)
    return write_report(
        folder, card=model.card, gate=model.experiment.domain.gate, sections=sections, name=name
    )


def _domain_sections(model: Model, folder: Path) -> Sequence[Section]:
    domain, stored = model.experiment.domain, Stored(folder)
    if not isinstance(domain, ReportsSections):
        return []
    material = Material(
        run=folder,
        samples=stored.samples if stored.samples.exists() else None,
        points=stored.points if stored.points.exists() else None,
        evaluation=stored.read(),
        codec=model.codec,
        reference=model.reference,
    )
    try:
        return domain.report_sections(material)
    except SciLDMError as error:
        note(f"warning: the {model.experiment.domain.name} part of the report is left out: {error}")
        return []
