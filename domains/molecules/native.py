"""The user's own molecules for a trained model: SMILES, RDKit molecules or samples in, graphs and labels out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rdkit import Chem
from rdkit.Chem import rdDepictor
from rdkit.Chem.Draw import rdMolDraw2D
from torch_geometric.data import Batch

from sciLDM.domain import Request, broadcast_labels
from sciLDM.domains.molecules._perceive import Options, perceive_chunk
from sciLDM.domains.molecules.descriptors import describe
from sciLDM.domains.molecules.featurise import featurise
from sciLDM.domains.molecules.reference import Reference, find_reference
from sciLDM.domains.molecules.samples import MoleculeSamples
from sciLDM.errors import ConfigError, DataError

if TYPE_CHECKING:
    from sciLDM.domains.molecules.codec import MoleculeCodec

__all__ = ["draw_contributions", "read_molecules", "write_items"]

_SHOWN = 5
_RED, _BLUE = np.array([0.85, 0.25, 0.2]), np.array([0.2, 0.4, 0.85])


def read_molecules(
    codec: "MoleculeCodec", objects: Any, cond: Mapping[str, Any] | None, *, atoms: str
) -> tuple[Batch, Request]:
    """Graphs in canonical order, and a request with the number of atoms and the properties RDKit can compute.

    Args:
        codec: Vocabulary and properties of the model.
        objects: SMILES, RDKit molecules (one or several), or `MoleculeSamples`.
        cond: Properties that replace the molecules' own; the number of atoms cannot be replaced.
        atoms: Name of the condition that carries the number of atoms.

    Raises:
        DataError: A molecule that this model cannot represent; the reasons are told.
        ConfigError: An unknown property, or another number of atoms than a molecule has.
    """
    smiles = _smiles(objects)
    # Asked before featurising, which only counts reasons where no molecule at all is left.
    rejected = perceive_chunk(
        range(len(smiles)), smiles, None, Options(codec.vocabulary.max_atoms, False)
    ).rejected
    if not rejected:
        found = featurise(smiles, vocabulary=codec.vocabulary, workers=1)
        rejected = list(found.rejected.itertuples(index=False, name=None))
    if rejected:
        said = "; ".join(f"number {row} ({text}): {reason}" for row, text, reason in rejected[:_SHOWN])
        raise DataError(f"{len(rejected)} of the molecules cannot be represented by this model: {said}")
    count = len(found.smiles)
    sizes = torch.as_tensor(found.graphs.sizes())
    names = [p.name for p in codec.properties]
    known = [p.name for p in codec.properties if p.descriptor]
    labels = {name: torch.full((count,), float("nan")) for name in names}
    if known:
        table = describe(found.smiles, known, workers=1)
        labels |= {name: torch.as_tensor(table[name].to_numpy(np.float32)) for name in known}
    asked = broadcast_labels(cond or {}, count, [atoms, *names])
    wanted = asked.pop(atoms, None)
    if wanted is not None and not torch.equal(wanted, sizes.float()):
        raise ConfigError(
            f"{atoms}: a molecule keeps its number of heavy atoms; use model.sample(cond={{'{atoms}': ...}}) for others"
        )
    mask = torch.arange(codec.shape[0])[None] < sizes[:, None]
    request = Request(codec.shape, {atoms: sizes, **labels, **asked}, mask, frozenset({atoms}))
    return found.graphs.to_batch(np.arange(count)), request


def write_items(folder: Path, objects: Any, reference: Path | None, source: Mapping[str, Any]) -> None:
    """A reference whose training molecules are these, after the ones known before (of `reference` or `source`)."""
    own = [Chem.MolToSmiles(Chem.MolFromSmiles(text)) for text in _smiles(objects) if text is not None]
    known = find_reference(reference, source)
    old = [] if known is None else known.train
    Reference.write(folder, list(dict.fromkeys([*old, *own])), [] if known is None else known.test)


def draw_contributions(
    molecule: str | Chem.Mol, contributions: Sequence[float] | np.ndarray | torch.Tensor, *, size: int = 260
) -> str:
    """SVG of a molecule with its atoms coloured: red raises, blue lowers, more colour for more.

    Args:
        molecule: SMILES or RDKit molecule.
        contributions: One number an atom in the order of the canonical SMILES, as `Saliency.per_cell` has them; what
            follows the last atom is ignored.
        size: Width and height [pixels].

    Raises:
        DataError: Fewer numbers than atoms, or no molecule.
    """
    (text,) = _smiles(molecule)
    mol = Chem.MolFromSmiles(text) if text else None
    mol = (
        None if mol is None else Chem.MolFromSmiles(Chem.MolToSmiles(mol))
    )  # atoms in the order of the latents
    if mol is None:
        raise DataError(f"expected a molecule, got {molecule!r}")
    values = np.asarray(contributions, dtype=float)[: mol.GetNumAtoms()]
    if len(values) < mol.GetNumAtoms() or not np.isfinite(values).all():
        raise DataError(
            f"expected a finite number for each of {mol.GetNumAtoms()} atoms, got {contributions!r}"
        )
    strength = np.abs(values) / max(float(np.abs(values).max()), 1e-12)
    colours = {
        k: tuple((1 - s * (1 - (_RED if v > 0 else _BLUE))).tolist())
        for k, (v, s) in enumerate(zip(values, strength, strict=True))
    }
    rdDepictor.Compute2DCoords(mol)
    drawer = rdMolDraw2D.MolDraw2DSVG(size, size)
    rdMolDraw2D.PrepareAndDrawMolecule(
        drawer, mol, highlightAtoms=list(colours), highlightAtomColors=colours, highlightBonds=[]
    )
    drawer.FinishDrawing()
    text = drawer.GetDrawingText()
    return text[text.index("<svg") :]


def _smiles(objects: Any) -> list[str | None]:
    """SMILES of whatever was given; None where there is no molecule."""
    if isinstance(objects, MoleculeSamples):
        return [s if isinstance(s, str) else None for s in objects.table["smiles"]]
    if isinstance(objects, str | Chem.Mol):
        objects = [objects]
    try:
        listed = list(objects)
    except TypeError as error:
        raise DataError(f"expected SMILES or RDKit molecules, got {type(objects).__name__}") from error
    if wrong := [o for o in listed if not (o is None or isinstance(o, str | Chem.Mol))]:
        raise DataError(f"expected SMILES or RDKit molecules, got {wrong[0]!r}")
    return [Chem.MolToSmiles(o) if isinstance(o, Chem.Mol) else o for o in listed]
