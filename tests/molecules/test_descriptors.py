"""Descriptors against published values and hand counts."""

import math

import pytest

pytest.importorskip("rdkit")

from rdkit import Chem

from sciLDM.domains.molecules.descriptors import DESCRIPTORS, describe
from sciLDM.errors import DataError

ASPIRIN = "CC(=O)Oc1ccccc1C(=O)O"


def test_aspirin() -> None:
    """logP, QED and TPSA as public databases list them; molecular weight and counts by hand."""
    (row,) = describe([ASPIRIN], list(DESCRIPTORS), workers=1).to_dict("records")
    assert row["logP"] == pytest.approx(1.31, abs=0.005)
    assert row["QED"] == pytest.approx(0.55, abs=0.005)
    assert row["TPSA"] == pytest.approx(63.6, abs=0.05)
    assert row["MW"] == pytest.approx(9 * 12.011 + 8 * 1.008 + 4 * 15.999, abs=0.01)
    assert row["SA"] == pytest.approx(1.58, abs=0.01)
    assert (row["rings"], row["HBD"], row["HBA"], row["rotatable"]) == (1, 1, 3, 2)
    assert row["alerts"] == 2  # an ester, and one of a phenol


def test_synthetic_accessibility_orders_easy_and_hard() -> None:
    """Ethanol is a solvent; paclitaxel took 51 steps."""
    paclitaxel = (
        "CC1=C2[C@H](C(=O)[C@@]3([C@H](C[C@@H]4[C@]([C@H]3[C@@H]([C@@](C2(C)C)(C[C@@H]1OC(=O)[C@@H]"
        "([C@H](C5=CC=CC=C5)NC(=O)C6=CC=CC=C6)O)O)OC(=O)C7=CC=CC=C7)(CO4)OC(=O)C)O)C)OC(=O)C"
    )
    scores = describe(["CCO", ASPIRIN, paclitaxel], ["SA"], workers=1).SA
    assert scores[1] < 3 < scores[2]
    assert scores.between(1, 10).all()


def test_molecules_smiles_and_nothing_mix() -> None:
    table = describe(
        [ASPIRIN, Chem.MolFromSmiles(ASPIRIN), None, "no molecule", ""], ["logP", "rings"], workers=1
    )
    assert table.iloc[0].equals(table.iloc[1])
    assert table.iloc[2:].isna().all(axis=None)
    assert describe([], ["logP"], workers=1).shape == (0, 1)


def test_names_in_any_case_keep_the_callers_spelling() -> None:
    assert list(describe(["CCO"], ["logp", "hbd"], workers=1).columns) == ["logp", "hbd"]
    assert describe(["CCO"], "logP", workers=1).logP[0] == pytest.approx(-0.0014, abs=1e-3)


def test_unknown_names_are_answered_with_near_ones() -> None:
    with pytest.raises(DataError, match="did you mean logP"):
        describe(["C"], ["clogp"], workers=1)
    with pytest.raises(DataError, match="known are logP, QED"):
        describe(["C"], ["banana"], workers=1)


def test_workers_change_nothing_and_progress_reaches_the_end() -> None:
    smiles = ["C" * (k % 9 + 1) + "O" for k in range(1200)]
    seen: list[tuple[int, int]] = []
    one = describe(smiles, ["logP", "SA"], workers=1)
    two = describe(smiles, ["logP", "SA"], workers=2, progress=lambda done, total: seen.append((done, total)))
    assert one.equals(two)
    assert seen[-1] == (1200, 1200)
    assert not math.isnan(one.to_numpy().sum())
