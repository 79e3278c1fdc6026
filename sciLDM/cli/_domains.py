"""`scildm domains`."""

import argparse

from sciLDM.cli._console import print_table
from sciLDM.registry import adapters

__all__ = ["run"]


def run(_args: argparse.Namespace) -> None:
    """List adapters, broken ones with what to do."""
    rows = [{"domain": a.name, "status": a.problem or "ready", "adapter": a.target} for a in adapters()]
    print_table(rows, ("domain", "status", "adapter"), wrap=("status",))
