"""What `model.sample` hands over: a table that fits its molecules, and files that read back."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rdkit import Chem
from rdkit.Chem import Crippen

from sciLDM.domains.molecules.decode import Decoded, decode_molecules
from sciLDM.domains.molecules.reference import Reference
from sciLDM.domains.molecules.samples import MoleculeSamples
from sciLDM.errors import ConfigError
from tests.molecules.molecules import QM9_LIKE, features, logits_of

FOUND = features(QM9_LIKE)
SOURCE = {"name": "mine.csv", "fingerprint": "f", "max_molecules": None, "salt": 0}
ROWS = [FOUND.smiles.index(s) for s in ("CCO", "c1ccccc1", "C/C=C/C", "C[C@H](N)O", "CC(=O)[O-]")]


@pytest.fixture
def samples(tmp_path: Path) -> MoleculeSamples:
    """Five molecules, one that could not be decoded, and a training set that holds two of them."""
    decoded = [
        *decode_molecules(logits_of(FOUND, ROWS), FOUND.vocabulary),
        Decoded(None, None, False, False, True, None),
    ]
    Reference.write(tmp_path / "reference", ["CCO", "Cc1ccccc1", "C[C@H](N)O", "C[C@@H](N)O"], ["C"])
    requested = {"logP": np.array([0.5, np.nan, 1.0, 2.0, 3.0, 4.0], dtype=np.float32)}
    return MoleculeSamples.build(
        decoded, requested, descriptors=["logP", "rings"], reference=tmp_path / "reference", source=SOURCE
    )


def test_the_table_speaks_of_its_molecules(samples: MoleculeSamples) -> None:
    table = samples.table
    assert len(samples) == len(table) == len(samples.mols) == 6
    assert samples.smiles == [FOUND.smiles[k] for k in ROWS]
    for smiles, mol, row in zip(samples.smiles, samples.mols, table.itertuples(), strict=False):
        assert mol is not None
        assert Chem.MolToSmiles(mol) == smiles == row.smiles
        assert row.realised_logP == pytest.approx(Crippen.MolLogP(Chem.MolFromSmiles(smiles)))
    assert table["realised_rings"].tolist()[:5] == [0, 1, 0, 0, 0]
    assert table["requested_logP"].isna().tolist() == [False, True, False, False, False, False]
    assert table["in_train"].tolist() == [True, False, False, True, False, False]
    assert table["nearest_train_smiles"].tolist()[:2] == ["CCO", "Cc1ccccc1"]
    assert table["similarity"].tolist()[0] == 1.0
    lost = table.iloc[5]
    assert samples.mols[5] is None
    assert pd.isna(lost["realised_logP"])
    assert pd.isna(lost["similarity"])


def test_csv_and_smi_read_back(samples: MoleculeSamples, tmp_path: Path) -> None:
    read = pd.read_csv(samples.write(tmp_path / "new" / "out.csv"))
    assert list(read.columns) == list(samples.table.columns)
    assert read["smiles"].tolist()[:5] == samples.smiles
    assert np.allclose(read["realised_logP"], samples.table["realised_logP"], equal_nan=True)
    lines = samples.write(tmp_path / "out.smi").read_text().splitlines()
    assert lines == [f"{s} {k}" for k, s in enumerate(samples.smiles)]


@pytest.mark.parametrize("conformers", [False, True])
def test_sdf_reads_back_with_stereo_and_columns(
    samples: MoleculeSamples, tmp_path: Path, conformers: bool
) -> None:
    path = samples.write(tmp_path / "out.sdf", conformers=conformers)
    read = [m for m in Chem.SDMolSupplier(str(path)) if m is not None]
    assert len(read) == 5
    for mol, smiles in zip(read, samples.smiles, strict=True):
        assert mol.GetProp("smiles") == smiles
        if conformers:
            assert mol.GetConformer().Is3D()
            assert Chem.MolToSmiles(mol) == smiles  # chirality and geometry come from the coordinates here
    assert read[0].GetProp("in_train") == "True"


def test_conformers_are_three_dimensional_and_repeatable(samples: MoleculeSamples) -> None:
    first, second = samples.conformers(seed=1), samples.conformers(seed=1)
    assert first[5] is None
    for a, b in zip(first[:5], second[:5], strict=True):
        assert a is not None
        assert b is not None
        positions = a.GetConformer().GetPositions()
        assert np.array_equal(positions, b.GetConformer().GetPositions())
        bonds = [
            np.linalg.norm(positions[x.GetBeginAtomIdx()] - positions[x.GetEndAtomIdx()])
            for x in a.GetBonds()
        ]
        assert 0.9 < min(bonds) <= max(bonds) < 1.7  # angstrom, from O-H to C-C


def test_other_endings_are_refused_before_anything_is_made(samples: MoleculeSamples, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot write 'out.xlsx': expected an ending .csv, .smi or .sdf"):
        samples.write(tmp_path / "folder" / "out.xlsx")
    assert not (tmp_path / "folder").exists()


def test_pictures(samples: MoleculeSamples) -> None:
    picture = str(samples.draw(3))
    assert picture.count("<svg") == 1
    assert "asked 0.5" not in picture or "logP" in picture
    assert "CCO" in samples._repr_html_()


def test_nothing_decoded_is_still_a_table(tmp_path: Path) -> None:
    empty = MoleculeSamples.build(
        [Decoded(None, None, False, False, True, None)] * 2,
        {},
        descriptors=["logP"],
        reference=_reference(tmp_path),
        source=SOURCE,
    )
    assert len(empty) == 2
    assert empty.smiles == []
    assert empty.table["in_train"].tolist() == [False, False]
    for name in ("a.csv", "a.smi", "a.sdf"):
        assert empty.write(tmp_path / name).exists()
    assert "<svg" in empty._repr_html_()


def test_without_a_reference_the_columns_about_it_are_absent() -> None:
    decoded = decode_molecules(logits_of(FOUND, ROWS), FOUND.vocabulary)
    with pytest.warns(UserWarning, match="no nearest neighbours, no novelty"):
        table = MoleculeSamples.build(decoded, {}, descriptors=[], reference=None, source=SOURCE).table
    assert list(table.columns) == ["smiles", "valid_raw", "connected_raw", "changed"]


def _reference(tmp_path: Path) -> Path:
    Reference.write(tmp_path / "reference", ["CCO", "CC"], ["C"])
    return tmp_path / "reference"
