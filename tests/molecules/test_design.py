"""Scaffolds and joint requests: what is guaranteed holds for any logits; a model does better than the clamp alone."""

from types import SimpleNamespace
from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import torch

pytest.importorskip("rdkit")

from rdkit import Chem

import sciLDM
from sciLDM.cli import main
from sciLDM.domains.molecules.autoencoder import GraphLogits
from sciLDM.domains.molecules.design import decorate
from sciLDM.domains.molecules.design_decode import constrain_around, decode_around, scaffold_likelihood
from sciLDM.domains.molecules.design_joint import joint_table
from sciLDM.domains.molecules.design_scaffold import Placement, Scaffold, draw_placements
from sciLDM.domains.molecules.vocabulary import Vocabulary
from sciLDM.errors import ConfigError, DataError

VOCABULARY = Vocabulary(
    ("C", "N", "O", "F"), (0, 1),
    {("C", 0): 4, ("N", 0): 3, ("N", 1): 4, ("O", 0): 2, ("F", 0): 1}, 12,
)  # fmt: skip
SCAFFOLDS = [
    "c1cc[nH]c1",
    "*n1cccc1",
    "C1CC1",
    "*C1CC1",
    "O=C1CCN1",
    "*C1CC(*)C1",
    "C#N",
    "c1ccncc1",
    "C[NH3+]",
]


def generators(count: int, seed: int) -> list[np.random.Generator]:
    return [np.random.default_rng([seed, k]) for k in range(count)]


# --- scaffolds -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("scaffold", "smiles", "inside"),
    [
        ("c1cc[nH]c1", "Cn1cccc1CO", True),
        ("*n1cccc1", "Cn1cccc1", True),
        ("*n1cccc1", "Cn1cccc1C", False),  # a closed atom is substituted
        ("*n1cccc1", "c1cc[nH]c1", True),
        ("*C1CC1", "OC1CC1", True),
        ("*C1CC1", "OC1CC1C", False),
        ("C1CC1", "OC1CC1C", True),
        ("C1CC1", "CCC", False),
        ("c1ccccc1", "C1CCCCC1", False),
        ("C[NH3+]", "CC[NH3+]", True),
        ("C[NH3+]", "CCN", False),
    ],
)
def test_scaffolds_by_hand(scaffold: str, smiles: str, inside: bool) -> None:
    assert Scaffold(scaffold).is_in(Chem.MolFromSmiles(smiles)) is inside
    assert not Scaffold(scaffold).is_in(None)


@pytest.mark.parametrize(
    ("smiles", "message"),
    [
        ("C1CC", "cannot read"),
        ("C.C", "connected"),
        ("*", "connected"),
        ("FC(F)(F)F", "attached"),
        ("", "connected"),
    ],
)
def test_what_is_no_scaffold(smiles: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Scaffold(smiles)


@pytest.mark.parametrize("smiles", SCAFFOLDS)
def test_placements_hold_the_scaffold(smiles: str) -> None:
    scaffold = Scaffold(smiles)
    sizes = [len(scaffold) + 1 + k % 4 for k in range(12)]
    kekule = Chem.Mol(scaffold.mol)
    Chem.Kekulize(kekule, clearAromaticFlags=True)
    bonds = sorted(int(b.GetBondTypeAsDouble()) for b in kekule.GetBonds())
    for size, found in zip(
        sizes, draw_placements(scaffold, sizes, VOCABULARY, generators(12, 1)), strict=True
    ):
        assert found.atoms == size
        assert len(found.positions) == len(scaffold)
        assert (np.diff(found.positions) > 0).all()
        assert found.positions.max() < size
        assert sorted(found.order[found.order > 0].tolist()) == bonds
        assert found.open.sum() == sum(scaffold.open)
        assert sorted(VOCABULARY.types[t][0] for t in found.types) == sorted(
            a.GetSymbol() for a in kekule.GetAtoms()
        )


def test_placements_refuse_what_cannot_be_written() -> None:
    for smiles, size, message in (
        ("C1CC1", 3, "more than its 3"),
        ("C1CC1", 13, "at most 12"),
        ("C1CS1", 5, "C N O F"),
    ):
        with pytest.raises(DataError, match=message):
            draw_placements(Scaffold(smiles), [size], VOCABULARY, generators(1, 0))


# --- decoding --------------------------------------------------------------------------------------
def random_logits(count: int, atoms: int, seed: int) -> GraphLogits:
    made = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return 3 * torch.randn(count, *shape, generator=made)

    return GraphLogits(
        draw(atoms, 5),
        draw(atoms, 3),
        draw(atoms, atoms, 4),
        draw(atoms, atoms, 3),
        torch.ones(count, atoms).bool(),
    )


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(st.sampled_from(SCAFFOLDS), st.integers(1, 5), st.integers(0, 10**6))
def test_any_logits_decode_to_molecules_with_the_scaffold(smiles: str, more: int, seed: int) -> None:
    scaffold = Scaffold(smiles)
    atoms = len(scaffold) + more
    placements = draw_placements(scaffold, [atoms] * 6, VOCABULARY, generators(6, seed))
    decoded = decode_around(random_logits(6, atoms, seed), placements, VOCABULARY)
    mols = [Chem.MolFromSmiles(one.smiles) for one in decoded if one.smiles is not None]
    assert len(mols) == 6
    # Only a change of what is aromatic (a ring fused by the decoration) can hide it; such samples are drawn again.
    assert np.mean([scaffold.is_in(mol) for mol in mols]) >= 0.5
    assert all(mol.GetNumAtoms() >= len(scaffold) for mol in mols)


@hypothesis.settings(deadline=None, max_examples=50)
@hypothesis.given(st.sampled_from(SCAFFOLDS), st.integers(1, 6), st.integers(0, 10**6))
def test_the_constraint_keeps_bonds_caps_and_closed_atoms(smiles: str, more: int, seed: int) -> None:
    scaffold, rng = Scaffold(smiles), np.random.default_rng(seed)
    atoms = len(scaffold) + more
    (placement,) = draw_placements(scaffold, [atoms], VOCABULARY, [rng])
    types = rng.integers(0, 5, atoms)
    types[placement.positions] = placement.types
    order = np.triu(rng.integers(0, 4, (atoms, atoms)), 1)
    order[np.ix_(placement.positions, placement.positions)] = placement.order
    caps = np.asarray(VOCABULARY.caps)[types]
    keep, bonds = constrain_around(order, rng.normal(size=(atoms, atoms)), caps, placement)
    whole = np.zeros((atoms, atoms), dtype=int)
    whole[np.ix_(keep, keep)] = bonds
    place = placement.positions
    assert (whole[np.ix_(place, place)] == placement.order).all()
    assert ((whole + whole.T).sum(1) <= caps).all()
    outside = np.setdiff1d(np.arange(atoms), place)
    both = whole + whole.T
    assert not both[np.ix_(place[~placement.open], outside)].any()
    reach = np.linalg.matrix_power((both[np.ix_(keep, keep)] > 0) + np.eye(len(keep)), len(keep)) > 0
    assert reach.all()
    assert set(place) <= set(keep)


def test_likelihood_is_the_product_over_facts() -> None:
    logits = random_logits(1, 3, 0)
    types, order = torch.tensor([[2, 0, 1]]), torch.tensor([[[0, 2, 0], [0, 0, 1], [0, 0, 0]]])
    known, pairs = torch.tensor([[True, False, True]]), torch.zeros(1, 3, 3, dtype=torch.bool)
    pairs[0, 0, 1] = True
    p = logits.types.softmax(-1)[0]
    expected = p[0, 2] * p[2, 1] * logits.order.softmax(-1)[0, 0, 1, 2]
    assert scaffold_likelihood(logits, types, order, known, pairs).exp().item() == pytest.approx(
        expected.item()
    )


# --- a trained model -------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def model() -> Any:
    found = sciLDM.load("qm9-small")
    found.state["source"]["name"] = found.codec.state["source"]["name"] = "elsewhere"  # no nearest neighbours
    return found


@pytest.mark.filterwarnings("ignore:the training molecules are not at hand")
def test_decorated_molecules_contain_the_scaffold(model: Any) -> None:
    asked = {"steps": 8, "seed": 3, "rounds": 1}
    found = decorate(model, "*C1CC1", 12, **asked).table
    assert found["contains"].all()
    assert found["smiles"].notna().all()
    scaffold = Scaffold("*C1CC1")
    assert all(scaffold.is_in(Chem.MolFromSmiles(s)) for s in found["smiles"])
    # Insisting on a scaffold is steep where the decoder decides: rounding, other in other batches, may tip a molecule.
    alone = decorate(model, "*C1CC1", 12, batch_size=2, **asked).table
    assert (alone["smiles"] == found["smiles"]).sum() >= 10
    clamped = decorate(model, "*C1CC1", 12, insist=0, **asked).table
    assert clamped["contains"].all()
    assert clamped["contains_raw"].sum() <= found["contains_raw"].sum()


@pytest.mark.filterwarnings("ignore:the training molecules are not at hand")
def test_decorations_meet_other_requests_too(model: Any) -> None:
    found = decorate(model, "C1CC1", 6, cond={"atoms": 6, "logP": [0, 1] * 3}, steps=4, rounds=1)
    assert [m.GetNumHeavyAtoms() <= 6 for m in found.mols if m is not None] == [True] * 6
    assert found.table["requested_logP"].tolist() == [0, 1] * 3
    with pytest.raises(ConfigError, match="from 1"):
        decorate(model, "C1CC1", 0)
    with pytest.raises(ConfigError, match="molecules"):
        decorate(SimpleNamespace(codec=None), "C1CC1", 2)


# --- several properties at once --------------------------------------------------------------------
def test_joint_requests_by_hand() -> None:
    pool = ["CCO", "CCCCC", "c1ccccc1"]
    known = ["logP", "MW"]
    asked: list[dict[str, Any]] = []

    def sample(count: int, cond: dict[str, Any]) -> SimpleNamespace:
        asked.append(cond)
        base = {n: np.asarray(cond.get(n, [0.0] * count)) for n in ("logP", "MW")}
        table = pd.DataFrame({"smiles": ["CCO"] * count})
        table["realised_logP"], table["realised_MW"] = base["logP"] + 0.5, base["MW"] * 1.0
        return SimpleNamespace(table=table)

    found = joint_table(sample, known, ["logP", "MW"], pool, samples=6)
    rows = {row["property"]: row for row in found.rows}
    assert rows["logP of logP+MW"]["mae"] == pytest.approx(0.5)
    assert rows["MW of logP+MW"]["mae"] == 0.0
    assert rows["MW of logP+MW"]["ratio"] == 0.0
    assert rows["logP of logP+MW"]["spearman"] == pytest.approx(1.0)
    assert rows["logP of logP+MW"]["uniqueness"] == pytest.approx(1 / 6)
    pairs = {(round(a, 3), round(b, 3)) for a, b in zip(asked[0]["logP"], asked[0]["MW"], strict=True)}
    assert len(pairs) == 3  # combinations of real molecules, not of single values
    assert asked[1] == {}
    with pytest.raises(ConfigError, match="two or more of logP, MW"):
        joint_table(sample, known, ["logP", "QED"], pool)


def test_the_command_passes_the_scaffold_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[Any] = []

    class Domain:
        name, formats = "molecules", (".csv",)

        @staticmethod
        def decorate(model: Any, scaffold: str, count: int, **options: Any) -> SimpleNamespace:
            options.pop("progress")(1, 1)
            calls.append((scaffold, count, options))
            return SimpleNamespace(
                table=pd.DataFrame({"smiles": ["C1CC1"] * count, "contains": [True] * count})
            )

    stub: Any = SimpleNamespace(
        codec=SimpleNamespace(conditions=()),
        experiment=SimpleNamespace(domain=Domain()),
        reference=None,
        card={},
    )
    stub.to = lambda *_args, **_options: stub
    stub.sample = None
    monkeypatch.setattr("sciLDM.model.load", lambda name: stub)
    assert main(["sample", "x", "-n", "4", "--scaffold", "*C1CC1", "--seed", "2"]) == 0
    assert calls[0][:2] == ("*C1CC1", 4)
    assert calls[0][2]["seed"] == 2
    assert "contains 100.0%" in capsys.readouterr().out
    stub.experiment.domain = SimpleNamespace(name="climate")
    assert main(["sample", "x", "--scaffold", "C"]) == 2
    assert "climate have no scaffolds" in " ".join(capsys.readouterr().err.split())


def test_a_placement_without_room_stays_the_scaffold() -> None:
    whole = Placement(
        3, np.array([0, 1]), np.array([0, 0]), np.array([[0, 3], [0, 0]]), np.array([False, False])
    )
    keep, bonds = constrain_around(np.zeros((3, 3), int), np.zeros((3, 3)), np.array([4, 4, 4]), whole)
    assert keep.tolist() == [0, 1]
    assert bonds.tolist() == [[0, 3], [0, 0]]
