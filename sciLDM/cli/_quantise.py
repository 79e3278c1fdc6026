"""`scildm quantise`."""

import argparse
from pathlib import Path

from sciLDM.cli._console import note

__all__ = ["run"]


def run(args: argparse.Namespace) -> None:
    """Save again with 8-bit weights, and say what that saved."""
    from sciLDM.artefact import find_artefact
    from sciLDM.compress import quantise
    from sciLDM.model import load

    before = _megabytes(find_artefact(args.run))
    folder = quantise(load(args.run), Path(args.output))
    note(f"{folder}: {_megabytes(folder):.2f} MB of weights, {before:.2f} MB before")


def _megabytes(folder: Path) -> float:
    return (folder / "model.safetensors").stat().st_size / 1e6
