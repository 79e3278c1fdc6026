"""GuacaMol's scores, by hand; against the package itself they were compared once (CHANGELOG)."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator

from sciLDM.domains.molecules import bench_guacamol
from sciLDM.domains.molecules.bench import Context
from sciLDM.domains.molecules.bench_guacamol import GuacamolBenchmark, divergences, nearest_similarities
from sciLDM.domains.molecules.benchmarks import make_benchmark
from sciLDM.domains.molecules.fcd import FcdResult
from sciLDM.domains.molecules.reference import Reference
from sciLDM.domains.molecules.samples import MoleculeSamples
from sciLDM.errors import DataError

TRAIN = ["CCO", "CCN", "CC#N", "C1CC1", "CCC", "c1ccccc1O", "CC(=O)O", "CCOC", "OCC1CC1", "NCCO"]
OTHERS = ["CCF", "CCCl", "CCCCO", "C1CCC1N", "c1ccncc1", "CC(=O)N", "COCCO", "N#CCO", "CC(C)C", "OC1CCC1"]


def silent(_what: str, _done: int, _total: int) -> None:
    pass


def test_similarity_to_the_nearest_other_molecule() -> None:
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=4096)
    prints = [generator.GetFingerprint(Chem.MolFromSmiles(s)) for s in TRAIN]
    pairs = np.array([DataStructs.BulkTanimotoSimilarity(p, prints) for p in prints]) - np.eye(len(TRAIN))
    assert nearest_similarities(TRAIN) == pytest.approx(pairs.max(axis=1), abs=1e-6)


def test_divergences() -> None:
    same = divergences(TRAIN[::-1], TRAIN, workers=1, progress=silent)
    assert len(same) == 10
    assert max(same.values()) < 1e-9
    found = divergences(OTHERS, TRAIN, workers=1, progress=silent)
    assert found["MolWt"] > 0
    twice = divergences([*OTHERS, "C(F)C"], TRAIN, workers=1, progress=silent)  # a copy, written otherwise
    assert twice == pytest.approx(found)


def test_divergence_of_counts_by_hand() -> None:
    alkanes, rings = ["C" * k for k in range(1, 9)], ["C" * k + "c1ccccc1" for k in range(5)]
    found = divergences([*alkanes, *rings[:2]], [*alkanes[:5], *rings], workers=1, progress=silent)
    by_hand = 0.5 * np.log(0.5 / 0.8) + 0.5 * np.log(0.5 / 0.2)
    assert found["NumAromaticRings"] == pytest.approx(by_hand, abs=1e-6)


def test_a_descriptor_without_spread() -> None:
    ethers = ["COC", "COCC"]
    found = divergences(ethers, ethers, workers=1, progress=silent)
    assert found["TPSA"] == 0.0
    assert divergences(ethers, TRAIN, workers=1, progress=silent)["TPSA"] == float(
        "inf"
    )  # exp(-inf) counts nothing


def test_the_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Reference.write(tmp_path / "reference", TRAIN, OTHERS)
    monkeypatch.setattr(bench_guacamol, "chemnet_version", lambda: "0")
    monkeypatch.setattr(bench_guacamol, "fcd_statistics", lambda smiles, **_: sorted(smiles))
    monkeypatch.setattr(
        bench_guacamol,
        "frechet_chemnet_distance",
        lambda smiles, known, **_: FcdResult(
            float({*smiles} != {*map(Chem.CanonSmiles, known)}), len(smiles), len(known)
        ),
    )
    benchmark = make_benchmark(
        "guacamol",
        run=tmp_path / "reference",
        source={"name": "mine.csv"},
        context=Context(1, "cpu", tmp_path / "cache"),
    )
    mols = [Chem.MolFromSmiles(s) for s in OTHERS]
    made = MoleculeSamples(pd.DataFrame({"smiles": OTHERS, "valid_raw": [True] * 9 + [False]}), mols)
    result = benchmark.score(made, silent)
    rows = {row["metric"]: row for row in result.rows}
    assert rows["valid raw"]["value"] == 0.9
    assert rows["novel"]["value"] == 1.0
    assert rows["FCD score"]["value"] == pytest.approx(np.exp(-0.2))
    assert rows["FCD score"]["floor"] == 1.0
    assert rows["KL"]["floor"] == pytest.approx(
        1.0, abs=1e-6
    )  # all training molecules are the reference here
    assert rows["KL"]["value"] < 0.99
    assert "ChEMBL" in " ".join(result.failures)


def test_without_training_molecules() -> None:
    with pytest.raises(DataError, match="what the model was trained on"):
        GuacamolBenchmark().prepare()
