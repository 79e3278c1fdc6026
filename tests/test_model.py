"""The trained model in a user's hands: seeds, batches, conditions, guidance, saving."""

from pathlib import Path

import numpy as np
import pytest
import torch

import sciLDM
from sciLDM.errors import ArtefactError, ConfigError
from sciLDM.model import LatentDiffusion
from sciLDM.rng import NoiseSource
from sciLDM.samplers import DDIM
from tests.tiny import tiny_run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
        return tiny_run(tmp_path_factory)


@pytest.fixture(scope="module")
def model(run_folder: Path) -> LatentDiffusion:
    return sciLDM.load(run_folder)


def latents(
    model: LatentDiffusion, count: int, *, first: int = 0, batch_size: int = 512, **cond: float
) -> torch.Tensor:
    noise, ids = NoiseSource(7), range(first, first + count)
    request = model.codec.plan(count, cond, noise, ids)
    return model.sample_latents(request, ids, noise, guidance=2.0, batch_size=batch_size)


def test_a_sample_depends_on_its_seed_and_number_alone(model: LatentDiffusion) -> None:
    whole = latents(model, 12, gap=2.0)
    for size in (1, 7):
        assert torch.allclose(latents(model, 12, gap=2.0, batch_size=size), whole, atol=1e-4)
    assert torch.allclose(latents(model, 5, first=7, gap=2.0), whole[7:], atol=1e-4)
    assert not torch.allclose(whole[:5], whole[5:10], atol=0.1)


def test_molecules_do_not_depend_on_the_batch_size_and_can_be_continued(model: LatentDiffusion) -> None:
    whole = model.sample(12, seed=7).table["smiles"].tolist()
    assert model.sample(12, seed=7, batch_size=5).table["smiles"].tolist() == whole
    assert model.sample(4, seed=7, first=8).table["smiles"].tolist() == whole[8:]
    assert model.sample(12, seed=8).table["smiles"].tolist() != whole


def test_the_global_generator_is_neither_used_nor_changed(model: LatentDiffusion, run_folder: Path) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = model.sample(3, seed=0).table["smiles"].tolist()
    sciLDM.load(run_folder)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert model.sample(3, seed=0).table["smiles"].tolist() == first


def test_conditions_one_by_one_or_for_all(model: LatentDiffusion) -> None:
    table = model.sample(3, cond={"gap": [1.0, float("nan"), 3.0], "atoms": [2, 3, 4]}).table
    assert table["requested_gap"].isna().tolist() == [False, True, False]
    assert "requested_logP" not in table
    assert "realised_logP" in table
    open_, asked = latents(model, 4), latents(model, 4, gap=4.0, atoms=3)
    assert not torch.allclose(open_, asked, atol=1e-3)


def test_guidance_as_a_mapping(model: LatentDiffusion) -> None:
    noise, ids = NoiseSource(0), range(4)
    request = model.codec.plan(4, {"gap": 4.0, "logP": 1.0, "atoms": 5}, noise, ids)
    plain, both, gap = (
        model.sample_latents(request, ids, noise, guidance=g)
        for g in (1.0, {"gap": 3.0, "logP": 1.0}, {"gap": 3.0})
    )
    assert torch.allclose(both, gap, atol=1e-5)
    assert not torch.allclose(plain, gap, atol=1e-3)
    assert model.sample(2, cond={"gap": 1.0}, guidance={"gap": 2.0}).table["requested_gap"].tolist() == [
        1.0,
        1.0,
    ]
    with pytest.raises(ConfigError, match=r"cannot guide \['logP'\].*guidable here: \['gap'\]"):
        model.sample(2, cond={"gap": 1.0}, guidance={"logP": 2.0})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"cond": {"gapp": 1.0}},
            r"cannot condition on 'gapp'; this model knows atoms, gap, logP; did you mean 'gap'",
        ),
        ({"cond": {"LOGP": 1.0}}, r"did you mean 'logP'"),
        ({"cond": {"gap": [1.0, 2.0]}}, "one number, or one for each of 3 samples, got 2 values"),
        ({"cond": {"gap": "high"}}, "'gap': expected a number or 3 of them, got 'high'"),
        ({"cond": {"gap": {"min": 1}}}, "'gap': expected a number"),
        ({"cond": {"gap": float("inf")}}, "expected finite numbers"),
        ({"cond": {"gap": 1e300}}, "expected finite numbers"),
        ({"cond": {"atoms": 7}}, "whole numbers of heavy atoms from 1 to 6, got 7"),
        ({"cond": {"atoms": 0}}, "from 1 to 6, got 0"),
        ({"cond": {"atoms": 2.5}}, "whole numbers"),
        ({"cond": {"atoms": [2, 3]}}, "one for each of 3 samples, got 2 values"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"steps": 5, "sampler": DDIM(steps=5)}, "either steps or a sampler"),
        ({"batch_size": 0}, "at least 1"),
        ({"first": -1}, "sample ids must lie in"),
        ({"candidates": 0}, "at least 1"),
        (
            {"candidates": 2},
            "candidates=2: expected a request that can be measured on samples .logP., got none",
        ),
        ({"candidates": 2, "cond": {"gap": 1.0}}, "got gap"),
    ],
    ids=lambda value: value if isinstance(value, str) else ", ".join(value),
)
def test_mistakes_are_told_before_any_work(model: LatentDiffusion, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model.sample(3, **options)
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        model.sample(0)


def test_of_the_candidates_the_nearest_is_kept(model: LatentDiffusion) -> None:
    wanted = [-1.0, 0.0, 1.0, float("nan")]
    kept = model.sample(4, cond={"logP": wanted, "atoms": 4}, candidates=3, seed=5).table
    every = model.sample(12, cond={"logP": np.repeat(wanted, 3), "atoms": 4}, seed=5).table
    off = (every["realised_logP"] - every["requested_logP"]).abs().fillna(0.0).to_numpy().reshape(4, 3)
    best = every.iloc[[3 * k + int(off[k].argmin()) for k in range(4)]]
    assert kept["smiles"].tolist() == best["smiles"].tolist()
    assert kept["requested_logP"].tolist()[:3] == wanted[:3]
    later = model.sample(2, cond={"logP": wanted[2:], "atoms": 4}, candidates=3, seed=5, first=2).table
    assert later["smiles"].tolist() == kept["smiles"].tolist()[2:]


def test_another_sampler_and_progress(model: LatentDiffusion) -> None:
    seen: list[tuple[int, int]] = []
    model.sample(
        4, sampler=DDIM(steps=3), batch_size=2, progress=lambda done, total: seen.append((done, total))
    )
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (6, 6)


def test_save_and_load_are_exact(model: LatentDiffusion, tmp_path: Path) -> None:
    model.save(tmp_path / "copy")
    again = sciLDM.load(tmp_path / "copy")
    assert torch.equal(latents(model, 4, gap=1.0), latents(again, 4, gap=1.0))
    assert again.card["domain"] == "molecules"
    with pytest.warns(UserWarning, match="training molecules are not at hand"):
        lonely = again.sample(4, seed=3).table
    assert lonely["smiles"].tolist() == model.sample(4, seed=3).table["smiles"].tolist()
    assert "in_train" not in lonely


def test_half_the_size(model: LatentDiffusion, tmp_path: Path) -> None:
    model.save(tmp_path / "full")
    model.save(tmp_path / "half", dtype=torch.bfloat16)
    full, half = ((tmp_path / n / "model.safetensors").stat().st_size for n in ("full", "half"))
    assert half < 0.65 * full
    again = sciLDM.load(tmp_path / "half")
    assert all(p.dtype == torch.float32 for part in again.parts.values() for p in part.parameters())
    assert torch.equal(again.stats.std, model.stats.std)
    difference = (latents(again, 8, gap=1.0) - latents(model, 8, gap=1.0)).square().mean().sqrt()
    assert 0 < float(difference) < 0.1 * float(latents(model, 8, gap=1.0).std())


def test_weights_of_another_configuration(model: LatentDiffusion, tmp_path: Path) -> None:
    other = LatentDiffusion(
        {**model.config, "network": {"class_path": "sciLDM.nets.DiTNetwork"}}, model.state
    )
    other.config = model.config
    other.save(tmp_path / "mixed")
    with pytest.raises(ArtefactError, match="weights of the denoiser do not fit its configuration"):
        sciLDM.load(tmp_path / "mixed")


def test_truncated_weights(run_folder: Path, model: LatentDiffusion, tmp_path: Path) -> None:
    weights = model.save(tmp_path / "cut") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ArtefactError, match="truncated"):
        sciLDM.load(tmp_path / "cut")
