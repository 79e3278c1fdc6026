"""`scildm predict` on a tiny model: the command's own work, not the quality of a model."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from sciLDM.cli import main
from sciLDM.domains.molecules.labelled import morgan_counts
from sciLDM.evaluate.gaussian_process import count_similarity
from tests.molecules.molecules import QM9_LIKE
from tests.tiny import tiny_run


def test_rows_without_a_value_are_predicted(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    run, path, made = tiny_run(tmp_path_factory), tmp_path / "mine.csv", tmp_path / "out.csv"
    atoms = np.array([sum(c.isupper() or c in "cno" for c in s) for s in QM9_LIKE], dtype=float)
    atoms[::4] = np.nan
    pd.DataFrame({"smiles": [*QM9_LIKE, "CCBr", "no"], "size": [*atoms, 3.0, 1.0]}).to_csv(path, index=False)
    argv = ["predict", str(run), "--data", str(path), "--target", "size", "--level", "0.8", "-o", str(made)]
    assert main([*argv, "--threads", "1"]) == 0
    table = pd.read_csv(made)
    assert len(table) == len(QM9_LIKE)  # bromine and what is no SMILES are left out, and said
    missing = table["size"].isna()
    assert (table["size_predicted"].notna() == missing).all()
    assert (table.loc[missing, "size_low"] < table.loc[missing, "size_high"]).all()
    said = capsys.readouterr()
    assert "2 of 62 molecules cannot be represented" in " ".join(said.err.split())
    assert "fingerprints" in said.out
    # Others, from a second file.
    pd.DataFrame({"smiles": ["CCCO", "CCO"]}).to_csv(tmp_path / "new.csv", index=False)
    assert main([*argv, "--threads", "1", "--input", str(tmp_path / "new.csv")]) == 0
    assert pd.read_csv(made)["smiles"].tolist() == ["CCCO", "CCO"]
    capsys.readouterr()
    assert main([*argv, "--level", "0.99", "--threads", "1"]) == 2
    assert "held-out objects" in capsys.readouterr().err


def test_fingerprints_of_a_molecule_are_its_own() -> None:
    counts = morgan_counts(["CCO", "OCC", "CCN", "c1ccccc1"])
    assert torch.equal(counts[0], counts[1])
    similarity = count_similarity(counts, counts)
    assert torch.allclose(similarity.diagonal(), torch.ones(4))
    assert similarity[0, 2] > similarity[0, 3]
