"""Distillation is held to a Gaussian whose few-step samplers are known to be wrong, and to what a finished model is."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import sciLDM
from sciLDM.cli import main
from sciLDM.distill import (
    Consistency,
    ConsistencyStage,
    MomentMatching,
    MomentStage,
    StudentMoments,
    Teacher,
    distil,
)
from sciLDM.distill.latents import latents_for
from sciLDM.distill.levels import Segments, bridge, noised
from sciLDM.errors import ConfigError, DataError
from sciLDM.rng import NoiseSource
from sciLDM.samplers import DDIM, Renoising, UniformGrid
from sciLDM.timesteps import NormalLmbdaTime
from tests.distill_toys import (
    COVARIANCE,
    EXACT,
    MEAN,
    SCHEDULE,
    TEACHER,
    copies,
    errors,
    exact_network,
    latents,
    train,
)
from tests.tiny import silent, tiny_run

QUICK = {"max_steps": 6, "batch_size": 8}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


# --- levels ---------------------------------------------------------------------------------------------------------


def test_the_bridge_keeps_the_marginal_when_the_clean_end_is_true() -> None:
    z, generator = latents(20_000), torch.Generator().manual_seed(0)
    first, second = (torch.randn(z.shape, generator=generator) for _ in range(2))
    for start, end in ((1.0, 0.75), (0.5, 0.25)):
        t, s = torch.full((len(z),), start), torch.full((len(z),), end)
        z_s = bridge(noised(z, t, first, SCHEDULE), z, t, s, second, SCHEDULE).flatten(1).double()
        alpha, sigma = (float(scale[0]) for scale in SCHEDULE(s.double()))
        expected = alpha**2 * COVARIANCE + sigma**2 * torch.eye(2)
        torch.testing.assert_close(z_s.mean(dim=0), alpha * MEAN, atol=0.02, rtol=0)
        torch.testing.assert_close(torch.cov(z_s.mT), expected, atol=0.03, rtol=0)


def test_the_bridge_is_the_step_of_the_ancestral_sampler() -> None:
    x, y, eps = (torch.randn(4, 2, 3, dtype=torch.float64) for _ in range(3))
    t, s = (torch.full((4,), value, dtype=torch.float64) for value in (0.75, 0.5))
    (a_t, s_t), (a_s, s_s) = ((float(c[0]) for c in SCHEDULE(time)) for time in (t, s))
    fresh = s_s / s_t * (1 - (a_t / a_s) ** 2) ** 0.5  # DDIM of eta = 1, 2010.02502, Eq. 16
    expected = a_s * x + (s_s**2 - fresh**2) ** 0.5 * (y - a_t * x) / s_t + fresh * eps
    torch.testing.assert_close(bridge(y, x, t, s, eps, SCHEDULE), expected)


def test_levels_lie_inside_their_stretch_and_follow_the_teachers_training() -> None:
    times = NormalLmbdaTime(mean=-0.3, std=1.2)
    segments = Segments(SCHEDULE, UniformGrid(), (4,), times, lmbda_max=2.0)
    u, v = torch.rand(2, 40_000)
    t, s = segments.draw(u, v)
    last = float(SCHEDULE.t_of_lmbda(torch.tensor(2.0)))
    ends = torch.where(t > 0.26, t - 0.25, torch.full_like(t, last))
    assert set(t.tolist()) == {1.0, 0.75, 0.5, 0.25}
    assert bool(((s < t) & (s >= ends - 1e-6)).all())
    # Inside the second stretch the levels are distributed as those of training there.
    trained = times(torch.rand(200_000), SCHEDULE)
    trained = trained[(trained > 0.5) & (trained < 0.75)]
    assert float(s[t == 0.75].median()) == pytest.approx(float(trained.median()), abs=0.005)


# --- students of an exact Gaussian ----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 4])
def test_moment_matching_mends_few_steps(tmp_path: Path, steps: int) -> None:
    sampler = DDIM(steps=steps, grid=UniformGrid(), eta=1.0)
    student, other = copies(exact_network())
    stage = MomentStage(
        student, StudentMoments(other, 5e-3, fed=False, lead=20), TEACHER, steps=(steps,), sampler=sampler
    )  # fmt: skip
    trained = train(
        stage, tmp_path, 300, learning_rate=1e-3, betas=(0.0, 0.99), decay="linear", decay_from=0.5
    )
    before, after = errors(EXACT, sampler), errors(trained, sampler)
    assert before[1] > 0.5  # the ancestral sampler with an exact denoiser is far too narrow
    assert after[0] < 0.12
    assert after[1] < before[1] / 3


@pytest.mark.parametrize("steps", [4])
def test_consistency_mends_few_steps(tmp_path: Path, steps: int) -> None:
    sampler = Renoising(steps=steps)
    stage = ConsistencyStage(exact_network(), TEACHER, sampler, intervals=8, steps=(steps,))
    trained = train(stage, tmp_path, 300, learning_rate=5e-3)
    before = min(errors(EXACT, DDIM(steps=steps, grid=UniformGrid()))[1], errors(EXACT, sampler)[1])
    after = errors(trained, sampler)
    assert before > 0.4  # better of ODE and renoising, undistilled
    assert after[0] < 0.1
    assert after[1] < before / 4


def test_the_score_of_validation_is_zero_for_a_perfect_student_only() -> None:
    stage = ConsistencyStage(exact_network(), TEACHER, Renoising(steps=2))
    z = latents(2000)
    scores = stage.scores((z, None, {}), np.arange(len(z)))["energy"].mean()
    stage.draw = lambda *_: latents(2000, seed=9)  # type: ignore[method-assign]
    perfect = stage.scores((z, None, {}), np.arange(len(z)))["energy"].mean()
    assert abs(float(perfect)) < 0.01
    assert float(scores) > 10 * abs(float(perfect))


# --- a finished model -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory)


@pytest.mark.parametrize("method", [MomentMatching(steps=(2,)), Consistency(steps=(2,), intervals=4)])
def test_a_student_is_an_ordinary_model_of_few_calls(tiny: Path, tmp_path: Path, method) -> None:
    teacher = sciLDM.load(tiny)
    weights = {k: v.clone() for k, v in teacher.denoiser.state_dict().items()}
    settings = _short(method)
    student = distil(teacher, tmp_path / "out", method=method, settings=settings, say=silent)
    assert all(torch.equal(v, weights[k]) for k, v in teacher.denoiser.state_dict().items())
    assert any(not torch.equal(v, weights[k]) for k, v in student.denoiser.state_dict().items())
    assert student.experiment.sampler.steps == 2
    calls = []
    student.denoiser.register_forward_hook(lambda *_: calls.append(1))
    table = student.sample(5, seed=3).table
    assert len(calls) == 2
    again = sciLDM.load(tmp_path / "out" / "model").sample(5, seed=3).table
    assert again["smiles"].tolist() == table["smiles"].tolist()
    assert student.card["distilled"]["method"] == method.name


def test_the_teacher_is_the_guided_denoiser_fed_its_own_estimate(tiny: Path) -> None:
    model = sciLDM.load(tiny)
    model.guide = copy.deepcopy(model.denoiser)
    for weight in model.guide.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    request = model.codec.plan(4, {"logP": 1.0}, NoiseSource(0), range(4))
    x_t, t = torch.randn(4, model.autoencoder.latent_channels, *request.shape), torch.full((4,), 0.6)
    estimates = []
    with torch.no_grad():
        for network in (model.guide, model.denoiser):
            first = network(x_t, t, request.cond, request.mask)
            estimates.append(network(x_t, t, request.cond, request.mask, first))
    bad, good = estimates
    expected = bad + model.experiment.guide_scale * (good - bad)
    assert not torch.allclose(expected, good, atol=1e-3)
    torch.testing.assert_close(Teacher.of(model)(x_t, t, request.cond, request.mask), expected)


def test_without_the_data_the_model_draws_its_own(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, lines = sciLDM.load(tiny), []

    def gone(*_: object) -> None:
        raise DataError("no such table")

    monkeypatch.setattr(type(model.experiment.domain), "prepare", gone)
    options = {"samples": None, "enough": 30, "progress": lambda *_: None, "say": lines.append}
    drawn, held_out = latents_for(model, tmp_path, **options)
    assert "no such table" in lines[0]
    assert (len(drawn), len(held_out)) == (27, 3)
    z, mask, cond = drawn.fields(np.arange(27))
    assert bool((z[~mask[:, None].expand_as(z)] == 0).all())
    assert cond["atoms"].tolist() == mask.sum(dim=1).tolist()


def test_an_interrupted_distillation_is_continued_and_another_one_refused(tiny: Path, tmp_path: Path) -> None:
    teacher, method = sciLDM.load(tiny), MomentMatching(steps=(2,))
    options = {"method": method, "samples": 40, "say": silent}
    distil(teacher, tmp_path / "whole", settings=_short(method), **options)
    distil(teacher, tmp_path / "parts", settings=_short(method, max_steps=3), **options)
    with pytest.raises(ConfigError, match="other settings"):
        distil(teacher, tmp_path / "parts", settings=_short(method, learning_rate=1e-2), **options)
    distil(teacher, tmp_path / "parts", settings=_short(method), **options)
    with pytest.raises(ConfigError, match="distil its teacher"):
        distil(sciLDM.load(tmp_path / "whole"), tmp_path / "again", say=silent)


def test_the_command_line_leaves_a_student_that_does_not_reconstruct(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "student"
    options = ["--steps", "2", "--max-steps", "4", "--batch-size", "8", "--threads", "1", "--device", "cpu"]
    assert main(["distill", str(tiny), "--output", str(output), *options]) == 0
    assert main(["sample", str(output), "-n", "3", "--threads", "1"]) == 0
    with pytest.raises(ConfigError, match="distilled from"):
        sciLDM.load(output).reconstruct(None)
    assert main(["distill", str(tiny), "--output", str(tmp_path / "x"), "--method", "momets"]) == 2
    assert "moments" in capsys.readouterr().err


def _short(method, **changes):
    return replace(method.training, **{**QUICK, "precision": "fp32", "warmup_steps": 0, **changes})
