"""A table of molecules as training sees it: merged, labelled, split; and its notes on what was left out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import Crippen

from sciLDM.data.latent_cache import LatentCache
from sciLDM.domain import Corpus
from sciLDM.domains.molecules import Molecules
from sciLDM.domains.molecules.corpus import DataSettings, MoleculeCorpus
from sciLDM.domains.molecules.rebuild import graph_smiles
from sciLDM.domains.molecules.reference import Reference, find_reference
from sciLDM.errors import DataError
from sciLDM.nets.conditioning import ConditionEmbedding
from tests.molecules.molecules import QM9_LIKE
from tests.tiny import write_table

ONE = DataSettings(workers=1)


def prepare(
    path: Path, *conditions: str, settings: DataSettings = ONE, cache: Path | None = None
) -> MoleculeCorpus:
    corpus: Corpus = Molecules(str(path), conditions=conditions, settings=settings).prepare(
        cache or path.parent / "cache", lambda _what, _done, _total: None
    )
    assert isinstance(corpus, MoleculeCorpus)
    return corpus


def labelled(corpus: MoleculeCorpus, name: str) -> dict[str, float]:
    """Label of every molecule, by SMILES."""
    found: dict[str, float] = {}
    for split, chosen in corpus._split.items():
        found |= dict(
            zip((corpus.smiles[k] for k in chosen), corpus.labels(split)[name].tolist(), strict=True)
        )
    return found


def test_graphs_labels_and_smiles_belong_together(tmp_path: Path) -> None:
    """In every split: the graph is the SMILES', the column's value its row's, the descriptor RDKit's."""
    values = [float(k) for k in range(len(QM9_LIKE))]
    corpus = prepare(write_table(tmp_path / "t.csv", gap=values), "gap", "logP")
    given = {Chem.CanonSmiles(s): v for s, v in zip(QM9_LIKE, values, strict=True)}
    assert sum(corpus.sizes.values()) == len(given)
    for split, chosen in corpus._split.items():
        labels = corpus.labels(split)
        batch = corpus.fields(split, np.arange(len(chosen)))
        for k, row in enumerate(chosen):
            smiles = corpus.smiles[row]
            mol = Chem.MolFromSmiles(smiles)
            assert (
                graph_smiles(corpus._graphs.graphs, corpus._graphs.vocabulary, int(corpus._rows[row]))
                == smiles
            )
            assert int((batch.batch == k).sum()) == mol.GetNumHeavyAtoms() == labels["atoms"][k]
            assert labels["gap"][k] == given[smiles]
            assert labels["logP"][k] == pytest.approx(Crippen.MolLogP(mol), abs=1e-5)


def test_copies_are_averaged_and_never_cross_a_split(tmp_path: Path) -> None:
    """Ethanol in three spellings, one without a value; propane with none at all."""
    smiles = [*QM9_LIKE, "OCC", "C(O)C", "[CH3][CH2][OH]"]
    gap = ["5" if s != "CCC" else "" for s in QM9_LIKE]
    gap[3] = "4"
    gap[QM9_LIKE.index("CCO")] = "1"
    corpus = prepare(write_table(tmp_path / "t.csv", smiles, gap=[*gap, "2", "", "6"]), "gap")
    labels = labelled(corpus, "gap")
    assert labels["CCO"] == pytest.approx(3.0)
    assert np.isnan(labels["CCC"])
    assert len(labels) == len(set(QM9_LIKE))
    assert "3 rows are copies of another molecule; their values were averaged" in corpus.notes


def test_statistics_are_of_the_training_split(tmp_path: Path) -> None:
    corpus = prepare(write_table(tmp_path / "t.csv"), "gap")
    train = corpus.labels("train")["gap"].astype(float)
    (stated,) = corpus.state["properties"]
    assert stated["mean"] == pytest.approx(train.mean(), rel=1e-6)
    assert stated["std"] == pytest.approx(train.std(), rel=1e-6)
    assert stated["quantiles"][3] == pytest.approx(np.median(train), rel=1e-6)
    assert sum(corpus.state["sizes"]["counts"]) == corpus.sizes["train"]
    assert json.loads(json.dumps(corpus.state, allow_nan=False)) == corpus.state


def test_fingerprint_changes_with_the_data_and_nothing_else(tmp_path: Path) -> None:
    table, values = write_table(tmp_path / "a.csv"), [round(0.37 * k % 5, 3) for k in range(len(QM9_LIKE))]
    base = prepare(table, "gap").fingerprint
    assert prepare(table, "gap", cache=tmp_path / "elsewhere").fingerprint == base
    assert prepare(write_table(tmp_path / "b.csv", gap=values), "gap").fingerprint == base
    others = [
        prepare(table, "logP"),
        prepare(table, "gap", settings=DataSettings(workers=1, salt=1)),
        prepare(table, "gap", settings=DataSettings(workers=1, fractions=(0.7, 0.2, 0.1))),
        prepare(write_table(tmp_path / "c.csv", gap=[values[0] + 1e-3, *values[1:]]), "gap"),
        prepare(write_table(tmp_path / "d.csv", QM9_LIKE[:-1], gap=values[:-1]), "gap"),
    ]
    assert len({base, *(c.fingerprint for c in others)}) == 6


def test_a_damaged_descriptor_cache_is_built_again(tmp_path: Path) -> None:
    table, cache = write_table(tmp_path / "t.csv"), tmp_path / "cache"
    before = labelled(prepare(table, "QED", cache=cache), "QED")
    (stored,) = cache.glob("descriptors-*.npz")
    for content in (stored.read_bytes()[:200], b"", b"PK\x03\x04 nonsense"):
        stored.write_bytes(content)
        assert labelled(prepare(table, "QED", cache=cache), "QED") == before


def test_max_molecules_and_max_atoms(tmp_path: Path) -> None:
    table = write_table(
        tmp_path / "t.csv", [*QM9_LIKE, "C" * 60], gap=[k % 7 for k in range(len(QM9_LIKE) + 1)]
    )
    whole = prepare(table)
    assert whole.state["vocabulary"]["max_atoms"] == 60
    assert any("largest molecule has 60 heavy atoms, 99 % have at most 6" in note for note in whole.notes)
    short = prepare(table, settings=DataSettings(workers=1, max_atoms=6))
    assert short.state["vocabulary"]["max_atoms"] == 6
    assert short.rejected["reason"].tolist() == ["too large: 60 heavy atoms, at most 6"]
    few = [prepare(table, settings=DataSettings(workers=1, max_molecules=20, salt=s)) for s in (0, 0, 1)]
    assert sum(few[0].sizes.values()) <= 20
    assert few[0].smiles == few[1].smiles != few[2].smiles


@pytest.mark.parametrize(
    "name", ["gap (eV)", "HOMO-LUMO/eV", "logP.1", "values", "keys", "training", "µ", "100%", "a b"]
)
def test_any_name_of_a_column_can_be_a_condition(tmp_path: Path, name: str) -> None:
    """Through the network's embedding and the latent cache, both of which use it as a key."""
    path = tmp_path / "t.csv"
    write_table(path, **{name: [k % 5 for k in range(len(QM9_LIKE))]})
    corpus = prepare(path, name)
    codec = Molecules(str(path)).codec(corpus.state)
    z = torch.zeros(2, 4, 6)
    embedding = ConditionEmbedding(codec.conditions, 8)
    label = torch.tensor([0.0, 3.0])
    assert not torch.equal(*embedding({name: label}, z).vector)
    embedding.load_state_dict(embedding.state_dict())
    LatentCache.write(tmp_path / "latents", "key", [(z, None, {name: label.numpy()})], 2)
    cache = LatentCache.open(tmp_path / "latents", "key")
    assert cache is not None
    assert torch.equal(cache.fields([0, 1])[2][name], label)


def test_reference(tmp_path: Path) -> None:
    corpus = prepare(
        write_table(tmp_path / "t.csv", [*QM9_LIKE, "C(", "CC.Cl"], gap=range(len(QM9_LIKE) + 2))
    )
    corpus.write_reference(tmp_path / "reference")
    found = find_reference(tmp_path / "reference", corpus.state["source"])
    assert found is not None
    assert len(found.train) == corpus.sizes["train"]
    assert not set(found.train) & set(found.test)
    rows = (tmp_path / "reference" / "rejected.csv").read_text().splitlines()
    first = len(QM9_LIKE)
    assert rows[0] == "row,smiles,reason"
    assert rows[1].startswith(f"{first},C(,unparsable")
    assert rows[2] == f"{first + 1},CC.Cl,salt or mixture: 2 fragments"
    (tmp_path / "reference" / "test.smi.gz").write_bytes(b"\x1f\x8bnonsense")
    with pytest.raises(DataError, match="cannot read the reference molecules"):
        Reference(tmp_path / "reference").test  # noqa: B018
    with pytest.warns(UserWarning, match="training molecules are not at hand"):
        assert find_reference(tmp_path / "none", corpus.state["source"]) is None
