"""Whatever the decoder's logits say, what comes out is a molecule; and a sound graph comes out as it went in."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from rdkit import Chem, rdBase

from sciLDM.domains.molecules.autoencoder import GraphLogits
from sciLDM.domains.molecules.decode import Decoded, constrain, decode_molecules
from sciLDM.domains.molecules.vocabulary import Vocabulary
from tests.molecules.molecules import DRUG_LIKE, QM9_LIKE, features, logits_of, valences

FOUND = {"qm9": features(QM9_LIKE), "drugs": features(DRUG_LIKE)}
VOCABULARIES = {name: found.vocabulary for name, found in FOUND.items()}


def check(decoded: Decoded, vocabulary: Vocabulary) -> None:
    """Valid, one piece, inside the vocabulary and its caps, canonical."""
    assert decoded.mol is not None
    assert decoded.smiles is not None
    assert len(Chem.GetMolFrags(decoded.mol)) == 1
    again = Chem.MolFromSmiles(decoded.smiles)
    assert again is not None
    assert Chem.MolToSmiles(again) == decoded.smiles
    for symbol, charge, valence in valences(decoded.mol):
        assert valence <= vocabulary.max_valence[symbol, charge], (decoded.smiles, symbol, charge, valence)


def raw_molecule(logits: GraphLogits, k: int, vocabulary: Vocabulary) -> str | None:
    """The argmax graph by RDKit alone, without stereo; None when RDKit refuses it."""
    n = int(logits.mask[k].sum())
    mol = Chem.RWMol()
    for kind in logits.types[k, :n].argmax(-1).tolist():
        symbol, charge = vocabulary.types[kind]
        atom = Chem.Atom(symbol)
        atom.SetFormalCharge(charge)
        mol.AddAtom(atom)
    order = logits.order[k, :n, :n].argmax(-1).triu(1)
    for i, j in order.nonzero().tolist():
        mol.AddBond(
            i, j, [None, Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE][int(order[i, j])]
        )
    with rdBase.BlockLogs():
        return None if Chem.SanitizeMol(mol, catchErrors=True) else Chem.MolToSmiles(mol)


def random_logits(name: str, seed: int, sharpness: float, sparsity: float, count: int = 8) -> GraphLogits:
    g, n = torch.Generator().manual_seed(seed), VOCABULARIES[name].max_atoms
    order = torch.randn(count, n, n, 4, generator=g)
    order[..., 0] += sparsity
    mask = torch.arange(n)[None] < torch.randint(1, n + 1, (count, 1), generator=g)
    types = torch.randn(count, n, len(VOCABULARIES[name].types), generator=g)
    chirality, stereo = torch.randn(count, n, 3, generator=g), torch.randn(count, n, n, 3, generator=g)
    return GraphLogits(types * 3, chirality * 3, order * sharpness, stereo * 3, mask)


@pytest.mark.parametrize("name", VOCABULARIES)
@settings(max_examples=12)
@given(seed=st.integers(0, 2**31), sharpness=st.sampled_from([0.1, 1.0, 20.0]), sparsity=st.floats(-1, 4))
def test_any_logits_give_a_molecule(name: str, seed: int, sharpness: float, sparsity: float) -> None:
    logits, vocabulary = random_logits(name, seed, sharpness, sparsity), VOCABULARIES[name]
    for k, decoded in enumerate(decode_molecules(logits, vocabulary)):
        check(decoded, vocabulary)
        raw = raw_molecule(logits, k, vocabulary)
        assert decoded.valid_raw == (raw is not None)
        # What was constrained had too many bonds or several pieces, so it cannot by chance be the raw molecule.
        plain = Chem.MolToSmiles(Chem.MolFromSmiles(Chem.MolToSmiles(decoded.mol, isomericSmiles=False)))
        assert decoded.changed == (plain != raw)
        if not decoded.changed:
            assert decoded.valid_raw
            assert decoded.connected_raw
            assert decoded.smiles == decoded.raw_smiles


@pytest.mark.parametrize(
    ("name", "kind"), [(name, k) for name, v in VOCABULARIES.items() for k in range(len(v.types))]
)
@pytest.mark.parametrize("bond", [0, 1, 3], ids=["no bonds", "all single", "all triple"])
def test_one_kind_of_atom_everywhere(name: str, bond: int, kind: int) -> None:
    """Every atom a fluorine, or an oxide, or a carbon, each with every bond of one order."""
    vocabulary, n = VOCABULARIES[name], 7
    types = torch.nn.functional.one_hot(torch.full((1, n), kind), len(vocabulary.types)).float()
    order = torch.zeros(1, n, n, 4)
    order[..., bond] = 9.0
    logits = GraphLogits(
        types, torch.zeros(1, n, 3), order, torch.zeros(1, n, n, 3), torch.ones(1, n, dtype=torch.bool)
    )
    (decoded,) = decode_molecules(logits, vocabulary)
    check(decoded, vocabulary)
    assert decoded.mol is not None
    # Seven sulphurs of valence six may indeed all be bonded to each other.
    assert decoded.changed == (bond != 1 or vocabulary.caps[kind] < n - 1)
    # n atoms of valence c can all hang together when n c >= 2 (n - 1); otherwise only two of valence one can.
    expected = n if vocabulary.caps[kind] >= 2 else 2
    assert decoded.mol.GetNumHeavyAtoms() == expected


@pytest.mark.parametrize("name", FOUND)
def test_a_sound_graph_comes_out_as_it_went_in(name: str) -> None:
    found = FOUND[name]
    rows = list(range(len(found.smiles)))
    for smiles, decoded in zip(
        found.smiles, decode_molecules(logits_of(found, rows), found.vocabulary), strict=True
    ):
        assert (decoded.smiles, decoded.raw_smiles, decoded.changed) == (smiles, smiles, False)
        assert decoded.valid_raw
        assert decoded.connected_raw


def test_a_graph_beyond_the_observed_valences_is_constrained_though_rdkit_accepts_it() -> None:
    """Sulphur was only ever seen with two bonds, so a sulphone is out of reach, and said to be changed."""
    found = features(["CSC", "C=O", "CC(C)O"])
    vocabulary = found.vocabulary
    sulphur, carbon, oxygen = (vocabulary.types.index((s, 0)) for s in "SCO")
    types = torch.nn.functional.one_hot(
        torch.tensor([[sulphur, carbon, carbon, oxygen]]), len(vocabulary.types)
    ).float()
    order = torch.zeros(1, 4, 4, 4)
    order[..., 0] = 1.0
    for j, kind, strength in ((1, 1, 9.0), (2, 1, 8.0), (3, 2, 7.0)):
        order[0, 0, j] = torch.eye(4)[kind] * strength
    logits = GraphLogits(
        types, torch.zeros(1, 4, 3), order, torch.zeros(1, 4, 4, 3), torch.ones(1, 4, dtype=torch.bool)
    )
    (decoded,) = decode_molecules(logits, vocabulary)
    assert decoded.raw_smiles == "CS(C)=O"
    assert decoded.valid_raw
    assert decoded.changed
    check(decoded, vocabulary)


def test_left_over_valence_is_used_before_atoms_are_left_out() -> None:
    """Eight fluorines and a carbon are CF4, not CHF3; an atom that makes no bonds is in nobody's way."""
    n, order = 9, np.zeros((9, 9), dtype=np.int64)
    odds = np.random.default_rng(0).normal(size=(n, n))
    keep, bonds = constrain(order, odds, np.array([4] + [1] * 8))
    assert keep[0] == 0
    assert len(keep) == 5
    assert bonds.sum() == 4
    keep, bonds = constrain(np.zeros((3, 3), dtype=np.int64), odds[:3, :3], np.array([1, 0, 1]))
    assert keep.tolist() == [0, 2]
    keep, bonds = constrain(np.zeros((2, 2), dtype=np.int64), odds[:2, :2], np.array([0, 0]))
    assert len(keep) == 1


@given(caps=st.lists(st.integers(1, 4), min_size=1, max_size=9), seed=st.integers(0, 1000))
def test_every_atom_is_kept_when_valence_allows_a_connected_graph(caps: list[int], seed: int) -> None:
    """A tree with these degrees at most exists if and only if their sum reaches 2 (n - 1)."""
    n, rng = len(caps), np.random.default_rng(seed)
    order = np.triu(rng.integers(0, 4, (n, n)), 1)
    keep, bonds = constrain(order, rng.normal(size=(n, n)), np.array(caps))
    degree = bonds.sum(0) + bonds.sum(1)
    assert (degree <= np.array(caps)[keep]).all()
    reach = np.linalg.matrix_power(np.eye(len(keep), dtype=np.int64) + ((bonds + bonds.T) > 0), len(keep))
    assert (reach > 0).all()
    assert (len(keep) == n) == (sum(caps) >= 2 * (n - 1))


def test_one_atom_molecules() -> None:
    found = features(["C", "N", "[F-]", "CC"])
    out = decode_molecules(logits_of(found, [0, 1, 2]), found.vocabulary)
    assert [d.smiles for d in out] == ["C", "N", "[F-]"]
    assert not any(d.changed for d in out)


def test_order_of_the_batch_and_padding_do_not_matter() -> None:
    logits, vocabulary = random_logits("qm9", 5, 1.0, 1.0, count=16), VOCABULARIES["qm9"]
    out = decode_molecules(logits, vocabulary)
    flip = torch.arange(15, -1, -1)
    parts = (logits.types, logits.chirality, logits.order, logits.stereo, logits.mask)
    flipped = decode_molecules(GraphLogits(*(p[flip] for p in parts)), vocabulary)
    assert [d.smiles for d in flipped[::-1]] == [d.smiles for d in out]
    assert [d.changed for d in flipped[::-1]] == [d.changed for d in out]

    g, pairs = torch.Generator().manual_seed(1), logits.mask[:, :, None] & logits.mask[:, None]
    noise = [50 * torch.randn(p.shape, generator=g) for p in parts[:4]]
    keep = (logits.mask[..., None], logits.mask[..., None], pairs[..., None], pairs[..., None])
    noisy = [torch.where(k, p, n) for k, p, n in zip(keep, parts[:4], noise, strict=True)]
    assert [d.smiles for d in decode_molecules(GraphLogits(*noisy, logits.mask), vocabulary)] == [
        d.smiles for d in out
    ]
    # The lower triangle of pairs is no part of the output either.
    upper = torch.ones(logits.order.shape[1:3]).triu(1).bool()[..., None]
    one_sided = [torch.where(upper, parts[2], noise[2]), torch.where(upper, parts[3], noise[3])]
    again = decode_molecules(GraphLogits(parts[0], parts[1], *one_sided, logits.mask), vocabulary)
    assert [d.smiles for d in again] == [d.smiles for d in out]
