"""Quantities predicted from the denoiser's activations."""

import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import rdMolDescriptors

import sciLDM
from sciLDM import explore
from sciLDM.artefact import shipped_artefacts
from sciLDM.domains.molecules.reference import Reference
from sciLDM.errors import ConfigError, DataError
from sciLDM.explore.activations import activations
from sciLDM.explore.probe import conformal_quantile
from sciLDM.model import LatentDiffusion
from tests.molecules.molecules import QM9_LIKE

NEUTRAL = [s for s in QM9_LIKE if not any(c in s for c in "+-@/\\")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LatentDiffusion:
    if "qm9-small" not in shipped_artefacts():
        pytest.skip("needs the shipped model qm9-small")
    torch.set_num_threads(1)
    model = sciLDM.load("qm9-small")
    model.reference = tmp_path_factory.mktemp("reference")
    Reference.write(model.reference, NEUTRAL, NEUTRAL)  # nearest neighbours are not looked up among 100,000
    return model


def hydrogens(smiles: list[str]) -> np.ndarray:
    """Hydrogen atoms, which the latents do not count."""
    found = [Chem.AddHs(Chem.MolFromSmiles(s)) for s in smiles]
    return np.array([sum(a.GetAtomicNum() == 1 for a in m.GetAtoms()) for m in found], dtype=float)


def test_features_are_of_the_object_alone(model: LatentDiffusion) -> None:
    encoded = explore.encode(model, ["CCO", "Cc1ccccc1", "CO"])
    together = activations(model, encoded)
    assert torch.allclose(activations(model, encoded, batch_size=1), together, atol=1e-4)
    assert torch.allclose(activations(model, encoded.rows([1])), together[[1]], atol=1e-4)
    assert together[:, -1].tolist() == [3.0, 7.0, 2.0]
    assert not model.denoiser.net.norm._forward_hooks  # type: ignore[union-attr]


def test_hydrogens_are_counted_from_latents(model: LatentDiffusion) -> None:
    values = hydrogens(NEUTRAL)
    values[::5] = np.nan
    probe = explore.fit_probe(model, NEUTRAL, values)
    assert probe.count == int(np.isfinite(values).sum())
    assert probe.mae < 0.5 * probe.mae_constant
    found = probe.predict(model, NEUTRAL[::5], level=0.8)
    truth = hydrogens(NEUTRAL[::5])
    assert np.abs(found.mean - truth).mean() < 0.5 * np.abs(truth - truth.mean()).mean()
    assert np.mean((truth >= found.low) & (truth <= found.high)) >= 0.6


def test_polar_surface_of_unseen_molecules(model: LatentDiffusion) -> None:
    """A property that fingerprints know exactly: the features must hold what atoms are there."""
    made = model.sample(260, seed=4, steps=8).smiles
    smiles = sorted(set(made))
    truth = np.array([rdMolDescriptors.CalcTPSA(Chem.MolFromSmiles(s)) for s in smiles])
    order = np.random.default_rng(0).permutation(len(smiles))
    train, test = order[:170], order[170:]
    probe = explore.fit_probe(model, [smiles[k] for k in train], truth[train])
    found = probe.predict(model, [smiles[k] for k in test])
    assert np.abs(found.mean - truth[test]).mean() < 0.25 * np.abs(truth[test] - truth[train].mean()).mean()
    inside = np.mean((truth[test] >= found.low) & (truth[test] <= found.high))
    assert inside >= 0.75


def test_conformal_ranks_cover_exactly() -> None:
    """Over all orders of K + 1 exchangeable scores, the last is inside with probability `rank / (K + 1)`."""
    scores = np.arange(1.0, 10.0)
    assert conformal_quantile(scores, 0.9) == 9.0
    assert conformal_quantile(scores, 0.8) == 8.0
    with pytest.raises(ConfigError, match="needs at least 19 held-out"):
        conformal_quantile(scores, 0.95)


def test_what_cannot_be_learned(model: LatentDiffusion) -> None:
    with pytest.raises(DataError, match="at least 20 labelled objects, got 3"):
        explore.fit_probe(model, ["CCO", "CC", "CO"], [1.0, 2.0, 3.0])
    with pytest.raises(DataError, match="nothing to predict"):
        explore.fit_probe(model, NEUTRAL, np.ones(len(NEUTRAL)))
    with pytest.raises(DataError, match="a value for each"):
        explore.fit_probe(model, ["CCO", "CC"], [1.0])
    with pytest.raises(ConfigError, match="held_out"):
        explore.fit_probe(model, ["CCO"], [1.0], held_out=1.0)
