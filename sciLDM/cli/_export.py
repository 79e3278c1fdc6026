"""`scildm export`."""

import argparse

from sciLDM.cli._console import note

__all__ = ["run"]


def run(args: argparse.Namespace) -> None:
    """Write a part of a model for other programs, and say how near it is."""
    from sciLDM.compress import export
    from sciLDM.model import load

    found = export(load(args.run), args.output, part=args.part)
    note(f"{found.path}: {', '.join(found.inputs)} -> {', '.join(found.outputs)}")
    if found.difference is None:
        note("not compared with the model: onnxruntime is not installed")
    else:
        note(f"it differs by at most {found.difference:.1e} of the largest output")
