"""How like molecules are to a lead: Tanimoto similarity of Morgan fingerprints (radius 2, 2,048 bits)."""

from typing import Any

import numpy as np
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator

from sciLDM.domains.molecules.samples import MoleculeSamples
from sciLDM.errors import DataError

__all__ = ["tanimoto_to"]


def tanimoto_to(lead: Any, samples: MoleculeSamples) -> list[float]:
    """Similarity of each sample to the lead, from 0 to 1; NaN where a sample did not decode.

    Raises:
        DataError: A lead that is no molecule.
    """
    lead = lead[0] if isinstance(lead, list | tuple) and len(lead) == 1 else lead
    mol = Chem.MolFromSmiles(lead) if isinstance(lead, str) else lead
    if not isinstance(mol, Chem.Mol):
        raise DataError(f"lead: expected SMILES, got {lead!r}")
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=2048)
    own = generator.GetFingerprint(mol)
    return [
        np.nan if one is None else float(DataStructs.TanimotoSimilarity(own, generator.GetFingerprint(one)))
        for one in samples.mols
    ]
