"""`scildm doctor`."""

import argparse
from pathlib import Path
from typing import Any

from sciLDM.cli._console import Bars, note, out, print_table
from sciLDM.cli._models import results_folder, use_threads
from sciLDM.errors import ArtefactError

__all__ = ["run"]

_MARK = {"problem": "PROBLEM", "note": "note   ", "good": "fine   "}


def run(args: argparse.Namespace) -> int:
    """Examine, print tables and verdict, write the page. Status 0 also when problems are found: it is advice."""
    from sciLDM.evaluate.doctor import STEPS, diagnose
    from sciLDM.evaluate.doctor_page import write_page

    use_threads(args.threads)
    model, experiment, folder = _open(args.run)
    with Bars() as bars:
        found = diagnose(
            experiment,
            model=model,
            run=folder,
            name=Path(args.run).resolve().name if folder else args.run,
            steps=args.steps or STEPS,
            own=args.samples,
            seed=args.seed,
            progress=bars,
        )
    _print(found)
    path = write_page(found, results_folder(args.run, args.output) / "doctor.html")
    note(f"written: {path}")
    return 0


def _open(name: str) -> tuple[Any, Any, Path | None]:
    """Model, experiment and run folder; the model is None while training goes on, the folder for a shipped model."""
    from sciLDM.experiment import instantiate, read_config
    from sciLDM.model import load

    path = Path(name)
    run = path.parent if path.name == "model" and (path / "card.json").exists() else path
    try:
        model = load(name)
    except ArtefactError:
        if not (run / "config.yaml").exists() or (run / "model").exists():
            raise
        note("this run has no finished model yet: what there is, is examined")
        return None, instantiate(read_config(run / "config.yaml")), run
    return model, model.experiment, run if (run / "config.yaml").exists() else None


def _print(found: Any) -> None:
    from sciLDM.evaluate.doctor_page import guidance_table, solver_table, temperature_table

    out(f"latents: {found.source or 'none'}")
    for name, value in {**found.latents, **found.sampler}.items():
        if value not in (None, ""):
            out(f"  {name}: {value}")
    tables = [
        ("spread by steps (temperature 1, no guidance)", solver_table(found.solver)),
        ("the same, grid continued to low noise", solver_table(found.extended)),
        ("spread by temperature", temperature_table(found.temperature, found.sampler["temperature"])),
        ("guidance: one standard deviation asked for", guidance_table(found.guidance)),
        ("reconstruction gate", found.gate),
        ("calibration of error bars", found.calibration),
    ]
    for title, rows in tables:
        if rows:
            print_table(rows, list(rows[0]), title=title)
    out("verdict")
    for finding in found.findings:
        out(f"  {_MARK[finding.kind]}  {finding.text}")
