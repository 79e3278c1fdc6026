"""Published benchmarks: every metric against the benchmark's own code, protocols by hand, floors, missing data."""

import gzip
import json
import math
import pickle
import zipfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("rdkit")

from sciLDM.data import cards
from sciLDM.domains.molecules import bench, bench_gdss, bench_moses, bench_reference
from sciLDM.domains.molecules.bench import Context
from sciLDM.domains.molecules.bench_filters import MosesFilters
from sciLDM.domains.molecules.bench_moses import internal_diversities, moses_metrics
from sciLDM.domains.molecules.bench_reference import MosesReference, moses_reference, read_statistics
from sciLDM.domains.molecules.benchmarks import BENCHMARKS, make_benchmark, read_generated
from sciLDM.domains.molecules.fcd import FcdStatistics
from sciLDM.domains.molecules.metrics import internal_diversity
from sciLDM.domains.molecules.neighbours import morgan_words
from sciLDM.domains.molecules.nspdk import nspdk_mmd
from sciLDM.domains.molecules.reference import Reference
from sciLDM.domains.molecules.samples import MoleculeSamples
from sciLDM.errors import ConfigError, DataError

GENERATED = [
    "CS(=O)(=O)c1nc2ccccc2n1CCCC#N", "CCC(C)NC(=O)CCNC(=O)c1ccc(-n2cnnn2)cc1", "COc1ccccc1CNc1ccccc1C(C)=O",
    "CN(C)c1cccc(F)c1-c1ccc(C#N)c(=O)[nH]1", "CCC(C)C(=O)NC(C)c1cnn(-c2ccc(F)cc2)c1C",
    "NC(=O)COc1ccc(CNc2ccc(F)c(F)c2)cc1", "CCn1c(CNC(C)(C)C(=O)OC)nc2ccccc21",
    "CCCOc1ccc(-c2cc(C(=O)OC)[nH]n2)cc1", "CCOc1ccc(-c2cc(C(=O)OC(C)C)n(C)n2)cc1N",
    "CCOC(=O)C(C)Sc1nnnn1-c1ccccc1", "CC(C)(C)C(=O)NCc1nnnn1-c1ccc(F)cc1", "CCCC(=O)NC(C)c1nc2ccccc2n1CCC",
    "CCOc1ccc(CNc2c(C)c(C)nc3ncnn23)cc1OC", "O=C1CSc2ccc(NC(=O)c3ccc[nH]3)cc2N1",
    "O=C1N(CCO)C2=CCCCC23c2[nH]c4ccccc4c2CCN13", "CC(CO)NC(=O)Nc1ccc(OCC(F)(F)F)nc1",
    "CCC(C)C(=O)NC(C)c1cnn(-c2ccc(F)cc2)c1C", "CC(OCC1CCCO1)C(=O)Nc1ccc(C#N)c(C(F)(F)F)c1",
    "C[C@H](NC(=O)C(=O)Nc1cccc2cnccc12)c1ccccc1", "Cn1c(C(=O)N(CCC(N)=O)c2ccccc2)cc(Cl)c1Cl",
    "Cc1ncccc1CNc1cnn(C(C)(C)C)c1", "O=C(N[C@@H](C(=O)NNC(=O)[C@@H]1COc2ccccc2O1)c1ccccc1)c1cccs1",
    "Cc1csc([C@@H](C)NC(=O)Nc2cc(C#N)ccc2OC(C)C)n1", "O=C([C@@H]1CCCN1C(=O)Cn1sc2ccccc2c1=O)N1CCCCC1",
    "CC(C)COC(=O)N1CCCN(C(=O)CCc2cccc(F)c2)CC1", "CCOc1ccc(C2=CCN(C(=O)c3ncoc3[C@H]3CCCO3)CC2)cc1",
]  # fmt: skip
TEST = [
    "CCOC(=O)c1cc(-c2cc(Cl)c(C)cc2OC)nn1CCO", "C=CCn1c(-c2ccc(OC)c(OC)c2)ccc(C#N)c1=O",
    "COc1ccccc1CN(c1cccc(Cl)c1)S(C)(=O)=O", "COc1cccc(-c2ccc(C#N)c(=O)n2CC(C)C#N)c1",
    "CCC(C)(C)NC(=O)c1ccn(-c2ccccc2F)n1", "COCCCNC(=O)Cc1cnn(-c2ccccc2)c1", "CC(C)CNC(=O)c1cc(-n2cccn2)ccc1F",
    "CC(O)CNc1nc2cc(Br)ccc2[nH]1", "CC(=O)Nc1ccc(NC(C(N)=O)c2ccccc2)cc1",
    "CN(CC(F)(F)F)C(=O)c1c[nH]nc1-c1ccccc1F", "CCOc1ccc(-c2ccc(C#N)c(=O)n2CC(=O)OC)cc1",
    "CCCCN(C)C(=O)Nc1ccc(-n2cnnn2)c(C)c1", "CCN(Cc1cccs1)C(=O)NCc1ncn(C)n1",
    "COc1ccc(C(N)=O)c(OCc2nnc(-c3ccccc3)o2)c1", "CCN(CCC#N)S(=O)(=O)c1ccc2c(c1)CCCC2",
    "COc1ccc(NS(=O)(=O)c2cccs2)cc1", "Cc1oc(C(=O)N2CC(C)CCCC2C)cc1S(N)(=O)=O",
    "Cc1ccc(CCNC(=O)c2nnc(Cc3cccc(F)c3)o2)cc1", "CCOc1ccccc1NC(=O)c1cc(C)n(C(C)C)c1C",
    "C#CCN(CC#C)C(=O)CCSc1ccccn1", "COc1ccc(NC(=O)c2cc3ccc(F)cc3n2C)cc1OC",
    "CC(OC(=O)CN(C)S(=O)(=O)c1ccccc1)c1ccccn1",
]  # fmt: skip
SCAFFOLD = [
    *GENERATED[6:12], *TEST[:2], "CCCOc1cc(C)ccc1NC(=O)Cn1c(C)c(C)sc1=O",
    "Cc1nc2c(s1)C(OC(=O)c1ccc3c(c1)[nH]c(=O)n3C)CCC2", "CC(=O)N(C)c1ccc(NC(=O)Cn2c(C)cc3ccccc32)cc1",
    "COc1ccc(CNC(=O)c2cc(C)n(Cc3ccco3)c2C)cc1", "Cc1nnc(C2Cc3ccccc3CN2CC(N)=O)o1",
    "CCCCCC(=O)Nc1nc2ccc(NC(C)=O)cc2o1", "CC(C)COCCC(=O)N1CCN(Cc2ccccc2)CC1C", "CCOc1c(Cl)cccc1NC(=O)N(CC)C1CC1",
]  # fmt: skip
# molsets 0.3.1, get_all_metrics, with three repairs for current libraries.
EXPECTED = {
    "SNN/Test": 0.24569841588918978, "Frag/Test": 0.7715304723183599, "Scaf/Test": 0.5766240421484852,
    "SNN/TestSF": 0.42294830485032153, "Frag/TestSF": 0.8610106188162174, "Scaf/TestSF": 0.5682411743268503,
    "IntDiv": 0.8096066738021445, "IntDiv2": 0.7420274140851123, "W1 logP": 0.252859160839161,
    "W1 SA": 0.21718134011609358, "W1 QED": 0.01755395094980131, "W1 MW": 14.283527972027986,
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_chemnet(monkeypatch: pytest.MonkeyPatch) -> None:
    """ChemNet takes seconds and has tests of its own: here it counts atoms."""

    def statistics(smiles: list[str], **_: object) -> FcdStatistics:
        lengths = np.array([len(s) for s in smiles], dtype=float)
        return FcdStatistics(lengths.mean(keepdims=True), np.array([[lengths.var()]]), len(lengths))

    for module in (bench_moses, bench_gdss, bench_reference):
        monkeypatch.setattr(module, "fcd_statistics", statistics)
    monkeypatch.setattr(bench_gdss, "chemnet_version", lambda: "0")
    monkeypatch.setattr(bench_moses, "chemnet_version", lambda: "0")

    def distance(generated: object, reference: FcdStatistics, **_: object) -> SimpleNamespace:
        own = generated if isinstance(generated, FcdStatistics) else statistics(generated)
        return SimpleNamespace(value=float((own.mean[0] - reference.mean[0]) ** 2))

    monkeypatch.setattr(bench_gdss, "frechet_chemnet_distance", distance)
    monkeypatch.setattr(bench_moses, "frechet_chemnet_distance", distance)


def silent(_what: str, _done: int, _total: int) -> None:
    """No bar."""


def samples(smiles: list[str | None], raw: list[bool] | None = None) -> MoleculeSamples:
    table = pd.DataFrame({"smiles": pd.Series(smiles, dtype=object)})
    table["valid_raw"] = [s is not None for s in smiles] if raw is None else raw
    return MoleculeSamples(table, [None] * len(smiles))


# --- MOSES -----------------------------------------------------------------------------------------
def test_moses_metrics_are_those_of_its_own_code() -> None:
    references = [MosesReference.of("Test", TEST), MosesReference.of("TestSF", SCAFFOLD)]
    found = moses_metrics(GENERATED, references, MosesFilters(["[#7]-[#7]"]), Context(), silent)
    for name, value in EXPECTED.items():
        assert found[name] == pytest.approx(value, abs=2e-7), name
    assert {m.name for m in bench_moses.MosesBenchmark.metrics} == set(found)


@pytest.mark.parametrize("block", [1, 7, 1024])
def test_internal_diversities_in_one_pass(block: int) -> None:
    words, _ = morgan_words(GENERATED, n_bits=1024)
    first, second = internal_diversities(words, block=block)
    assert first == pytest.approx(internal_diversity(GENERATED, p=1), abs=1e-7)
    assert second == pytest.approx(internal_diversity(GENERATED, p=2), abs=1e-7)


@pytest.mark.parametrize(
    ("smiles", "passes"),
    [
        ("CCO", True),
        (None, False),
        ("C1CC", False),
        ("C1CCCCCC1", True),
        ("C1CCCCCCC1", False),  # eight atoms, as in the benchmark's code
        ("C[NH3+]", False),
        ("CI", False),
        ("CC=O", False),  # the rule below, with its hydrogen
        ("CC(C)=O", True),
    ],
)
def test_filters_by_hand(smiles: str | None, passes: bool) -> None:
    assert MosesFilters(["[H][#6]=[#8]"]).passes([smiles]).tolist() == [passes]


def test_filters_refuse_what_is_no_pattern() -> None:
    with pytest.raises(DataError, match=r"SMARTS .*'\[\['"):
        MosesFilters(["[["])


def test_rules_where_present(needs_moses: None) -> None:
    rules = MosesFilters.load()
    assert len(rules.smarts) == 22 + 480
    # molsets 0.3.1, mol_passes_filters.
    assert np.flatnonzero(~rules.passes(GENERATED)).tolist() == [19, 21]


@pytest.mark.slow
def test_reference_statistics_where_present(needs_moses: None, tmp_path: Path) -> None:
    """The wheel's statistics are those of its molecules, with today's RDKit."""
    found = moses_reference("test", cache=tmp_path)
    again = moses_reference("test", cache=tmp_path)
    assert again.scaffolds == found.scaffolds
    first = list(found.index.smiles[:100])
    own = MosesReference.of("Test", first)
    assert found.index.search(morgan_words(first, n_bits=1024)[0])[1].min() == 1.0
    assert np.abs(own.properties.to_numpy() - found.properties[:100].to_numpy()).max() < 1e-9
    assert set(own.fragments) <= set(found.fragments)
    assert set(own.scaffolds) <= set(found.scaffolds)


@pytest.fixture
def needs_moses() -> None:
    try:
        cards.locate("moses_metrics")
        cards.locate("moses")
    except DataError as error:
        pytest.skip(str(error))


def packed(path: Path, content: object) -> Path:
    with zipfile.ZipFile(path, "w") as archive, archive.open("stats.npy", "w") as stream:
        np.lib.format.write_array(stream, np.array(content, dtype=object), allow_pickle=True)
    return path


def test_statistics_are_read_and_programs_are_not(tmp_path: Path) -> None:
    content = {"Frag": {"frag": Counter(a=2)}, "logP": {"values": [1.0, np.float64(2.0)]}, "x": np.eye(2)}
    found = read_statistics(packed(tmp_path / "a.npz", content))
    assert found["Frag"]["frag"] == {"a": 2}
    assert found["logP"]["values"] == [1.0, 2.0]
    assert (found["x"] == np.eye(2)).all()

    class Attack:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "run",)

    with pytest.raises(DataError, match="no plain data"):
        read_statistics(packed(tmp_path / "b.npz", {"x": Attack()}))
    assert not (tmp_path / "run").exists()
    (tmp_path / "c.npz").write_bytes(pickle.dumps({}))
    with pytest.raises(DataError, match="expected statistics of the MOSES package"):
        read_statistics(tmp_path / "c.npz")


@pytest.mark.parametrize(("name", "remedy"), [("moses", "pip download"), ("zinc250k", "SCILDM_DATA")])
def test_missing_data_say_what_to_put_where(
    name: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (cards, bench, bench_gdss, bench_reference):
        if hasattr(module, "cache_root"):
            monkeypatch.setattr(module, "cache_root", lambda: tmp_path)
    monkeypatch.setattr(cards, "find_spec", lambda _name: None)
    monkeypatch.setenv("SCILDM_DATA", str(tmp_path))
    with pytest.raises(DataError, match=remedy):
        make_benchmark(name).prepare()


# --- GDSS ------------------------------------------------------------------------------------------
@pytest.fixture
def qm9(tmp_path: Path) -> bench_gdss.Qm9Benchmark:
    run = tmp_path / "reference"
    Reference.write(run, ["CCO", "CCN", "CC#N", "C1CC1", "CCC"], ["CCF", "CCO", "C1CCC1"])
    found = make_benchmark(
        "qm9", run=run, source={"name": "qm9"}, context=Context(1, "cpu", tmp_path / "cache")
    )
    assert isinstance(found, bench_gdss.Qm9Benchmark)
    return found


def test_gdss_protocol_by_hand(qm9: bench_gdss.Qm9Benchmark, tmp_path: Path) -> None:
    given = ["OCC", "CCO", "CCCl", None, "C1CC1"]
    result = qm9.score(samples(given, [True, True, False, False, True]), silent)
    rows = {row["metric"]: row for row in result.rows}
    values = {name: row["value"] for name, row in rows.items()}
    valid, test = ["CCO", "CCO", "CCCl", "C1CC1"], ["CCF", "CCO", "C1CCC1"]
    assert values["valid raw"] == 0.6
    assert values["valid"] == 0.8
    assert values["unique"] == 0.75
    assert values["novel"] == pytest.approx(1 / 3)
    assert rows["novel"]["floor"] == pytest.approx(2 / 3)  # the test molecules' own
    assert values["NSPDK"] == pytest.approx(nspdk_mmd(valid, test), abs=1e-12)
    assert math.isnan(values["Scaf"])  # nothing here has two rings
    floor = ["CCO", "CCN", "CC#N", "C1CC1", "CCC"]  # five samples, five training molecules
    assert rows["NSPDK"]["floor"] == pytest.approx(nspdk_mmd(floor, test), abs=1e-12)
    assert rows["FCD"]["floor"] == pytest.approx((np.mean([3, 3, 4, 5, 3]) - np.mean([3, 3, 6])) ** 2)
    assert any("the protocol has 10,000" in line for line in result.failures)
    assert result.protocol["train"] == 5


def test_the_floor_is_computed_once(
    qm9: bench_gdss.Qm9Benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = qm9.score(samples(["CCO", "CCCl"]), silent)
    stored = list((tmp_path / "cache").glob("floor-qm9-*.json"))
    assert len(stored) == 1
    stored[0].write_text(json.dumps({"FCD": 42.0, "NSPDK": None}))
    rows = {r["metric"]: r for r in qm9.score(samples(["CCO", "CCCl"]), silent).rows}
    assert rows["FCD"]["floor"] == 42.0
    assert math.isnan(rows["NSPDK"]["floor"])
    stored[0].write_text("damaged")
    assert [r["floor"] for r in qm9.score(samples(["CCO", "CCCl"]), silent).rows][:-1] == [
        r["floor"] for r in first.rows
    ][:-1]


def test_too_few_samples_and_unknown_names(qm9: bench_gdss.Qm9Benchmark) -> None:
    with pytest.raises(DataError, match="got 1 valid of 2"):
        qm9.score(samples(["CCO", None]), silent)
    with pytest.raises(ConfigError, match="qm9, zinc250k, moses"):
        make_benchmark("zinc")


def test_a_model_of_other_data_does_not_lend_its_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(bench_gdss, "locate", lambda name: asked.append(name))
    monkeypatch.setattr(
        bench_gdss, "find_reference", lambda run, source: asked.append((run, source["name"])) or None
    )
    found = make_benchmark("qm9", run=tmp_path, source={"name": "mine.csv"})
    with pytest.raises(DataError, match="not at hand"):
        found.prepare()
    assert asked == ["qm9", (None, "qm9")]


# --- samples of others, published rows -------------------------------------------------------------
def test_samples_of_any_program(tmp_path: Path) -> None:
    (tmp_path / "a.smi").write_text("CCO name\n\nC1CC\n")
    assert read_generated(tmp_path / "a.smi").table["valid_raw"].tolist() == [True, False, False]
    (tmp_path / "b.csv").write_text("n,SMILES\n1,CCO\n2,xx\n")
    assert read_generated(tmp_path / "b.csv").table["smiles"].tolist() == ["CCO", "xx"]
    (tmp_path / "c.csv").write_text("smiles,valid_raw\nCCO,False\nCCC,True\n")
    assert read_generated(tmp_path / "c.csv").table["valid_raw"].tolist() == [False, True]
    with gzip.open(tmp_path / "d.smi.gz", "wt") as stream:
        stream.write("SMILES\nCCO\n")
    assert read_generated(tmp_path / "d.smi.gz").table["smiles"].tolist() == ["CCO"]
    (tmp_path / "e.smi").write_text("")
    with pytest.raises(DataError, match="empty"):
        read_generated(tmp_path / "e.smi")
    with pytest.raises(DataError, match="none"):
        read_generated(tmp_path / "f.smi")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_published_rows_are_comparable(name: str) -> None:
    found = {"moses": bench_moses.MosesBenchmark, "qm9": bench_gdss.Qm9Benchmark}.get(
        name, bench_gdss.Zinc250kBenchmark
    )
    columns = {c for table in found.tables.values() for c in table}
    for row in found.published:
        assert row.values, row.model
        assert set(row.values) <= columns, row.model
        assert row.source
        assert row.read in ("authors", "quoted", "rescored")
        shares = [v for k, v in row.values.items() if not k.startswith(("FCD", "NSPDK"))]
        assert all(0 <= v <= 1 for v in shares), row.model
