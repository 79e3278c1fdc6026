"""Validation: fixed noise, comparable numbers, averaged weights, every sample once."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from sciLDM.denoiser import NetDenoiser
from sciLDM.errors import ConfigError
from sciLDM.nets import DiT
from sciLDM.parametrisation import X0, Eps, V
from sciLDM.schedules import CosineSchedule, RectifiedSchedule, VPSchedule
from sciLDM.training import LatentData, StageSettings
from sciLDM.training.stages import LMBDA_EDGES, DenoiserStage
from sciLDM.training.trainer import run_stage
from sciLDM.training.validation import validate, validation_indices
from tests.training.toys import CONDITIONS, QUIET, PointData, autoencoder_stage, denoiser_stage, latents, rows


def alone(stage: Any, **options: Any) -> Any:
    """Make a stage usable without a fit."""
    stage.settings = StageSettings(**options)
    stage._trainer = SimpleNamespace(world_size=1, global_rank=0)
    return stage


@pytest.mark.parametrize("schedule", [RectifiedSchedule(), CosineSchedule(), VPSchedule()])
def test_untrained_network_scores_one_at_every_level(schedule: Any) -> None:
    # DiT starts at zero: its v estimate is 0, and E|v|^2 = 1 for latents of unit variance.
    data = LatentData(torch.randn(400, 2, 5, generator=torch.Generator().manual_seed(0)))
    stage = DenoiserStage(NetDenoiser(DiT(2, (5,), width=16, depth=1, heads=2), schedule, V()))
    scores = validate(alone(stage, batch_size=64), data)
    assert len(scores) == len(LMBDA_EDGES)
    # 4,000 numbers a level: standard error of a mean square sqrt(2 / 4000) = 0.022.
    assert scores == pytest.approx(dict.fromkeys(scores, 1.0), abs=0.09)


@pytest.mark.parametrize("parametrisation", [X0(), Eps(), V()])
def test_perfect_estimate_of_point_data_scores_zero(parametrisation: Any) -> None:
    # All latents are 0, so x0_hat = 0 is exact; a network that answers with what stands for 0 scores 0 everywhere.
    class Oracle(torch.nn.Module):
        def forward(
            self, x: Any, c_noise: Any, cond: Any = None, mask: Any = None, previous: Any = None
        ) -> Any:
            # x = c_in x_t; c_skip x_t + c_out F = 0 with c_noise = lmbda / 4 and alpha^2 + sigma^2 = 1, so c_in = 1.
            t = schedule.t_of_lmbda(4 * c_noise)
            _, skip, out, _ = parametrisation.network(schedule, t)
            return -(skip / out)[:, None, None] * x

    schedule = CosineSchedule()
    stage = DenoiserStage(NetDenoiser(Oracle(), schedule, parametrisation))
    scores = validate(alone(stage, batch_size=16), LatentData(torch.zeros(32, 2, 5)))
    assert scores == pytest.approx(dict.fromkeys(scores, 0.0), abs=1e-2)


def test_scores_do_not_depend_on_batch_size_or_on_when_they_are_made() -> None:
    data, stage = latents(), denoiser_stage()
    with torch.no_grad():
        for p in stage.network.parameters():
            p.add_(0.05 * torch.randn_like(p))
    one = validate(alone(stage, batch_size=48), data)
    torch.manual_seed(99)
    stage.step = 500
    other = validate(alone(stage, batch_size=7), data)
    assert other == pytest.approx(one, rel=1e-5)
    assert validate(alone(stage, batch_size=7, seed=1), data)["loss"] != pytest.approx(one["loss"], rel=1e-4)


def test_validation_samples_are_spread_and_capped() -> None:
    assert list(validation_indices(5, 100)) == [0, 1, 2, 3, 4]
    chosen = validation_indices(1000, 64)
    assert len(chosen) == 64
    assert chosen[0] == 0
    assert chosen[-1] == 999
    assert np.diff(chosen).max() <= 17


def test_each_sample_is_scored_once_and_the_mode_is_restored() -> None:
    stage, data = autoencoder_stage(dropout=0.5, noise=0.0), PointData(48)
    stage.train()
    scores = validate(alone(stage, batch_size=10), data)
    assert sorted(data.seen) == list(range(48))
    assert stage.training
    assert stage.network.enc[2].training
    stage.eval()
    with torch.no_grad():
        decoded = stage.network.decode(stage.network.code(data.fields(np.arange(48)))[0], None)
    error = (decoded - data.x).square()
    assert scores["loss"] == pytest.approx(error.sum(1).mean().item(), rel=1e-5)
    assert scores["loss_left"] == pytest.approx(error[:, :3].sum(1).mean().item(), rel=1e-5)
    assert scores["within_1"] == pytest.approx((error.amax(1) < 1).float().mean().item())


def test_validation_sees_the_average_and_training_the_weights(tmp_path: Path) -> None:
    data = PointData()
    settings = StageSettings(max_steps=8, batch_size=8, warmup_steps=0, learning_rate=0.1, ema_decay=0.99)
    stage = autoencoder_stage()
    result = run_stage(stage, data, data, settings, QUIET, tmp_path / "a")
    raw = validate(alone(stage, batch_size=8), data)  # a fit's trainer is gone; the average is still there
    assert raw == pytest.approx(result.validation, rel=1e-5)
    stage.ema = None
    assert validate(alone(stage, batch_size=8), data)["loss"] != pytest.approx(
        result.validation["loss"], rel=1e-2
    )


def test_training_learns_and_logs_every_level(tmp_path: Path) -> None:
    data = latents()
    settings = StageSettings(
        max_steps=60,
        batch_size=32,
        warmup_steps=5,
        learning_rate=1e-2,
        validate_every=20,
        log_every=20,
        ema_decay=0.9,
    )
    stage = denoiser_stage(self_condition=0.0)
    before = validate(alone(stage, batch_size=48), data)
    result = run_stage(stage, data, data, settings, QUIET, tmp_path / "a")
    assert result.validation["loss_lmbda_2"] < 0.5 * before["loss_lmbda_2"]
    logged = [r for r in rows(tmp_path / "a") if r["val/loss"]]
    assert [r["step"] for r in logged] == ["20", "40", "60"]
    assert float(logged[-1]["val/loss_lmbda_7"]) == pytest.approx(result.validation["loss_lmbda_7"], rel=1e-5)
    assert all(r["train/diffusion"] == r["train/loss"] for r in logged)
    assert stage.conditions == CONDITIONS


def test_training_precision_does_not_leak_into_sampling(tmp_path: Path) -> None:
    stage = denoiser_stage()
    kinds: list[torch.dtype] = []
    stage.denoiser.net.head.register_forward_hook(lambda module, inputs, output: kinds.append(output.dtype))
    z, mask, cond = latents().fields(np.arange(4))
    alone(stage, precision="bf16")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's RMSNorm under autocast
        loss = stage.loss_terms((z, mask, cond), torch.Generator().manual_seed(0))["diffusion"]
    assert set(kinds) == {torch.bfloat16}
    assert loss.dtype == torch.float32
    assert stage.denoiser.autocast_dtype is None


def test_empty_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="validation split is empty"):
        validate(alone(autoencoder_stage()), PointData(0))
    with pytest.raises(ConfigError, match="training split is empty"):
        run_stage(autoencoder_stage(), PointData(0), PointData(), StageSettings(), QUIET, tmp_path / "a")
