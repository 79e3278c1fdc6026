"""The user's own molecules: reading them, and editing them with the shipped model."""

from typing import Any

import numpy as np
import pytest
import torch
from rdkit import Chem

import sciLDM
from sciLDM import explore
from sciLDM.artefact import shipped_artefacts
from sciLDM.domains.molecules.native import draw_contributions
from sciLDM.domains.molecules.reference import Reference
from sciLDM.errors import ConfigError, DataError
from sciLDM.model import LatentDiffusion
from sciLDM.samplers import DPMSolverPP2MSDE, LogSNRGrid

RINGS = ["Cc1ccccc1", "Oc1ccccc1", "Nc1ccccc1", "Cc1ccncc1", "O=Cc1ccccc1", "Cc1ccco1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LatentDiffusion:
    if "qm9-small" not in shipped_artefacts():
        pytest.skip("needs the shipped model qm9-small")
    torch.set_num_threads(1)
    model = sciLDM.load("qm9-small")
    model.reference = tmp_path_factory.mktemp("reference")
    Reference.write(model.reference, RINGS, RINGS)
    return model


def test_molecules_keep_their_order_and_tell_their_labels(model: LatentDiffusion) -> None:
    given = ["OC", Chem.MolFromSmiles("c1ccccc1C"), "C1=CC=CC=C1O"]
    encoded = explore.encode(model, given)
    assert encoded.z.shape == (3, 8, 9)
    assert encoded.request.cond["atoms"].tolist() == [2, 7, 7]
    assert encoded.request.mask is not None
    assert encoded.request.mask.sum(1).tolist() == [2, 7, 7]
    assert encoded.request.cond["TPSA"].tolist() == pytest.approx([20.23, 0.0, 20.23])
    assert float(encoded.z[0, :, 2:].abs().max()) == 0.0
    made = explore.decode(model, encoded)
    assert made.table["smiles"].tolist() == ["CO", "Cc1ccccc1", "Oc1ccccc1"]
    assert torch.equal(explore.encode(model, made).z, encoded.z)


def test_an_edit_of_little_strength_mostly_returns_the_molecule(model: LatentDiffusion) -> None:
    sampler = DPMSolverPP2MSDE(steps=16, grid=LogSNRGrid(-3.0, 1.5))
    shares = []
    for strength in (0.25, 0.75):
        made = explore.edit(model, RINGS, strength, samples=4, sampler=sampler).table["smiles"]
        shares.append(np.mean([a == b for a, b in zip(np.repeat(RINGS, 4), made, strict=True)]))
    assert shares[0] >= 0.9
    assert shares[1] <= 0.4
    asked = [
        explore.edit(model, RINGS, 0.6, cond={"logP": v}, guidance=2.0, samples=2, sampler=sampler)
        for v in (3.0, -1.0)
    ]
    high, low = (a.table["realised_logP"].mean() for a in asked)
    assert high > low + 0.8
    assert asked[0].table["requested_QED"].isna().all()


def test_paths_between_molecules_of_different_size(model: LatentDiffusion) -> None:
    path = explore.NoisePath(explore.ProbabilityFlow(6))
    made = explore.interpolate(model, "Cc1ccccc1", "CCOC(=O)CCC", 4, path=path)
    smiles = made.table["smiles"].tolist()
    assert smiles[0] == "Cc1ccccc1"
    assert smiles[3] == "CCCC(=O)OCC"
    assert made.table["valid_raw"].all()
    assert [Chem.MolFromSmiles(s).GetNumHeavyAtoms() for s in smiles] == [7, 7, 8, 8]
    changed = explore.counterfactual(
        model, ["Cc1ccccc1"] * 2, {"logP": [1.995, 0.5]}, flow=explore.ProbabilityFlow(6)
    )
    assert changed.table["smiles"][0] == "Cc1ccccc1"
    assert changed.table["realised_logP"][1] < 1.995


def test_polar_surface_is_seen_at_the_polar_atom(model: LatentDiffusion) -> None:
    """TPSA is a sum over N and O atoms; these molecules have one each, among seven atoms on average."""
    molecules = [
        "Oc1ccccc1",
        "CCCCCCO",
        "Nc1ccccc1",
        "CCCCC=O",
        "CCCCCO",
        "CCC(C)CO",
        "CC(C)(C)C=O",
        "C1CCOCC1",
    ]
    molecules += ["OC1CCCCC1", "CC(C)CN", "CCCCCN", "CC1CCCN1"]
    quantity = explore.Conditional("TPSA", draws=6)
    found = explore.saliency(model, molecules, quantity, method=explore.IntegratedGradients(4))
    strongest = found.importance.nan_to_num(-1.0).argmax(1).tolist()
    hits = []
    for text, atom in zip(molecules, strongest, strict=True):
        mol = Chem.MolFromSmiles(Chem.CanonSmiles(text))
        hits.append(mol.GetAtomWithIdx(atom).GetSymbol() in "NO")
    # 7 of 12 when written; by chance 0.15 each, so that 6 or more would come once in two hundred times.
    assert sum(hits) >= 6
    assert draw_contributions(molecules[0], found.per_cell[0]).startswith("<svg")


@pytest.mark.parametrize(
    ("objects", "cond", "error", "message"),
    [
        (["CCO", "C1CC"], None, DataError, r"1 of the molecules .* number 1 \(C1CC\): unparsable"),
        (["CCO", "CCl"], None, DataError, r"number 1 \(CCl\): element Cl is not in the vocabulary"),
        (["CCCCCCCCCCCC"], None, DataError, "12 heavy atoms, at most 9"),
        (["C.CO"], None, DataError, "salt or mixture"),
        ([None], None, DataError, "empty"),
        ([], None, DataError, "at least one SMILES"),
        ([3.5], None, DataError, "expected SMILES or RDKit molecules, got 3.5"),
        (7, None, DataError, "expected SMILES or RDKit molecules, got int"),
        ("CCO", {"atoms": 4}, ConfigError, "keeps its number of heavy atoms"),
        ("CCO", {"gap": 4}, ConfigError, "cannot condition on 'gap'"),
    ],
)
def test_molecules_that_cannot_be_read(
    model: LatentDiffusion, objects: Any, cond: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        explore.encode(model, objects, cond=cond)


def test_contributions_must_fit_the_molecule() -> None:
    with pytest.raises(DataError, match="a finite number for each of 3 atoms"):
        draw_contributions("CCO", [1.0, 2.0])
    with pytest.raises(DataError, match="expected a molecule"):
        draw_contributions("C1CC", [1.0])
