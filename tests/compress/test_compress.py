"""A tiny model: pruned and recovered, stored in 8 bits, exported; from Python and from the command line.

Its networks are random ones: they are as good as trained ones for what a smaller network is to imitate.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sciLDM.cli import main
from sciLDM.compress import export, prune, quantise, recovery_settings, training_latents
from sciLDM.compress import exporting as module
from sciLDM.errors import ConfigError, DataError, MissingExtra
from sciLDM.experiment import instantiate, read_config
from sciLDM.model import LatentDiffusion, load
from sciLDM.rng import NoiseSource
from sciLDM.training import StageSettings
from tests.tiny import config, write_table

NETWORK = {"class_path": "DiTNetwork", "init_args": {"width": 32, "depth": 2, "heads": 4}}
GUIDE = {"class_path": "DiTNetwork", "init_args": {"width": 16, "depth": 1, "heads": 2}}


def quiet(_line: str) -> None:
    """Where messages go."""


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    full = read_config(config(write_table(folder / "table.csv"), network=NETWORK, guide=GUIDE))
    corpus = instantiate(full).domain.prepare(folder / "features", lambda *_: None)
    model = LatentDiffusion(full, corpus.state)
    for denoiser in (model.denoiser, model.guide):
        assert denoiser is not None
        for parameter in denoiser.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    latents = training_latents(model, folder / "latents", corpus=corpus, progress=lambda *_: None, say=quiet)
    model.stats.fit(latents["train"].cache.batches())
    model.save(folder / "run" / "model")
    return folder / "run"


@pytest.fixture(scope="module")
def model(whole: Path) -> LatentDiffusion:
    return load(whole)


def settings(model: LatentDiffusion, steps: int = 40) -> StageSettings:
    return replace(recovery_settings(model), max_steps=steps, learning_rate=5e-3)


@pytest.fixture(scope="module")
def pruned(model: LatentDiffusion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pruned") / "run"
    prune(model, folder, keep=0.6, settings=settings(model), say=quiet)
    return folder


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())


def estimates(model: LatentDiffusion, count: int = 32) -> torch.Tensor:
    shape = (model.autoencoder.latent_channels, *model.codec.shape)
    x_t = torch.randn(count, *shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        return model.denoiser(x_t, torch.linspace(0.2, 0.9, count))


def test_the_smaller_model_is_an_ordinary_one(model: LatentDiffusion, pruned: Path, tmp_path: Path) -> None:
    small = load(pruned)
    assert 0.5 < small.parameters["denoiser"] / model.parameters["denoiser"] <= 0.6
    assert small.guide is not None
    assert model.guide is not None
    assert same(small.guide, model.guide)
    assert same(small.autoencoder, model.autoencoder)
    again, noise, ids = load(small.save(tmp_path / "copy")), NoiseSource(3), range(5)
    asked = small.codec.plan(5, {"logP": 1.0}, noise, ids)
    assert torch.equal(again.sample_latents(asked, ids, noise), small.sample_latents(asked, ids, noise))
    assert len(small.sample(3, seed=4).table) == 3
    card = json.loads((pruned / "model" / "card.json").read_text())
    assert card["training"]["pruning"]["parameters"] == small.parameters["denoiser"]
    assert card["training"]["denoiser"]["steps"] == 40


def test_teaching_leaves_the_unpruned_model_as_it_is(model: LatentDiffusion, tmp_path: Path) -> None:
    before = {name: x.clone() for name, x in model.denoiser.state_dict().items()}
    prune(model, tmp_path / "run", keep=0.6, settings=settings(model, 3), say=quiet)
    assert all(torch.equal(x, before[name]) for name, x in model.denoiser.state_dict().items())


def test_an_unfinished_pruning_is_continued_and_another_one_refused(
    model: LatentDiffusion, pruned: Path, tmp_path: Path
) -> None:
    first = prune(model, tmp_path / "run", keep=0.6, settings=settings(model, 10), say=quiet)
    (tmp_path / "run" / "model").rename(tmp_path / "gone")
    found = prune(model, tmp_path / "run", keep=0.6, settings=settings(model), say=quiet)
    assert found.card["training"]["denoiser"]["steps"] == 40
    assert not same(first.denoiser, found.denoiser)
    with pytest.raises(ConfigError, match="another keep"):
        prune(model, tmp_path / "run", keep=0.7, say=quiet)
    with pytest.raises(ConfigError, match="no unfinished pruning"):
        prune(model, tmp_path, keep=0.6, say=quiet)


@pytest.mark.parametrize("keep", [0.0, -1.0, 1.5, 0.05])
def test_shares_that_cannot_be(model: LatentDiffusion, tmp_path: Path, keep: float) -> None:
    with pytest.raises(ConfigError, match="keep"):
        prune(model, tmp_path / "run", keep=keep, say=quiet)
    assert not (tmp_path / "run").exists()


def test_latents_are_those_that_the_model_was_trained_on(model: LatentDiffusion, tmp_path: Path) -> None:
    latents = training_latents(model, tmp_path / "latents", progress=lambda *_: None, say=quiet)
    z, mask, _ = latents["train"].fields(np.arange(len(latents["train"])))
    assert mask is not None
    values = z.transpose(0, 1)[:, mask]
    assert torch.allclose(values.mean(dim=1), torch.zeros(len(values)), atol=1e-4)
    assert torch.allclose(values.std(dim=1), torch.ones(len(values)), atol=1e-2)
    other = LatentDiffusion(model.config, {**model.state, "source": {"fingerprint": "x" * 64}})
    with pytest.raises(DataError, match=r"expected fingerprint xxxxxxxxxxxx, got"):
        training_latents(other, tmp_path / "latents", progress=lambda *_: None, say=quiet)


def test_a_convolutional_network_is_refused(model: LatentDiffusion, tmp_path: Path) -> None:
    settings = {
        **model.config,
        "network": {"class_path": "sciLDM.nets.UNetNetwork", "init_args": {"widths": [8]}},
    }
    with pytest.raises(ConfigError, match=r"expected a transformer \(DiTNetwork\), got UNetNetwork"):
        prune(LatentDiffusion(settings, model.state), tmp_path / "run", say=quiet)


def test_eight_bits_are_a_quarter_of_the_file_and_hardly_another_model(
    model: LatentDiffusion, whole: Path, tmp_path: Path
) -> None:
    again = load(quantise(model, tmp_path / "small"))
    sizes = [
        f.stat().st_size for f in (tmp_path / "small/model.safetensors", whole / "model/model.safetensors")
    ]
    assert sizes[0] < 0.55 * sizes[1]  # biases, tables and names weigh more in so small a model
    error = (estimates(again) - estimates(model)).square().mean() / estimates(model).square().mean()
    assert 0 < error < 1e-3


@pytest.mark.parametrize("part", ["denoiser", "decoder"])
def test_a_program_computes_what_the_model_does(model: LatentDiffusion, tmp_path: Path, part: str) -> None:
    found = export(model, tmp_path / "a.pt2", part=part)  # type: ignore[arg-type]
    assert found.difference is not None
    assert found.difference < 1e-5
    program = torch.export.load(tmp_path / "a.pt2").module()
    shape = (model.autoencoder.latent_channels, *model.codec.shape)
    x, mask = torch.randn(4, *shape), torch.ones(4, *shape[1:], dtype=torch.bool)
    about = json.loads((tmp_path / "a.pt2.json").read_text())
    assert about["latents"]["std"] == pytest.approx(model.stats.std.tolist())
    if part == "decoder":
        logits = model.autoencoder.decode(x, mask)
        assert torch.allclose(program(x, mask)[about["outputs"].index("types")], logits.types, atol=1e-5)
        return
    t = torch.full((4,), 0.6)
    nothing = [
        torch.full((4,), -1) if told["dtype"].startswith("int") else torch.full((4,), torch.nan)
        for name, told in about["inputs"].items()
        if name.startswith("label_")
    ]
    assert about["inputs"]["label_logP"] == {"shape": ["batch"], "dtype": "float32"}
    with torch.no_grad():
        plain = model.denoiser(x, t)  # no labels, no estimate, no mask
        assert torch.allclose(program(x, t, mask, torch.zeros_like(x), *nothing), plain, atol=1e-5)


def test_onnx_agrees_where_it_is_installed(pruned: Path, tmp_path: Path) -> None:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(name)
    found = export(load(pruned), tmp_path / "a.onnx")
    assert found.inputs == ("x_t", "t", "mask", "previous", "label_atoms", "label_gap", "label_logP")
    assert found.difference is not None
    assert found.difference < 1e-4


def test_export_says_what_it_cannot(
    model: LatentDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"ends in \.pt2 or \.onnx"):
        export(model, tmp_path / "a.pt")
    monkeypatch.setattr(module, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtra, match=r"pip install sciLDM\[onnx\]"):
        export(model, tmp_path / "a.onnx")
    monkeypatch.setattr(module, "TOLERANCE", -1.0)
    with pytest.raises(ConfigError, match="departs from the model"):
        export(model, tmp_path / "a.pt2", part="decoder")
    assert list(tmp_path.iterdir()) == []


def test_from_the_command_line(whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    half = tmp_path / "half"
    assert (
        main(["prune", str(whole), "-o", str(half), "--keep", "0.6", "--max-steps", "4", "--threads", "1"])
        == 0
    )
    assert "validation error" in capfd.readouterr().out
    assert main(["quantise", str(half), "-o", str(tmp_path / "small")]) == 0
    assert main(["sample", str(half), "-n", "3", "--threads", "1"]) == 0
    capfd.readouterr()
    assert main(["export", str(tmp_path / "small"), "-o", str(tmp_path / "a.pt2"), "--part", "decoder"]) == 0
    assert "differs by at most" in capfd.readouterr().err
    assert main(["prune", str(whole), "-o", str(tmp_path / "x"), "--keep", "2"]) == 2
    assert "keep: expected a share" in capfd.readouterr().err
