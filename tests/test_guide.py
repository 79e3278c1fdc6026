"""A guide is part of a model: trained with it, stored with it, and used by `sample` alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sciLDM.domain import Request
from sciLDM.errors import ConfigError
from sciLDM.guidance import Autoguidance, ClassifierFree, Conditioned
from sciLDM.model import LatentDiffusion, load
from sciLDM.rng import NoiseSource
from tests.tiny import config, run, stage, write_table

GUIDE = {"class_path": "DiTNetwork", "init_args": {"width": 16, "depth": 1, "heads": 2}}


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCILDM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("guide") / "table.csv")


@pytest.fixture(scope="module")
def guided(data: Path) -> Path:
    folder = data.parent / "guided"
    run(config(data, guide=GUIDE, guide_scale=3.0, guide_stage=stage(10)), folder)
    return folder


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(v, theirs[k]) for k, v in ours.items())


def request(model: LatentDiffusion, count: int = 6) -> tuple[Request, range, NoiseSource]:
    noise, ids = NoiseSource(3), range(count)
    return model.codec.plan(count, {"logP": 1.0}, noise, ids), ids, noise


def test_the_rest_of_the_model_is_what_it_would_be_without(data: Path, guided: Path, tmp_path: Path) -> None:
    plain = run(config(data), tmp_path / "run")
    model = load(guided)
    assert plain.guide is None
    assert same_weights(plain.denoiser, model.denoiser)
    assert same_weights(plain.autoencoder, model.autoencoder)
    assert model.parameters["guide"] < model.parameters["denoiser"] / 2


def test_sample_is_guided_by_the_stored_guide(guided: Path) -> None:
    model = load(guided)
    asked, ids, noise = request(model)
    cond, everything = {name: v for name, v in asked.cond.items()}, slice(0, 6)
    assert model.guide is not None
    by_hand = Autoguidance(
        ClassifierFree(model.denoiser, cond, asked.mask, scale=2.0, always=asked.always, self_condition=True),
        Conditioned(model.guide, cond, asked.mask, self_condition=True),
        3.0,
    )
    shape = (model.autoencoder.latent_channels, *asked.shape)
    expected = model.experiment.sampler(by_hand, shape, noise=noise, ids=ids)
    found = model.sample_latents(asked, ids, noise, guidance=2.0, batch_size=4)
    assert torch.allclose(found, model.stats.denormalise(expected), atol=1e-5)
    # What must stay a posterior mean is not guided away from anything.
    assert isinstance(model.guided(asked, everything, 2.0), ClassifierFree)


def test_it_survives_saving(guided: Path, tmp_path: Path) -> None:
    model = load(guided)
    asked, ids, noise = request(model)
    again = load(model.save(tmp_path / "model"))
    assert torch.equal(model.sample_latents(asked, ids, noise), again.sample_latents(asked, ids, noise))


def test_a_finished_guide_is_only_loaded(data: Path, guided: Path) -> None:
    before = load(guided)
    said: list[str] = []
    after = run(config(data, guide=GUIDE, guide_scale=3.0, guide_stage=stage(10)), guided, say=said.append)
    assert before.guide is not None
    assert after.guide is not None
    assert same_weights(before.guide, after.guide)
    assert "stage 2: guide" in said


def test_not_with_a_gaussian_start(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"guide.*gaussian_start"):
        run(config(data, guide=GUIDE, gaussian_start=True), tmp_path / "run")
