"""`scildm models`."""

import argparse
import json
from typing import Any

from sciLDM.artefact import shipped_artefacts
from sciLDM.cli._console import note, print_table

__all__ = ["run"]


def run(_args: argparse.Namespace) -> None:
    """List shipped models by their cards."""
    found = shipped_artefacts()
    if not found:
        note("no models come with this installation; train one: `scildm demo`")
        return
    cards = {
        name: json.loads((folder / "card.json").read_text(encoding="utf-8")) for name, folder in found.items()
    }
    print_table(
        [_row(n, card) for n, card in cards.items()], ("model", "domain", "data", "ask for", "MB", "made")
    )
    note(f"use one by name: `scildm sample {next(iter(found))} -n 100`")


def _row(name: str, card: dict[str, Any]) -> dict[str, Any]:
    state = card.get("state", {})
    size = card.get("files", {}).get("model.safetensors", {}).get("bytes", 0) / 1e6
    return {
        "model": name,
        "domain": card.get("domain", ""),
        "data": state.get("source", {}).get("name", ""),
        "ask for": ", ".join(p.get("name", "") for p in state.get("properties", [])),
        "MB": round(size, 1),
        "made": str(card.get("created", ""))[:10],
    }
