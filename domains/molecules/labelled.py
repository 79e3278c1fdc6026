"""A user's table with a measured quantity: molecules that a model can represent, values, and fingerprints.

Fingerprints are counts of Morgan environments of radius 2 (Rogers & Hahn 2010, doi:10.1021/ci100050t): what a
prediction from latents has to be compared with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from rdkit import Chem
from rdkit.Chem import rdFingerprintGenerator
from torch import Tensor

from sciLDM.domains.molecules.codec import MoleculeCodec
from sciLDM.domains.molecules.featurise import featurise
from sciLDM.domains.molecules.read import read_table

__all__ = ["LabelledMolecules", "morgan_counts", "read_labelled"]

_BITS = 2048


@final
@dataclass(frozen=True)
class LabelledMolecules:
    """Molecules with one quantity.

    Attributes:
        objects: Canonical SMILES.
        values: Of the quantity, NaN where missing.
        rows: Where each stood in the file, from 0.
        notes: What was left out, and why.
    """

    objects: list[str]
    values: Float[np.ndarray, " molecules"]
    rows: np.ndarray
    notes: list[str]

    def fingerprints(self) -> Float[Tensor, "molecules bits"]:
        """Of the molecules; see `morgan_counts`."""
        return morgan_counts(self.objects)

    def write(self, path: Path, columns: dict[str, np.ndarray]) -> Path:
        """A CSV with the file's row, SMILES, the known values and further columns."""
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame({"row": self.rows, "smiles": self.objects, **columns}).to_csv(path, index=False)
        return path


def read_labelled(path: Path, target: str | None, codec: MoleculeCodec) -> LabelledMolecules:
    """Molecules of a file that the model can represent.

    Args:
        path: As for `read_table`.
        target: Column with the quantity; None for molecules alone.
        codec: Of the model.

    Raises:
        DataError: A file that cannot be read, no such column, or no molecule that the model knows.
    """
    table = read_table(path, columns=[] if target is None else [target])
    found = featurise(table["smiles"].tolist(), vocabulary=codec.vocabulary, workers=1)
    notes = [str(line) for line in table.attrs.get("notes", ())]
    if len(found.rejected):
        reasons = found.rejected["reason"].value_counts()
        listed = "; ".join(f"{count} x {reason}" for reason, count in reasons.head(4).items())
        notes.append(
            f"{len(found.rejected)} of {len(table)} molecules cannot be represented by this model: {listed}"
        )
    values = np.full(len(found.smiles), np.nan)
    if target is not None:
        values = table[target].to_numpy(float)[found.kept]
    return LabelledMolecules(list(found.smiles), values, np.asarray(found.kept), notes)


def morgan_counts(smiles: Sequence[str]) -> Float[Tensor, "molecules bits"]:
    """Counts of Morgan environments of radius 2, folded to 2,048."""
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=_BITS)
    counts = [generator.GetCountFingerprintAsNumPy(Chem.MolFromSmiles(text)) for text in smiles]
    return torch.from_numpy(np.stack(counts).astype(np.float32))
