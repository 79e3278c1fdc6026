"""Metrics against closed forms, hand counts, RDKit, the `fcd` package and stored numbers of EDeN."""

import json
import math
import random
from collections import Counter

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

pytest.importorskip("rdkit")
pytest.importorskip("scipy")

from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator

from sciLDM.domains.molecules.metrics import (
    copy_rate,
    evaluate_set,
    fragment_counts,
    fragment_similarity,
    internal_diversity,
    molecule_properties,
    novelty,
    property_distances,
    snn,
    uniqueness,
)
from sciLDM.domains.molecules.neighbours import FingerprintIndex, nearest
from sciLDM.domains.molecules.nspdk import nspdk_features, nspdk_mean, nspdk_mmd
from sciLDM.domains.molecules.scaffolds import (
    cosine_similarity,
    scaffold_counts,
    scaffold_novelty,
    scaffold_similarity,
)
from sciLDM.errors import ArtefactError, ConfigError, DataError

# 24 molecules of QM9 and 24 of ZINC250k, with a disconnected one, a single atom and a hydrogen-bonded pair.
_QM9 = r"""
CC12CC1CCC(=O)N2 C#CC1CC2(O)CCC12 O=C1CCNC12COC2 N#CC(N)CCOC=N C#CC1C2C(O)C3C2N13 CC1C(=O)CN1C1CC1
OC12C=CC3CC1(O)C32 CC1(C2CC(=O)N2)CO1 CC1C(C)C12OCC2O CC12COC(=O)C1(O)C2 OC1C2C=CCC1CC2 CC(C)C1CC1NC=O
CC1C2C3CC(=O)C3C12 C#CCC(C)(C)C(N)=O CC1(C)CC2(CCC2)C1 C#CCN=C(N)C(N)=O N#CCC1(CC=O)CO1 C#CC1C(O)CC1(C)O
N#CC(O)CN1CCC1 CC1C2CC(=O)C1C2=O OC1C=CCC12CCC2 CC(=O)C12CC3C1CC32 CC1(C=O)CC2NC2C1 O=CCC1=CC(=O)CC1
[Na+].[Cl-] C
""".split()  # noqa: SIM905
_ZINC = r"""
Cc1nc(CN(C)C(=O)[C@H]2COc3ccc(F)cc3C2)cs1 O=C(NCc1nc[nH]n1)Nc1ccccc1C(F)(F)F
Cc1cc(NC(=O)c2ccccn2)ccc1S(N)(=O)=O CCN(Cc1cccc(C)n1)S(=O)(=O)CCCl O=C(C[C@H]1Oc2ccccc2NC1=O)NCCc1ccccc1F
CCNC(=O)C(=O)N/N=C/c1ccc2c(c1)OCO2 CC(C)c1ccc([C@H](C)[C@@H](C)O)cc1 CC[C@H](Nc1cnn(C)c1)/C(N)=N/O
CCCOc1cccc(C(=O)Nc2ccc(C)cc2C(=O)NC)c1 O[C@@H](CNc1nc2ccccc2o1)c1ccc(Cl)cc1 Cc1nc2ncnn2c(NCCOC2CCCCCC2)c1C
O=C(NCCN1CCOCC1)c1cc2c([nH]c1=O)CCCC2 O=C(CNC(=O)c1ccccc1F)N/N=C/c1cc(Br)ccc1O
Cc1cccc2c1ccn2C[C@H](C)C[NH3+] CCN(Cc1n[nH]c(=O)[nH]1)c1cc(C)cc(C)c1
C[C@@H](C(=O)Nc1ccc(F)cn1)c1ccc2ccccc2c1 O=C(NCCn1cc[nH+]c1)c1ccc(Br)cc1 CC1(C)CS/C(=N\c2ccccc2I)N1
C[C@@H](O)CCNC(=O)N[C@H](C)c1ccc(Cl)s1 CCCCS(=O)(=O)CCN1C(=O)NC(C)(C)C1=O
N#C[C@@H]1CNCCN1CC(=O)Nc1ncc(Cl)cc1Cl CN(C)c1cccc(C(=O)NNC(=O)NCc2cccnc2)c1
COC(=O)[C@H]1C[NH+](CC=C(C)C)C[C@@H]1C CCNC(=O)c1cccc(NC(=O)N(Cc2cccnc2)C(C)C)c1 O=CO.N
""".split()  # noqa: SIM905


def _shuffled(entries: list, seed: int = 1) -> list:
    return random.Random(seed).sample(entries, len(entries))


# --- sets of strings -------------------------------------------------------------------------------
def test_uniqueness_novelty_and_copy_rate_by_hand() -> None:
    assert uniqueness(["C", "C", "O", None, "", "N"]) == 3 / 4
    assert copy_rate(["C", "C", "O", "N", None], ["C", "O", "S"]) == 2 / 3
    assert novelty(["C", "C", "O", "N", None], {"C", "O", "S"}) == pytest.approx(1 / 3)
    assert math.isnan(uniqueness([None, ""]))
    assert math.isnan(copy_rate([], ["C"]))


# --- NSPDK -----------------------------------------------------------------------------------------
def test_nspdk_matches_stored_numbers_of_eden() -> None:
    """Parity with eden-kernel 0.3.1350, `vectorize(complexity=4, discrete=True)`, linear kernel.

    EDeN is not a dependency, hence stored numbers. With `nbits=30` its features do not collide here, and
    the value is exact up to rounding: 1e-9. By default it folds them into 2**16 buckets with the salted
    `hash` of Python: the value depends on PYTHONHASHSEED (0: .12267, 7: .12261), 0.2 % off here, hence 1 %.
    """
    mmd = nspdk_mmd(_QM9, _ZINC)
    assert mmd == pytest.approx(0.12281070261785798, rel=1e-9)
    for folded in (0.12267148845678189, 0.12260770715275565):
        assert mmd == pytest.approx(folded, rel=0.01)


def test_nspdk_features_of_ethane_by_hand() -> None:
    """C-C: (r, d) = (0,0), (0,1), (1,0), (1,1); each one pair and one half feature, counted twice."""
    keys, values = nspdk_features(Chem.MolFromSmiles("CC"))
    assert len(set(keys.tolist())) == 8
    np.testing.assert_allclose(values, 1 / math.sqrt(8))
    # Of these, ethene shares what holds no bond: (0,0) and (0,1), half of the squared length.
    shared = dict(zip(*nspdk_features(Chem.MolFromSmiles("C=C")), strict=True))
    assert sum(v * shared.get(k, 0.0) for k, v in zip(keys, values, strict=True)) == pytest.approx(0.5)


@hypothesis.given(st.sampled_from(_QM9 + _ZINC), st.integers(0, 10**6))
def test_nspdk_ignores_the_order_of_atoms_and_has_unit_length(smiles: str, seed: int) -> None:
    mol = Chem.MolFromSmiles(smiles)
    order = _shuffled(list(range(mol.GetNumAtoms())), seed)
    keys, values = nspdk_features(mol)
    other_keys, other_values = nspdk_features(Chem.RenumberAtoms(mol, order))
    np.testing.assert_array_equal(keys, other_keys)
    np.testing.assert_allclose(values, other_values, rtol=1e-12)
    assert values @ values == pytest.approx(1.0)


def test_nspdk_mmd_equals_the_double_sum_and_ignores_order_and_chunks() -> None:
    def kernel(first: list[str], second: list[str]) -> float:
        a, b = (
            [dict(zip(*nspdk_features(Chem.MolFromSmiles(s)), strict=True)) for s in x]
            for x in (first, second)
        )
        return float(np.mean([[sum(v * q.get(k, 0.0) for k, v in p.items()) for q in b] for p in a]))

    a, b = _QM9[:7], _ZINC[:5]
    expected = kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)
    assert nspdk_mmd(a, b) == pytest.approx(expected, rel=1e-9)
    chunked = nspdk_mean([None, *_shuffled(a), "", "not a molecule"], chunk_size=2)
    assert chunked.count == 7
    assert nspdk_mmd(chunked, nspdk_mean(b)) == pytest.approx(expected, rel=1e-9)
    assert nspdk_mmd(_shuffled(a), a) < 1e-25
    with pytest.raises(DataError, match="valid molecule"):
        nspdk_mean([None, ""])


# --- scaffolds, fragments, properties --------------------------------------------------------------
def test_scaffolds_by_hand() -> None:
    naphthalene, biphenyl = "c1ccc2ccccc2c1", "c1ccc(-c2ccccc2)cc1"
    entries = ["Cc1ccc2ccccc2c1", naphthalene, "Oc1ccc(-c2ccccc2)cc1", "Cc1ccccc1", "CCO", None, "bad"]
    counts = scaffold_counts(entries)
    assert counts == {naphthalene: 2, biphenyl: 1}
    assert scaffold_counts(entries, min_rings=1) == {naphthalene: 2, biphenyl: 1, "c1ccccc1": 1}
    assert scaffold_similarity(entries, [naphthalene]) == pytest.approx(2 / math.sqrt(5))
    assert scaffold_novelty(counts, {biphenyl, "c1ccccc1"}) == 1 / 2
    assert math.isnan(scaffold_similarity(["CCO"], entries))
    assert math.isnan(scaffold_novelty({}, counts))


def test_cosine_does_not_overflow() -> None:
    """int64 products of these counts wrap around."""
    large = {"a": 4_000_000_000, "b": 3_000_000_000}
    assert cosine_similarity(large, large) == pytest.approx(1.0, abs=1e-12)
    assert cosine_similarity(large, {"a": 1}) == pytest.approx(0.8)


def test_fragments_by_hand() -> None:
    """Anisole breaks at O-aryl only (BRICS bond L3-L16); hexane has no BRICS bond and is its own fragment."""
    assert fragment_counts(["COc1ccccc1", "CCCCCC", None]) == Counter(
        {"[3*]OC": 1, "[16*]c1ccccc1": 1, "CCCCCC": 1}
    )
    assert fragment_similarity(["COc1ccccc1"], ["CCCCCC", "COc1ccccc1"]) == pytest.approx(2 / math.sqrt(6))
    assert fragment_similarity(_ZINC, _shuffled(_ZINC)) == pytest.approx(1.0)


def test_property_distance_is_the_shift_of_a_shifted_set() -> None:
    frame = molecule_properties(_QM9)
    assert frame.loc[_QM9.index("C"), "MW"] == pytest.approx(16.043, abs=1e-3)  # methane, g/mol
    shifted = frame + np.array([0.5, -0.25, 0.125, 14.0])
    distances = property_distances(frame, shifted)
    assert distances == pytest.approx({"logP": 0.5, "SA": 0.25, "QED": 0.125, "MW": 14.0})
    # Distances to a two-molecule set from the same molecules, given as text with invalid ones among them.
    assert property_distances(["C", None, "CC"], ["CC", "C", ""]) == pytest.approx(
        dict.fromkeys(distances, 0.0)
    )
    with pytest.raises(DataError, match="logP"):
        property_distances(frame.drop(columns="logP"), frame)


# --- fingerprints ----------------------------------------------------------------------------------
def _tanimoto(first: list[str], second: list[str], n_bits: int) -> np.ndarray:
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=n_bits)
    a, b = ([generator.GetFingerprint(Chem.MolFromSmiles(s)) for s in x] for x in (first, second))
    return np.array([DataStructs.BulkTanimotoSimilarity(x, b) for x in a])


@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_internal_diversity_matches_rdkit_for_every_chunk_size(chunk_size: int) -> None:
    entries = _QM9 + _ZINC
    table = _tanimoto(entries, entries, 1024)
    for p in (1, 2):
        expected = 1 - ((table**p).mean(axis=1) ** (1 / p)).mean()
        assert internal_diversity(_shuffled([*entries, None]), p=p, chunk_size=chunk_size) == pytest.approx(
            expected, abs=1e-6
        )
    assert internal_diversity(["CCO"] * 3) == pytest.approx(0.0, abs=1e-7)
    with pytest.raises(ConfigError, match="chunk_size"):
        internal_diversity(entries, chunk_size=0)


def test_snn_matches_rdkit() -> None:
    assert snn([*_QM9, None], _ZINC) == pytest.approx(
        _tanimoto(_QM9, _ZINC, 1024).max(axis=1).mean(), abs=1e-12
    )
    assert snn(_QM9, _shuffled(_QM9)) == 1.0
    assert math.isnan(snn([None], _ZINC))


@pytest.mark.parametrize("block_size", [1, 3, 10, 1000])
def test_nearest_matches_rdkit_with_ties_for_every_block_size(block_size: int) -> None:
    train = [*_QM9, "CCO", *_ZINC, "CCO", *_QM9]  # duplicates: the first must win
    queries = ["OCC", "CCN", *_ZINC[:3], "CC1CC2CC(=O)C2C1=O", "c1ccccc1", "[K+]"]
    table = _tanimoto(queries, train, 2048)
    found = nearest(queries, train, block_size=block_size)
    assert found["nearest_train_smiles"].tolist() == [train[i] for i in table.argmax(axis=1)]
    np.testing.assert_array_equal(found["similarity"], table.max(axis=1))
    position, _ = FingerprintIndex.build(train).search(
        FingerprintIndex.build(["CCO", "CC1CC2CC(=O)C2C1=O"])._words.T, block_size=block_size
    )
    assert set(position.tolist()) <= set(range(len(_QM9) + 1))


def test_invalid_queries_keep_their_row() -> None:
    found = nearest(["CCO", None, "", "C(C)(C)(C)(C)C"], ["CCO", None, "nonsense", "CCN"])
    assert found["nearest_train_smiles"].tolist() == ["CCO", None, None, None]
    np.testing.assert_array_equal(found["similarity"], [1.0, np.nan, np.nan, np.nan])
    with pytest.raises(DataError, match="got 0"):
        nearest(["CCO"], [None, ""])


def test_index_survives_saving(tmp_path) -> None:
    index = FingerprintIndex.build(_ZINC, radius=3, n_bits=512)
    index.save(tmp_path / "index.npz")
    loaded = FingerprintIndex.load(tmp_path / "index.npz")
    assert (loaded.smiles, loaded.radius, loaded.n_bits) == (index.smiles, 3, 512)
    assert loaded.nearest(_QM9).equals(index.nearest(_QM9))
    assert [f.name for f in tmp_path.iterdir()] == ["index.npz"]
    (tmp_path / "index.npz").write_bytes(b"damaged")
    with pytest.raises(ArtefactError, match="build it again"):
        FingerprintIndex.load(tmp_path / "index.npz")
    with pytest.raises(ConfigError, match="512 bits"):
        index.search(np.zeros((1, 32), np.uint64))


# --- the whole evaluation --------------------------------------------------------------------------
def test_evaluation_of_the_test_set_itself() -> None:
    """Copying the test set gives every metric its best value; the floor, from other molecules, is worse."""
    stages: list[tuple[str, int, int]] = []
    result = evaluate_set(
        [*_ZINC, None],
        train=[*_QM9, _ZINC[0]],
        test=_ZINC,
        raw_valid=[True] * 13 + [False] * 13,
        changed=[False] * 25 + [True],
        train_scaffolds=scaffold_counts(_QM9),
        with_fcd=False,
        progress=lambda *report: stages.append(report),
    )
    table = result.table().set_index("metric")
    exact = {
        "validity": 25 / 26,
        "validity_raw": 0.5,
        "changed": 1 / 26,
        "connected": 24 / 25,
        "uniqueness": 1.0,
    }
    exact |= {"novelty": 24 / 25, "frag/test": 1.0, "scaf/test": 1.0, "snn/test": 1.0, "nspdk/test": 0.0}
    exact |= {f"W1 {name}/test": 0.0 for name in ("logP", "SA", "QED", "MW")}
    for metric, value in exact.items():
        assert result[metric] == pytest.approx(value, abs=1e-12), metric
    assert table.loc["novelty", "floor"] == pytest.approx(1 - 1 / 25)
    assert table.loc["nspdk/test", "floor"] > 0.05
    assert table.loc["snn/test", "floor"] < 0.5
    assert table.loc["W1 MW/test", "floor"] > 50
    assert table.loc["intdiv", "value"] == pytest.approx(internal_diversity(_ZINC))
    assert result["scaffold_novelty"] == scaffold_novelty(scaffold_counts(_ZINC), scaffold_counts(_QM9))
    assert table.loc["validity", "sample_size"] == 26
    assert table.loc["frag/test", "sample_size"] == 25
    assert all(done <= total for _, done, total in stages)
    assert "NSPDK" in {name for name, _, _ in stages}
    stored = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert stored["versions"].keys() >= {"rdkit", "fcd", "numpy", "torch"}


def test_evaluation_is_the_same_for_any_order_and_number_of_workers() -> None:
    entries = _QM9[:10] + _ZINC[:10]
    options = {"train": _QM9 + _ZINC[:9], "test": _ZINC[5:], "with_fcd": False, "seed": 3}
    result = evaluate_set(entries, **options)
    first, second = result.table(), evaluate_set(_shuffled(entries), n_jobs=2, **options).table()
    np.testing.assert_allclose(second["value"], first["value"], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(second["floor"], first["floor"], rtol=1e-9, atol=1e-9)
    assert result["scaf/test"] == pytest.approx(scaffold_similarity(entries, _ZINC[5:]))
    assert result["frag/test"] == pytest.approx(fragment_similarity(entries, _ZINC[5:]))
    assert result["nspdk/test"] == pytest.approx(nspdk_mmd(entries, _ZINC[5:]))


def test_generated_smiles_are_canonicalised_but_references_must_be() -> None:
    result = evaluate_set(["OCC", "C(O)C", "NCC"], train=["CCO", "CO"], test=["CCN", "CN"], with_fcd=False)
    assert result["uniqueness"] == pytest.approx(2 / 3)
    assert result["novelty"] == 1 / 2
    with pytest.raises(DataError, match="canonical SMILES in `train`"):
        evaluate_set(["CCO"], train=["OCC", "C(O)C"], test=["CCN", "CN"], with_fcd=False)


def test_evaluation_notes_what_a_reader_must_know() -> None:
    hopeless = evaluate_set([None, "", "C"], train=_QM9, test=_ZINC, with_fcd=False)
    assert hopeless["validity"] == pytest.approx(1 / 3)
    assert "Only 1 valid" in hopeless.notes[0]
    notes = " ".join(evaluate_set(_QM9, train=_ZINC, test=_QM9, with_fcd=False, reference_limit=9).notes)
    assert "9 of 26 test" in notes
    assert "stereo" in notes
    assert "25 molecules, all of train, against 26" in notes
    with pytest.raises(ConfigError, match="one `changed` for each of 2"):
        evaluate_set(["C", "CC"], train=_QM9, test=_ZINC, changed=[True])
