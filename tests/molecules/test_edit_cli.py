"""`scildm edit` on a tiny model, and the similarity it dials."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rdkit import Chem

from sciLDM.cli import main
from sciLDM.domains.molecules.likeness import tanimoto_to
from sciLDM.domains.molecules.samples import MoleculeSamples
from sciLDM.errors import DataError
from tests.tiny import tiny_run


def test_variants_are_written_with_their_similarity(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    run, made = tiny_run(tmp_path_factory), tmp_path / "made.csv"
    argv = ["edit", str(run), "--lead", "CCCO", "--similarity", "0.5", "-n", "4", "-o", str(made)]
    assert main([*argv, "--threads", "1"]) == 0
    table = pd.read_csv(made)
    assert 1 <= len(table) <= 4
    assert table["smiles"].is_unique
    assert "CCCO" not in table["smiles"].tolist()
    off = (table["realised_likeness"] - 0.5).abs().to_numpy()
    assert (np.diff(off) >= -1e-9).all()
    assert main([*argv, "--similarity", "1.5", "--threads", "1"]) == 2
    assert "from 0 to 1" in capsys.readouterr().err


def test_similarity_to_a_lead() -> None:
    mols = [Chem.MolFromSmiles("OCC"), None, Chem.MolFromSmiles("c1ccccc1")]
    samples = MoleculeSamples(pd.DataFrame({"smiles": ["CCO", None, "c1ccccc1"]}), mols)
    found = tanimoto_to("CCO", samples)
    assert found[0] == 1.0
    assert np.isnan(found[1])
    assert found[2] < 0.1
    with pytest.raises(DataError, match="expected SMILES"):
        tanimoto_to("C1CC", samples)
