"""The graph autoencoder: it can represent everything, its loss is a likelihood, and padding does not exist for it."""

import numpy as np
import pytest
import torch
from rdkit import Chem

from sciLDM.autoencoders import NoiseBottleneck
from sciLDM.domains.molecules import autoencoder
from sciLDM.domains.molecules.autoencoder import (
    _MAX_PATH,
    GraphLogits,
    MolecularGraphAE,
    _path_lengths,
    upper_pairs,
)
from sciLDM.domains.molecules.decode import decode_molecules
from sciLDM.domains.molecules.vocabulary import Vocabulary
from sciLDM.errors import DataError
from tests.molecules.molecules import DRUG_LIKE, QM9_LIKE, features, logits_of

FOUND = features(QM9_LIKE)
DRUGS = features(DRUG_LIKE)


def small(vocabulary: Vocabulary = FOUND.vocabulary, **options: int) -> MolecularGraphAE:
    torch.manual_seed(0)
    return MolecularGraphAE(vocabulary, **{"channels": 6, "width": 32, "depth": 1, "heads": 2, **options})


def test_overfits_charges_and_stereo_to_the_last_bond() -> None:
    """32 molecules, exactly: atoms, bonds, chirality, double-bond geometry, through the decoder to SMILES."""
    special = [k for k, s in enumerate(FOUND.smiles) if set(s) & set("@/+\\")]
    rows = (special + [k for k in range(len(FOUND.smiles)) if k not in special][-32:])[:32]
    assert len(special) >= 8
    assert len(rows) == 32
    batch = FOUND.graphs.to_batch(np.array(rows))
    torch.manual_seed(0)
    model = MolecularGraphAE(FOUND.vocabulary, channels=8, width=48, depth=2, bottleneck=NoiseBottleneck(0.1))
    optimiser = torch.optim.Adam(model.parameters(), lr=4e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(400):
        loss = torch.stack([v.mean() for v in model.loss(batch, generator).values()]).sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 20 == 19:
            with torch.no_grad():
                decoded = model.decode(*model.code(batch))
            if model.metrics(batch, decoded)["exact_graph"].all():
                break
    assert model.metrics(batch, decoded)["exact_graph"].all()
    out = decode_molecules(decoded, FOUND.vocabulary)
    assert [d.smiles for d in out] == [FOUND.smiles[k] for k in rows]
    assert not any(d.changed for d in out)


def test_reconstruction_loss_is_the_exact_likelihood() -> None:
    """Ethanol and formaldehyde, every term written out."""
    names = ["CCO", "C=O"]
    found = features(names)
    model = small(found.vocabulary)
    batch = found.graphs.to_batch(np.arange(2))
    g = torch.Generator().manual_seed(1)
    kinds = len(found.vocabulary.types)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    shapes = (kinds,), (3,), (3, 4), (3, 3)
    logits = GraphLogits(*(torch.randn(2, 3, *s, generator=g) for s in shapes), mask)
    terms = model.reconstruction_loss(batch, logits)

    def p(values: torch.Tensor, choice: int) -> float:
        return float(values.double().softmax(-1)[choice].log())

    atoms = [[found.vocabulary.types.index((s, 0)) for s in text] for text in ("CCO", "CO")]
    bonds = [{(0, 1): 1, (0, 2): 0, (1, 2): 1}, {(0, 1): 2}]
    for k in range(2):
        expected = {
            "atom": -sum(p(logits.types[k, i], a) for i, a in enumerate(atoms[k])),
            "chirality": -sum(p(logits.chirality[k, i], 0) for i in range(len(atoms[k]))),
            "bond": -sum(p(logits.order[k, i, j], order) for (i, j), order in bonds[k].items()),
            "stereo": -sum(p(logits.stereo[k, i, j], 0) for (i, j), order in bonds[k].items() if order),
        }
        for name, value in expected.items():
            assert float(terms[name][k]) == pytest.approx(value, rel=1e-5), name
        caps = torch.tensor(found.vocabulary.caps).double()
        excess = 0.0
        for i in range(len(atoms[k])):
            pairs = [
                logits.order[k, *sorted((i, j))].double().softmax(-1) for j in range(len(atoms[k])) if j != i
            ]
            valence = sum(float(q @ torch.arange(4.0).double()) for q in pairs)
            excess += max(0.0, valence - float(logits.types[k, i].double().softmax(-1) @ caps))
        assert float(terms["valence"][k]) == pytest.approx(0.1 * excess, rel=1e-4, abs=1e-7)


def test_a_certain_decoder_has_no_loss() -> None:
    rows = list(range(len(FOUND.smiles)))
    batch, logits = FOUND.graphs.to_batch(np.array(rows)), logits_of(FOUND, rows, certainty=40.0)
    terms = small().reconstruction_loss(batch, logits)
    assert all(float(values.abs().max()) < 1e-4 for values in terms.values())
    assert small().metrics(batch, logits)["exact_graph"].all()


@pytest.mark.parametrize("field", ["types", "chirality", "order", "stereo"])
def test_exact_graph_sees_one_wrong_mark(field: str) -> None:
    row = [FOUND.smiles.index(s) for s in FOUND.smiles if "/C=C/" in s][:1]
    batch, logits = FOUND.graphs.to_batch(np.array(row)), logits_of(FOUND, row)
    model = small()
    assert model.metrics(batch, logits)["exact_graph"].item() == 1
    values = getattr(logits, field)
    bonded = (logits.order.argmax(-1) > 0).nonzero()[0]
    where = tuple(bonded[: 2 if field in ("types", "chirality") else 3].tolist())
    values[where] = values[where].roll(1)
    assert model.metrics(batch, logits)["exact_graph"].item() == 0


def test_symmetric_atoms_get_different_latents() -> None:
    benzene = FOUND.smiles.index("c1ccccc1")
    with torch.no_grad():
        z, mask = small().eval().code(FOUND.graphs.to_batch(np.array([benzene])))
    assert mask is not None
    assert mask.all()
    distance = torch.cdist(z[0].T, z[0].T) + 10 * torch.eye(6)
    assert float(distance.min()) > 0.05


def test_padding_has_no_influence() -> None:
    """Alone, beside larger molecules, and with garbage in the cells that do not exist: the same latents and logits."""
    model = small().eval()
    rows = np.array([FOUND.smiles.index(s) for s in ("C", "CCO", "CC#N", "c1ccccc1")])
    with torch.no_grad():
        z, mask = model.code(FOUND.graphs.to_batch(rows))
        together = model.decode(z, mask)
        garbage = model.decode(torch.where(mask[:, None], z, 1e3 * torch.randn_like(z)), mask)
        for k, row in enumerate(rows):
            alone, own = model.code(FOUND.graphs.to_batch(np.array([row])))
            n = own.shape[1]
            assert torch.allclose(z[k, :, :n], alone[0], atol=1e-5)
            assert not z[k, :, n:].any()
            for name in ("types", "chirality"):
                assert torch.allclose(
                    getattr(together, name)[k, :n], getattr(model.decode(alone, own), name)[0], atol=1e-4
                )
                assert torch.equal(getattr(together, name)[k, :n], getattr(garbage, name)[k, :n])
            for name in ("order", "stereo"):
                assert torch.equal(getattr(together, name)[k, :n, :n], getattr(garbage, name)[k, :n, :n])


def test_gradients_ignore_padding() -> None:
    model = small()
    rows = np.array([FOUND.smiles.index(s) for s in ("CO", "c1ccccc1")])
    batch = FOUND.graphs.to_batch(rows)
    z = torch.randn(2, 6, 6, requires_grad=True)
    mask = torch.arange(6)[None] < torch.tensor([[2], [6]])
    torch.stack(
        [v.sum() for v in model.reconstruction_loss(batch, model.decode(z, mask)).values()]
    ).sum().backward()
    assert z.grad is not None
    assert not z.grad[0, :, 2:].any()
    assert z.grad[0, :, :2].any()


def test_path_lengths_are_rdkits() -> None:
    """Every molecule, a ring of 20 and a chain of 30 (longer than the cap), and two parts that are not connected."""
    texts = [*QM9_LIKE, *DRUG_LIKE, "C1" + "C" * 18 + "C1", "C" * 30]
    for text in texts:
        mol = Chem.MolFromSmiles(text)
        adjacency = torch.from_numpy(Chem.GetAdjacencyMatrix(mol).astype(np.int64))
        exact = torch.from_numpy(Chem.GetDistanceMatrix(mol)).long()
        expected = torch.where(exact > _MAX_PATH, _MAX_PATH + 1, exact)
        assert torch.equal(_path_lengths(adjacency[None])[0], expected), text
    two = torch.zeros(1, 4, 4, dtype=torch.long)
    two[0, 0, 1] = two[0, 1, 0] = 2
    lengths = _path_lengths(two)[0]
    assert lengths[0].tolist() == [0, 1, _MAX_PATH + 1, _MAX_PATH + 1]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(_path_lengths(adjacency[None])[0], expected)


def test_padding_does_not_need_an_atom_of_element_0_and_charge_0() -> None:
    """Charges -1, 0, 1 with carbon first: (C, -1) was never seen, so the table holds -1 just where padding points."""
    found = features(["CC[O-]", "C[NH3+]", "CCCC"])
    assert found.vocabulary.type_table[0][0] == -1
    batch = found.graphs.to_batch(np.arange(3))
    terms = small(found.vocabulary).loss(batch, torch.Generator().manual_seed(0))
    assert all(bool(v.isfinite().all()) for v in terms.values())


def test_foreign_molecules_are_a_clear_error() -> None:
    found = features(["CC[O-]", "C[NH3+]", "CCCC"])
    model = small(found.vocabulary)
    batch = found.graphs.to_batch(np.array([2]))
    batch.x[1, 1] = 0  # a carbanion: both halves are known, the pair is not
    with pytest.raises(
        DataError, match=r"an atom is not among this model's \(C, N\+1, O-1\); featurise with"
    ):
        model.encode(batch)
    batch.x[1, 0] = 7
    with pytest.raises(DataError, match="an atom is not among"):
        model.encode(batch)
    with pytest.raises(DataError, match="6 heavy atoms, this model holds at most 4"):
        model.encode(FOUND.graphs.to_batch(np.array([FOUND.smiles.index("c1ccccc1")])))


def test_drugs_go_through_too() -> None:
    model = small(DRUGS.vocabulary, depth=2)
    batch = DRUGS.graphs.to_batch(np.arange(len(DRUGS.smiles)))
    terms = model.loss(batch, torch.Generator().manual_seed(0))
    torch.stack([v.sum() for v in terms.values()]).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_upper_pairs() -> None:
    assert upper_pairs(torch.tensor([[True, True, False]])).nonzero().tolist() == [[0, 0, 1]]


def test_attention_and_gelu_for_half_precision_are_those_of_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain products that bfloat16 takes on CPUs, in float32: apart from the two forms of GELU the same numbers."""
    model = small(DRUGS.vocabulary, depth=2)
    batch = DRUGS.graphs.to_batch(np.arange(len(DRUGS.smiles)))
    with torch.no_grad():
        fused = model.encode(batch).mean
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model.encode(batch).mean
        monkeypatch.setattr(autoencoder, "_half_on_cpu", lambda x: True)
        plain = model.encode(batch).mean
    scale = float(fused.abs().max())
    assert float((plain - fused).abs().max()) < 1e-3 * scale
    assert float((half - fused).abs().max()) < 0.05 * scale
