"""Self-training: targets are what decoding makes of outputs, and a decoder learns to say them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sciLDM.autoencoders import LatentStats
from sciLDM.data.latent_cache import LatentCache
from sciLDM.domains.molecules.autoencoder import GraphLogits
from sciLDM.domains.molecules.decode import decode_molecules
from sciLDM.domains.molecules.settle import settle, settled_loss
from sciLDM.errors import ArtefactError, ConfigError, DataError
from sciLDM.self_train import self_train
from sciLDM.training import DecoderStage, SelfTraining, SettledLatents, StageSettings
from tests.molecules.molecules import QM9_LIKE, features, logits_of
from tests.tiny import config, run, stage, tiny_run

FOUND = features(QM9_LIKE)
SHORT = StageSettings(max_steps=60, batch_size=64, warmup_steps=5, learning_rate=3e-3)
SETTINGS = SelfTraining(samples=200, steps=4)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def certain(settled: dict[str, torch.Tensor], like: GraphLogits) -> GraphLogits:
    """Logits that read exactly so, with the shapes of others."""
    n = like.mask.shape[1]

    def peaks(values: torch.Tensor, classes: int) -> torch.Tensor:
        inside = values[:, :n] if values.ndim == 2 else values[:, :n, :n]
        return 10.0 * torch.nn.functional.one_hot(inside.long(), classes).float()

    return GraphLogits(
        peaks(settled["types"], like.types.shape[-1]), peaks(settled["chirality"], 3), peaks(settled["order"], 4),
        peaks(settled["stereo"], 3), like.mask,
    )  # fmt: skip


def spoilt(seed: int, scale: float) -> GraphLogits:
    """Real molecules, their bonds blurred until many break the caps."""
    logits = logits_of(FOUND, range(len(FOUND.smiles)))
    g = torch.Generator().manual_seed(seed)
    order = logits.order + scale * torch.randn(logits.order.shape, generator=g)
    return GraphLogits(logits.types, logits.chirality, order, logits.stereo, logits.mask)


@pytest.mark.parametrize("scale", [0.0, 3.0, 6.0])
def test_targets_are_what_decoding_gives(scale: float) -> None:
    logits = spoilt(0, scale)
    settled = settle(logits, FOUND.vocabulary)
    assert settled["types"].shape[1] == FOUND.vocabulary.max_atoms
    again = decode_molecules(certain(settled, logits), FOUND.vocabulary)
    for target, decoded, usable, changed in zip(
        again, decode_molecules(logits, FOUND.vocabulary), settled["usable"], settled["changed"], strict=True
    ):
        assert bool(changed) == decoded.changed or not decoded.valid_raw
        if usable:
            assert not target.changed
            assert target.smiles == decoded.smiles
    assert bool(settled["changed"].any()) == (scale > 0)


def test_the_loss_is_least_for_the_targets_themselves() -> None:
    logits = spoilt(1, 4.0)
    settled = settle(logits, FOUND.vocabulary)
    best = sum(settled_loss(settled, certain(settled, logits)).values())
    given = sum(settled_loss(settled, logits).values())
    assert bool((best < given).all())
    assert float(best.max()) < 0.1


def test_a_decoder_learns_to_be_valid(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    import sciLDM

    torch.set_num_threads(1)
    model, lines = sciLDM.load(tiny_run(tmp_path_factory)), []
    folder = tiny_run(tmp_path_factory) / "latents"
    caches = [LatentCache.open(folder, path.stem) for path in folder.iterdir()]
    cache = max((c for c in caches if c is not None), key=len)
    before = {name: p.clone() for name, p in model.autoencoder.state_dict().items()}
    denoiser = {name: p.clone() for name, p in model.denoiser.state_dict().items()}
    found = self_train(
        model, SETTINGS, SHORT, cache, tmp_path / "st", progress=lambda *_: None, say=lines.append
    )
    assert found["validation"]["changed"] < 0.7 * found["changed_before"], found
    assert any("drawing 200 samples" in line for line in lines)
    after = model.autoencoder.state_dict()
    moved = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert "decoder" in moved
    assert not moved & {"encoder", "embed_type", "to_latent", "position_in"}, (
        "latents must keep their meaning"
    )
    assert all(torch.equal(p, denoiser[name]) for name, p in model.denoiser.state_dict().items())

    # Continued from its checkpoint: nothing is drawn again, and the same decoder comes out.
    other, again = sciLDM.load(tiny_run(tmp_path_factory)), []
    assert (
        self_train(
            other, SETTINGS, SHORT, cache, tmp_path / "st", progress=lambda *_: None, say=again.append
        )["steps"]
        == found["steps"]
    )
    assert not any("drawing" in line for line in again)
    assert all(torch.equal(p, after[name]) for name, p in other.autoencoder.state_dict().items())

    (tmp_path / "st" / "samples.safetensors").write_bytes(b"cut")
    with pytest.raises(ArtefactError, match=r"samples\.safetensors is damaged"):
        self_train(other, SETTINGS, SHORT, cache, tmp_path / "st", progress=lambda *_: None, say=again.append)


def test_fit_ends_with_it(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    done = tiny_run(tmp_path_factory)
    settings = config(
        done.parent / "table.csv", self_training={"samples": 100, "steps": 2}, self_training_stage=stage(5)
    )
    model = run(settings, tmp_path / "run")
    summary = model.card["training"]["self_training"]
    assert summary["steps"] == 5
    assert 0 <= summary["test"]["exact_graph"] <= 1
    assert run(settings, tmp_path / "run").card["training"]["self_training"]["steps"] == 5


def test_hard_outputs_come_as_often_as_asked() -> None:
    kind = torch.arange(100)
    settled = {"usable": kind >= 0, "changed": kind < 10, "real": kind >= 50}
    data = SettledLatents(torch.zeros(100, 2, 3), None, settled, hard=0.5, replay=0.3)
    _, mask, rows = data.fields(np.arange(len(data)))
    assert mask is None
    assert rows["changed"].float().mean() == pytest.approx(0.5, abs=0.01)
    assert rows["real"].float().mean() == pytest.approx(0.3, abs=0.01)
    plain = SettledLatents(torch.zeros(100, 2, 3), None, settled)
    assert len(plain) == 50, "drawn ones, each once"
    with pytest.raises(DataError, match="got none"):
        SettledLatents(torch.zeros(100, 2, 3), None, {**settled, "usable": ~settled["usable"]}, hard=0.5)


def test_other_domains_refuse_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    import sciLDM

    model = sciLDM.load(tiny_run(tmp_path_factory))
    with pytest.raises(ConfigError, match="decodes under constraints, object does not"):
        DecoderStage(model.autoencoder, object(), LatentStats(4), SETTINGS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 5}, "samples"),
        ({"steps": 0}, "steps"),
        ({"noise": -1.0}, "noise"),
        ({"hard": 1.0}, "hard"),
        ({"hard": 0.8}, "replay"),
    ],
)
def test_bad_settings(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SelfTraining(**options)
