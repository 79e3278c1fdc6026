"""SMILES to graph and back: nothing is lost, however a molecule is written; refusals say why."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("rdkit")
pytest.importorskip("torch_geometric")

import torch
from rdkit import Chem
from torch_geometric.data import Batch, Data

from sciLDM.domains.molecules.featurise import Featurised, featurise, featurise_cached
from sciLDM.domains.molecules.graphs import GraphTable
from sciLDM.domains.molecules.rebuild import graph_mol, graph_smiles, to_mol
from sciLDM.domains.molecules.sources import qm9, zinc250k
from sciLDM.domains.molecules.vocabulary import Vocabulary
from sciLDM.errors import ConfigError, DataError

HARD = {
    "sulfoxide": "CC[S@](C)=O",
    "sulfilimine": "CC[S@](C)=NC",
    "sulfonium": "CC[S@+](C)CCC",
    "phosphine oxide": "C[P@](=O)(CC)c1ccccc1",
    "phosphonium": "C[P+](C)(C)C",
    "secondary phosphine oxide": "C[PH](C)=O",
    "phosphate": "COP(=O)([O-])OC",
    "quaternary nitrogen stereo": "CC[N@+](C)(CCC)Cc1ccccc1",
    "nitro": "O=[N+]([O-])c1ccccc1",
    "azide": "CN=[N+]=[N-]",
    "diazo": "C=[N+]=[N-]",
    "isocyanide": "[C-]#[N+]C",
    "nitrile oxide": "CC#[N+][O-]",
    "tetrazole 1H": "c1nnn[nH]1",
    "tetrazole 2H": "c1nn[nH]n1",
    "indole": "c1ccc2[nH]ccc2c1",
    "imidazolium": "C[n+]1cc[nH]c1",
    "pyridinium oxide": "[O-][n+]1ccccc1",
    "mesoionic sydnone": "Cc1c([O-])on[n+]1C",
    "porphine": "C1=Cc2cc3ccc(cc4nc(cc5ccc(cc1n2)[nH]5)C=C4)[nH]3",
    "azulene": "c1ccc2cccc-2cc1",
    "spiro stereo": "C1C[C@]12C[C@H](C)CO2",
    "bridged stereo": "C[C@]12CC[C@H](CC1=O)C2(C)C",
    "ring pseudo-asymmetry": "C[C@H]1CC[C@@H](C)CC1",
    "inositol": "O[C@H]1[C@H](O)[C@@H](O)[C@H](O)[C@H](O)[C@@H]1O",
    "dependent chain stereo": "C[C@H](O)[C@@H](O)[C@H](C)O",
    "ring closure digits first": "[C@]12(F)CCC(C1)CO2",
    "E alkene": "C/C=C/Cl",
    "Z alkene": "C/C=C\\Cl",
    "diene": "C/C=C/C=C\\C",
    "tetrasubstituted alkene": "C/C(Cl)=C(\\Br)CC",
    "E in large ring": "C1CCC/C=C/CCC1",
    "Z in large ring": "C1CCC/C=C\\CCC1",
    "exocyclic alkene": "C/C=C1/CCC[C@H]1C",
    "oxime": "C/C(=N\\O)c1ccccc1",
    "imine hydrogen": "[H]/N=C(/C)CC",
    "two imine hydrogens": "[H]/N=C(C)/C(C)=N/[H]",
    "azo": "c1ccc(/N=N/c2ccccc2)cc1",
    "allene": "CC=C=CC",
    "ketene": "C=C=O",
    "boronic acid": "OB(O)c1ccccc1",
    "borate": "F[B-](F)(F)F",
    "silane": "C[Si](C)(C)O",
    "selenide": "C[Se]C",
    "iodane": "c1ccc(I(Cl)Cl)cc1",
    "perchlorate": "[O-][Cl+3]([O-])([O-])[O-]",
    "ammonium": "[NH4+]",
    "methane": "C",
    "carbanion": "[CH2-][N+](C)(C)C",
    "carbon monoxide": "[C-]#[O+]",
    "cubane": "C12C3C4C1C5C2C3C45",
    "thiophene oxide": "O=S1C=CC=C1",
}

REFUSED = {
    "": "empty",
    "   ": "empty",
    "not a molecule": "unparsable",
    "C1CC": "unparsable",
    "CC(C)(C)(C)C": "Explicit valence",
    "c1cccc1": "kekulize",
    "[Na+].[Cl-]": "salt or mixture: 2 fragments",
    "[CH3]": "radical on C",
    "[13CH4]": "isotope: 13C",
    "[2H]C": "isotope: 2H",
    "N->[Pt]": "unsupported bond: DATIVE",
    "C$C": "unsupported bond: QUADRUPLE",
    "*C": "wildcard",
    "[H][H]": "no heavy atom",
    "[H+]": "no heavy atom",
    "F[Pt@SP1](Cl)(Br)I": "unsupported stereochemistry",
    "C[SH2]C": "2 hydrogens on S",
}


def rebuilt(result: Featurised) -> list[str]:
    return [graph_smiles(result.graphs, result.vocabulary, k) for k in range(len(result.graphs))]


def assert_same_table(first: GraphTable, second: GraphTable) -> None:
    for name in GraphTable.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name), err_msg=name)


@pytest.fixture(scope="module")
def hard() -> Featurised:
    return featurise(list(HARD.values()), workers=1)


@pytest.mark.parametrize("name", HARD)
def test_hard_molecules_come_back(name: str, hard: Featurised) -> None:
    row = list(HARD).index(name)
    assert row in hard.kept, hard.rejected.set_index("row").reason.get(row)
    k = int(np.searchsorted(hard.kept, row))
    assert hard.smiles[k] == Chem.CanonSmiles(HARD[name])
    assert graph_smiles(hard.graphs, hard.vocabulary, k) == hard.smiles[k]


def test_hydrogens_of_the_table_are_those_of_the_rebuilt_molecule(hard: Featurised) -> None:
    for k in range(len(hard.graphs)):
        own = slice(hard.graphs.atom_offset[k], hard.graphs.atom_offset[k + 1])
        atoms = [
            atom for atom in graph_mol(hard.graphs, hard.vocabulary, k).GetAtoms() if atom.GetAtomicNum() > 1
        ]
        counted = [atom.GetTotalNumHs(includeNeighbors=True) for atom in atoms]
        assert counted == hard.graphs.hydrogens[own].tolist(), hard.smiles[k]
        assert [atom.IsInRing() for atom in atoms] == hard.graphs.in_ring[own].tolist()


@pytest.mark.parametrize("source", [qm9, zinc250k])
def test_real_molecules_come_back(source) -> None:
    try:
        smiles = source().smiles
    except DataError as error:
        pytest.skip(str(error))
    smiles = smiles.iloc[:: len(smiles) // 1500].tolist()
    result = featurise(smiles, workers=1)
    assert len(result.graphs) == len(smiles)
    assert rebuilt(result) == [Chem.CanonSmiles(text) for text in smiles]


@given(name=st.sampled_from(sorted(HARD)), seed=st.integers(1, 2**30))
def test_the_graph_does_not_depend_on_how_the_molecule_is_written(name: str, seed: int) -> None:
    molecule = Chem.MolFromSmiles(HARD[name])
    other = Chem.MolToRandomSmilesVect(molecule, 1, randomSeed=seed)[0]
    first, second = featurise([HARD[name]], workers=1), featurise([other], workers=1)
    assert first.smiles == second.smiles
    assert_same_table(first.graphs, second.graphs)


@given(name=st.sampled_from(sorted(HARD)), seed=st.integers(0, 2**30))
def test_random_traversals_hold_the_same_molecule(name: str, seed: int) -> None:
    result = featurise([HARD[name]] * 3, workers=1, order="random", generator=np.random.default_rng(seed))
    again = featurise([HARD[name]] * 3, workers=1, order="random", generator=np.random.default_rng(seed))
    assert rebuilt(result) == [Chem.CanonSmiles(HARD[name])] * 3 == result.smiles
    assert_same_table(result.graphs, again.graphs)


@given(data=st.data(), name=st.sampled_from(sorted(HARD)))
def test_stereo_marks_that_mean_nothing_do_no_harm(data: st.DataObject, name: str) -> None:
    """A decoder may put a mark anywhere: the result is still the molecule, at most another stereoisomer."""
    result = featurise([HARD[name]], workers=1)
    table, words = result.graphs, result.vocabulary
    symbols = [words.elements[k] for k in table.element]
    charges = [words.charges[k] for k in table.charge]
    marks = data.draw(st.lists(st.integers(0, 2), min_size=len(symbols), max_size=len(symbols)))
    bonds = [
        (int(i), int(j), int(order), data.draw(st.integers(0, 2)))
        for i, j, order in zip(*table.bond_index, table.bond_order, strict=True)
    ]
    molecule = to_mol(symbols, charges, bonds, marks)
    flat = to_mol(symbols, charges, [(i, j, order, 0) for i, j, order, _ in bonds], [0] * len(symbols))
    written = Chem.MolToSmiles(molecule)
    assert Chem.MolFromSmiles(written) is not None
    bare = Chem.RemoveHs(Chem.Mol(molecule))
    assert (
        Chem.MolToSmiles(bare, isomericSmiles=False) == Chem.MolToSmiles(flat, isomericSmiles=False)
        or "[H]" in written
    )


def test_mirror_images_differ_in_every_chirality_and_nothing_else() -> None:
    left, right = featurise(["C[C@H](N)C(=O)O"], workers=1), featurise(["C[C@@H](N)C(=O)O"], workers=1)
    tags = left.graphs.chirality.tolist(), right.graphs.chirality.tolist()
    assert sorted(zip(*tags, strict=True)) in ([(0, 0)] * 5 + [(1, 2)], [(0, 0)] * 5 + [(2, 1)])
    np.testing.assert_array_equal(left.graphs.bond_index, right.graphs.bond_index)


def test_geometry_is_told_between_lowest_neighbours() -> None:
    """Cis and trans of 2-butene, and of a bond whose CIP labels and lowest indices disagree."""
    assert featurise(["C/C=C\\C"], workers=1).graphs.bond_stereo.tolist() == [0, 1, 0]
    assert featurise(["C/C=C/C"], workers=1).graphs.bond_stereo.tolist() == [0, 2, 0]
    mol = to_mol(
        ["C", "C", "C", "Cl", "Br"],
        [0] * 5,
        [(0, 1, 1, 0), (1, 2, 2, 2), (1, 3, 1, 0), (2, 4, 1, 0)],
        [0] * 5,
    )
    # atom 0 is trans to Br (4), so Cl is cis to Br: Z by the CIP rules, since Cl outranks C
    assert Chem.MolToSmiles(mol) == Chem.CanonSmiles("C/C(Cl)=C/Br")


def test_chirality_is_told_with_neighbours_in_ascending_order() -> None:
    """From the first neighbour, F, the others (N, C, H) turn clockwise: F[C@@](N)(C)[H] in SMILES."""
    bonds = [(0, 1, 1, 0), (0, 2, 1, 0), (0, 3, 1, 0)]
    molecule = to_mol(["C", "F", "N", "C"], [0] * 4, bonds, [1, 0, 0, 0])
    assert Chem.MolToSmiles(molecule) == Chem.CanonSmiles("F[C@@](N)(C)[H]")
    swapped = to_mol(["C", "F", "C", "N"], [0] * 4, bonds, [1, 0, 0, 0])
    assert Chem.MolToSmiles(swapped) == Chem.CanonSmiles("F[C@](N)(C)[H]")


@pytest.mark.parametrize("smiles", REFUSED)
def test_refusals_say_why(smiles: str) -> None:
    result = featurise(["C", smiles, "CC"], workers=1)
    assert result.kept.tolist() == [0, 2]
    assert result.rejected.row.tolist() == [1]
    assert REFUSED[smiles] in result.rejected.reason[0]


def test_missing_values_are_refused_as_empty() -> None:
    result = featurise(["C", None, float("nan")], workers=1)
    assert result.rejected.reason.tolist() == ["empty", "empty"]


def test_largest_fragment_is_kept_on_request_and_reported() -> None:
    result = featurise(["[Na+].CC(=O)[O-]", "C"], workers=1, largest_fragment=True)
    assert result.smiles == ["CC(=O)[O-]", "C"]
    assert result.changed.row.tolist() == [0]
    assert "largest of 2" in result.changed.change[0]


def test_axial_chirality_is_reported_as_dropped() -> None:
    result = featurise(["CC=[C@]=CC", "C[C@H](F)Cl"], workers=1)
    assert result.changed.row.tolist() == [0]
    assert result.smiles[0] == "CC=C=CC"


def test_vocabulary_counts_valence_and_refuses_strangers() -> None:
    result = featurise(["CS(C)(=O)=O", "C[N+](C)(C)C", "CCO"], workers=1)
    words = result.vocabulary
    assert words.elements == ("C", "N", "O", "S")
    assert words.charges == (0, 1)
    assert words.max_valence == {("C", 0): 4, ("N", 1): 4, ("O", 0): 2, ("S", 0): 6}
    assert words.types == (("C", 0), ("N", 1), ("O", 0), ("S", 0))
    assert words.type_table == ((0, -1), (-1, 1), (2, -1), (3, -1))
    assert words.caps == (4, 4, 2, 6)
    assert Vocabulary.from_dict(words.to_dict()) == words
    other = featurise(["CCO", "CBr", "CC[O-]", "CN", "CCCCCCC"], workers=1, vocabulary=words)
    assert other.kept.tolist() == [0]
    assert [reason.split(" is not")[0] for reason in other.rejected.reason] == [
        "element Br", "charge -1 on O", "charge 0 on N", "too large: 7 heavy atoms, at most 5",
    ]  # fmt: skip


def test_vocabulary_from_molecules_agrees_with_featurise() -> None:
    smiles = list(HARD.values())
    assert (
        Vocabulary.from_molecules(map(Chem.MolFromSmiles, smiles)) == featurise(smiles, workers=1).vocabulary
    )


def test_workers_change_nothing_and_progress_reaches_the_end() -> None:
    smiles = (list(HARD.values()) + list(REFUSED)) * 15
    seen: list[tuple[int, int]] = []
    one, two = (
        featurise(smiles, workers=1),
        featurise(smiles, workers=2, progress=lambda *at: seen.append(at)),
    )
    assert one.smiles == two.smiles
    assert one.rejected.equals(two.rejected)
    assert_same_table(one.graphs, two.graphs)
    assert seen[-1] == (len(smiles), len(smiles))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_nothing_usable_is_an_error_that_counts_reasons() -> None:
    with pytest.raises(DataError, match="2 x salt or mixture"):
        featurise(["[Na+].[Cl-]", "[K+].[Cl-]", ""], workers=1)
    with pytest.raises(DataError, match="empty list"):
        featurise([], workers=1)
    with pytest.raises(DataError, match="wrap it in a list"):
        featurise("CCO", workers=1)
    with pytest.raises(ConfigError, match="generator"):
        featurise(["C"], workers=1, order="random")


def test_batches_equal_those_pyg_builds(hard: Featurised) -> None:
    table, indices = hard.graphs, [3, 0, 3, len(hard.graphs) - 1]
    batch = table.to_batch(indices)
    singles = []
    for k in indices:
        atoms = slice(table.atom_offset[k], table.atom_offset[k + 1])
        names = ("element", "charge", "hydrogens", "chirality", "in_ring")
        x = torch.tensor(
            [[int(getattr(table, name)[a]) for name in names] for a in range(atoms.start, atoms.stop)]
        )
        edges, values = [], []
        for b in range(table.bond_offset[k], table.bond_offset[k + 1]):
            i, j = map(int, table.bond_index[:, b])
            edges += [(i, j), (j, i)]
            values += [(int(table.bond_order[b]), int(table.bond_stereo[b]))] * 2
        edge_index = torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).T
        singles.append(Data(x=x, edge_index=edge_index, edge_attr=torch.tensor(values).reshape(-1, 2)))
    expected = Batch.from_data_list(singles)
    for name in ("x", "edge_index", "edge_attr", "batch", "ptr"):
        assert torch.equal(batch[name], expected[name]), name
    assert batch.num_graphs == len(indices)
    for ours, theirs in zip(batch.to_data_list(), singles, strict=True):
        assert torch.equal(ours.x, theirs.x)
        assert torch.equal(ours.edge_index, theirs.edge_index)


def test_a_molecule_without_bonds_batches() -> None:
    batch = featurise(["C", "CC"], workers=1).graphs.to_batch([0, 0, 1])
    assert batch.edge_index.tolist() == [[2, 3], [3, 2]]


def test_select_concatenate_save_and_load(hard: Featurised, tmp_path: Path) -> None:
    table = hard.graphs
    halves = GraphTable.concatenate([table.select(range(7)), table.select(range(7, len(table)))])
    assert_same_table(halves, table)
    mask = table.sizes() > 8
    assert_same_table(table.select(mask), table.select(np.flatnonzero(mask)))
    table.save(tmp_path / "table.npz")
    assert_same_table(GraphTable.load(tmp_path / "table.npz"), table)
    assert len(table.select([])) == 0
    with pytest.raises(IndexError):
        table.select([len(table)])
    with pytest.raises(DataError, match="no such file"):
        GraphTable.load(tmp_path / "absent.npz")


def test_cache_is_used_keyed_by_content_and_rebuilt_when_damaged(tmp_path: Path, monkeypatch) -> None:
    smiles = ["CCO", "C[C@H](F)Cl", "bad", None]
    first = featurise_cached(smiles, tmp_path, workers=1)
    (path,) = tmp_path.iterdir()
    module = featurise_cached.__globals__
    with monkeypatch.context() as patch:
        patch.setitem(module, "featurise", lambda *_, **__: pytest.fail("the cache was not used"))
        second = featurise_cached(smiles, tmp_path, workers=1)
    assert second.smiles == first.smiles
    assert second.vocabulary == first.vocabulary
    assert second.rejected.reason.tolist() == first.rejected.reason.tolist()
    assert_same_table(second.graphs, first.graphs)
    featurise_cached(smiles[::-1], tmp_path, workers=1)
    featurise_cached(smiles, tmp_path, workers=1, largest_fragment=True)
    assert len(list(tmp_path.iterdir())) == 3
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:-1], b"\0" * len(whole)):
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match="damaged"):
            third = featurise_cached(smiles, tmp_path, workers=1)
        assert_same_table(third.graphs, first.graphs)
        assert Featurised.load(path).smiles == first.smiles
    noticed = 0
    for position in range(0, len(whole), 41):  # one wrong byte anywhere is noticed, or was never read
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            loaded = Featurised.load(path)
        except DataError:
            noticed += 1
        else:
            assert_same_table(loaded.graphs, first.graphs)
            assert loaded.smiles == first.smiles
    assert noticed > 20


@pytest.mark.parametrize(
    ("symbols", "bonds", "words"),
    [
        (["C", "O"], [(0, 1, 3, 0)], "valence"),
        (["C", "C"], [(0, 1, 4, 0)], "4"),
        (["C", "C"], [(0, 1, 1, 0), (1, 0, 1, 0)], "already exists"),
        (["C"], [(0, 0, 1, 0)], ""),
        (["Xx"], [], "Xx"),
    ],
)
def test_rebuilding_nonsense_is_a_value_error(symbols: list[str], bonds: list, words: str) -> None:
    with pytest.raises(ValueError, match=f"RDKit refuses.*{words}"):
        to_mol(symbols, [0] * len(symbols), bonds, [0] * len(symbols))
