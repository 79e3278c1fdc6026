"""Molecules as cards for the report: picture, what was asked for and got, most similar training molecule."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rdkit import Chem
from rdkit.Chem import rdDepictor
from rdkit.Chem.Draw import rdMolDraw2D

from sciLDM.evaluate.html import escape

__all__ = ["card", "cards", "drawing"]


def drawing(mol: Chem.Mol, width: int, height: int) -> str:
    """The molecule as an `<svg>` element without background."""
    flat = Chem.Mol(mol)
    rdDepictor.Compute2DCoords(flat)
    drawer = rdMolDraw2D.MolDraw2DSVG(width, height)
    options = drawer.drawOptions()
    options.clearBackground = False
    options.padding = 0.08
    options.fixedBondLength = 26.0  # the same scale on every card, unless a molecule would not fit
    rdMolDraw2D.PrepareAndDrawMolecule(drawer, flat)
    drawer.FinishDrawing()
    text = drawer.GetDrawingText()
    text = text[text.index("<svg") :]
    # Sizes come from the page; class names would only weigh.
    text = re.sub(r"width='\d+px' height='\d+px' ", "", text, count=1)
    return re.sub(r"\sclass='[^']*'", "", text).replace("\n", "")


def card(row: Mapping[str, Any], values: Sequence[tuple[str, float, float | None]]) -> str:
    """One molecule.

    Args:
        row: `smiles`, and where known `in_train`, `nearest_train_smiles` and `similarity`.
        values: Name, realised value, and requested value or None.
    """
    smiles = str(row["smiles"])
    mol = Chem.MolFromSmiles(smiles)
    picture = drawing(mol, 210, 150) if mol is not None else ""
    lines = [
        f"{escape(name)} <b>{_value(got)}</b>" + (f" · asked {_value(wanted)}" if wanted is not None else "")
        for name, got, wanted in values
    ]
    return (
        f'<div class="card"><div class="mol">{picture}</div><code>{escape(smiles)}</code>'
        f'<div class="vals">{"<br>".join(lines)}</div>{_nearest(row)}</div>'
    )


def cards(items: Sequence[str]) -> str:
    """Cards side by side."""
    return f'<div class="cards">{"".join(items)}</div>'


def _value(x: float) -> str:
    return f"{x:.3g}" if x == x else "–"


def _nearest(row: Mapping[str, Any]) -> str:
    other, similarity = row.get("nearest_train_smiles"), row.get("similarity")
    if not isinstance(other, str) or not isinstance(similarity, float) or similarity != similarity:
        return ""
    if row.get("in_train") in (True, "True"):
        return '<div class="near"><span></span><span>is a training molecule</span></div>'
    mol = Chem.MolFromSmiles(other)
    picture = drawing(mol, 120, 90) if mol is not None else ""
    share = f'<div class="bar"><i style="width:{100 * similarity:.0f}%"></i></div>'
    return (
        f'<div class="near"><div class="mol" title="{escape(other)}">{picture}</div>'
        f"<div>most similar in training, Tanimoto {similarity:.2f}{share}</div></div>"
    )
