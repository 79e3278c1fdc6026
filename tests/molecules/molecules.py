"""Small molecules that stand for what the adapter meets; no test here needs a data set."""

from collections.abc import Sequence

import torch
from rdkit import Chem

from sciLDM.domains.molecules.autoencoder import GraphLogits
from sciLDM.domains.molecules.featurise import Featurised, featurise
from sciLDM.domains.molecules.vocabulary import Vocabulary

QM9_LIKE = [
    "C",
    "N",
    "O",
    "CC",
    "CO",
    "C=O",
    "C#N",
    "CCO",
    "CCN",
    "CC=O",
    "CC#N",
    "C1CC1",
    "C1CO1",
    "CCC",
    "CNC",
    "COC",
    "NC=O",
    "OC=O",
    "FC(F)F",
    "CC(C)C",
    "CC(C)(C)C",
    "C=CC=O",
    "c1ccccc1",
    "c1cc[nH]c1",
    "c1ccoc1",
    "c1ccncc1",
    "C1CCC1",
    "C1CCCC1",
    "CC(=O)[O-]",
    "C[NH3+]",
    "[O-][N+](=O)C",
    "C[N+]#[C-]",
    "C[C@H](N)O",
    "C[C@@H](N)O",
    "C/C=C/C",
    "C/C=C\\C",
    "F/C=C/F",
    "F/C=C\\F",
    "[H]/N=C/C",
    "OC1CC1",
    "C1=CCC1",
    "C#CC#C",
    "CC#CC",
    "O=C1CC1",
    "CN(C)C",
    "CCCC",
    "CCOC",
    "NCCO",
    "OCCO",
    "CC(N)=O",
    "CNC=O",
    "COC=O",
    "C1CCOC1",
    "C1CCNC1",
    "CC1CC1",
    "C=C",
    "C#C",
    "OO",
    "NN",
    "CF",
]
"""Sixty molecules of up to six heavy atoms, with charges, rings, chirality and double-bond geometry."""

DRUG_LIKE = [
    "CC(=O)Oc1ccccc1C(=O)O",
    "CN1C=NC2=C1C(=O)N(C(=O)N2C)C",
    "CS(=O)(=O)c1ccc(Cl)cc1",
    "O=S(=O)(N)c1ccc(Br)s1",
    "CP(=O)(O)OC",
    "C[S+](C)CC[C@H](N)C(=O)[O-]",
    "Ic1ccccc1",
    "C[N-]S(=O)(=O)C",
    "C[P+](C)(C)C",
    "c1ccc2c(c1)[nH]c1ccccc12",
    "C[n+]1ccccc1",
    "C/C(=N\\O)c1ccncc1",
    "CSC(=S)N",
    "OB(O)c1ccccc1",
    "C[Si](C)(C)O",
    "FS(F)(F)(F)(F)c1ccccc1",
    "O=P(O)(O)O",
    "c1cc[o+]cc1",
    "CN=[N+]=[N-]",
]
"""Functional groups of drugs: sulphur up to six bonds, phosphorus, halogens, ylides, charged rings."""


def features(smiles: Sequence[str] = QM9_LIKE, vocabulary: Vocabulary | None = None) -> Featurised:
    """Graphs of some SMILES, in this process."""
    return featurise(list(smiles), workers=1, vocabulary=vocabulary)


def logits_of(found: Featurised, rows: Sequence[int], *, certainty: float = 8.0) -> GraphLogits:
    """Decoder output that says exactly these molecules."""
    graphs, sizes = found.graphs.select(list(rows)), found.graphs.sizes()[list(rows)]
    count, n = len(rows), int(sizes.max())
    table = torch.tensor(found.vocabulary.type_table)
    out = {
        "types": torch.zeros(count, n, len(found.vocabulary.types)),
        "chirality": torch.zeros(count, n, 3),
        "order": torch.zeros(count, n, n, 4),
        "stereo": torch.zeros(count, n, n, 3),
    }
    out["order"][..., 0] = certainty
    for k in range(count):
        atoms = range(graphs.atom_offset[k], graphs.atom_offset[k + 1])
        for i, a in enumerate(atoms):
            out["types"][k, i, table[int(graphs.element[a]), int(graphs.charge[a])]] = certainty
            out["chirality"][k, i, int(graphs.chirality[a])] = certainty
        for b in range(graphs.bond_offset[k], graphs.bond_offset[k + 1]):
            i, j = (int(v) for v in graphs.bond_index[:, b])
            out["order"][k, i, j] = torch.eye(4)[int(graphs.bond_order[b])] * certainty
            out["stereo"][k, i, j, int(graphs.bond_stereo[b])] = certainty
    mask = torch.arange(n)[None] < torch.as_tensor(sizes)[:, None]
    return GraphLogits(out["types"], out["chirality"], out["order"], out["stereo"], mask)


def valences(mol: Chem.Mol) -> list[tuple[str, int, int]]:
    """Element, charge and total valence (bonds in the Kekule form and hydrogens) of every heavy atom."""
    kekule = Chem.RemoveHs(mol)
    Chem.Kekulize(kekule, clearAromaticFlags=True)
    return [
        (
            a.GetSymbol(),
            a.GetFormalCharge(),
            round(sum(b.GetBondTypeAsDouble() for b in a.GetBonds())) + a.GetTotalNumHs(),
        )
        for a in kekule.GetAtoms()
        if a.GetAtomicNum() > 1
    ]
