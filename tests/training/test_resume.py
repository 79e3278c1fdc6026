"""Interrupted and resumed equals uninterrupted, bit for bit; checkpoints are safe to load and whole."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from sciLDM.errors import ArtefactError, ConfigError
from sciLDM.training import StageSettings
from sciLDM.training.stage import Stage
from sciLDM.training.trainer import run_stage
from tests.training.toys import QUIET, PointData, autoencoder_stage, denoiser_stage, latents, rows, weights

SETTINGS = StageSettings(
    max_steps=20,
    batch_size=16,
    warmup_steps=3,
    learning_rate=1e-2,
    validate_every=6,
    checkpoint_every=7,
    log_every=1,
    ema_decay=0.9,
    validation_samples=20,
)
STAGES = [(autoencoder_stage, PointData), (denoiser_stage, latents)]


class At(Callback):
    """Do something after step `step`."""

    def __init__(self, step: int, action: Callable[[Stage], Any]) -> None:
        self.step, self.action = step, action

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.step == self.step:
            self.action(pl_module)


class Crash(Exception):
    pass


def crash(stage: Stage) -> None:
    raise Crash


def same(a: Any, b: Any) -> bool:
    """Equal, tensors bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def without_time(checkpoint: Path) -> dict[str, Any]:
    state = torch.load(checkpoint, weights_only=True)
    del state["seconds"]
    return state


@pytest.mark.filterwarnings(
    "ignore:Mismatch dtype between input and weight"
)  # torch's RMSNorm under autocast
@pytest.mark.parametrize(("make", "data"), STAGES)
@pytest.mark.parametrize("options", [{"precision": "fp32"}, {"precision": "bf16"}, {"optimiser": "muon"}])
def test_resumed_equals_uninterrupted(tmp_path: Path, make: Any, data: Any, options: dict[str, str]) -> None:
    if options.get("optimiser") == "muon" and make is autoencoder_stage:
        pytest.skip("a network without blocks")
    settings = StageSettings(**{**vars(SETTINGS), **options})  # type: ignore[arg-type]
    whole, before = make(), torch.get_rng_state()
    run_stage(whole, data(), data(), settings, QUIET, tmp_path / "whole")
    assert torch.equal(torch.get_rng_state(), before), "training touched the global generator"

    # Crash at 11 (checkpoint of 7), stop at 16 (checkpoint of 16), finish; fresh objects and other
    # global random state each time, as in a new process.
    folder = tmp_path / "broken"
    torch.manual_seed(101)
    with pytest.raises(Crash):
        run_stage(make(), data(), data(), settings, QUIET, folder, callbacks=[At(11, crash)])
    torch.manual_seed(102)
    ctrl_c = At(15, lambda stage: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run_stage(make(), data(), data(), settings, QUIET, folder, resume=True, callbacks=[ctrl_c])
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 16
    resumed = make()
    result = run_stage(resumed, data(), data(), settings, QUIET, folder, resume=True)

    assert result.steps == 20
    assert same(weights(whole), weights(resumed))
    assert same(whole.ema.state(), resumed.ema.state())
    assert same(without_time(tmp_path / "whole/last.ckpt"), without_time(folder / "last.ckpt"))
    # The log reads as if nothing had happened, too.
    logs = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in rows(f)]
        for f in (tmp_path / "whole", folder)
    ]
    assert logs[0] == logs[1]
    assert [row["step"] for row in logs[0]] == [str(k) for k in range(1, 21)]


def test_the_interrupted_weights_differ_so_the_test_above_can_fail(tmp_path: Path) -> None:
    one, two = autoencoder_stage(), autoencoder_stage()
    run_stage(one, PointData(), PointData(), SETTINGS, QUIET, tmp_path / "1")
    other = StageSettings(**{**vars(SETTINGS), "seed": 1})
    run_stage(two, PointData(), PointData(), other, QUIET, tmp_path / "2")
    assert not same(weights(one), weights(two))


def test_sigterm_saves_and_exits(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    term = At(5, lambda stage: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as exit_:
        run_stage(
            autoencoder_stage(), PointData(), PointData(), SETTINGS, QUIET, tmp_path / "a", callbacks=[term]
        )
    assert exit_.value.code == 143
    assert torch.load(tmp_path / "a/last.ckpt", weights_only=True)["global_step"] == 6
    assert signal.getsignal(signal.SIGTERM) is before


def test_state_during_validation_equals_state_after(tmp_path: Path) -> None:
    stage, states = denoiser_stage(), []

    def record(stage: Stage) -> None:
        lightning: dict[str, Any] = {}
        for context in (stage.averaged(), torch.no_grad()):
            with context:
                lightning = {"state_dict": dict(stage.state_dict())}
                stage.on_save_checkpoint(lightning)
                states.append(stage.state())
                lightning["state_dict"] = {k: v.clone() for k, v in lightning["state_dict"].items()}
                states[-1]["state_dict"] = {k: v.clone() for k, v in states[-1]["state_dict"].items()}
                assert same(lightning["state_dict"], states[-1]["state_dict"])

    run_stage(stage, latents(), latents(), SETTINGS, QUIET, tmp_path / "a", callbacks=[At(9, record)])
    assert same(*states)
    assert any(k.startswith("network.") for k in states[0]["state_dict"])


def test_finished_stage_is_only_loaded(tmp_path: Path) -> None:
    first, second, data = denoiser_stage(), denoiser_stage(), latents()
    done = run_stage(first, data, data, SETTINGS, QUIET, tmp_path / "a")
    log = (tmp_path / "a/metrics.csv").read_text()
    again = run_stage(second, data, data, SETTINGS, QUIET, tmp_path / "a", resume=True)
    assert (again.steps, again.seconds, again.validation) == (done.steps, done.seconds, done.validation)
    assert (tmp_path / "a/metrics.csv").read_text() == log
    assert same(first.finished_network().state_dict(), second.finished_network().state_dict())
    assert not first.network.training
    assert same(weights(first), first.ema.shadow)


def test_longer_training_continues_a_finished_one(tmp_path: Path) -> None:
    data = latents()
    run_stage(denoiser_stage(), data, data, SETTINGS, QUIET, tmp_path / "a")
    longer = StageSettings(**{**vars(SETTINGS), "max_steps": 25})
    assert run_stage(denoiser_stage(), data, data, longer, QUIET, tmp_path / "a", resume=True).steps == 25
    assert [r["step"] for r in rows(tmp_path / "a")] == [str(k) for k in range(1, 26)]


def test_time_limit_ends_an_annealed_training(tmp_path: Path) -> None:
    options = {
        **vars(SETTINGS),
        "max_steps": 10**6,
        "max_minutes": 0.5 / 60,
        "decay": "linear",
        "log_every": 1,
    }
    result = run_stage(
        autoencoder_stage(), PointData(), PointData(), StageSettings(**options), QUIET, tmp_path / "a"
    )
    assert result.steps < 10**5
    rates = [float(r["train/lr"]) for r in rows(tmp_path / "a")]
    assert rates[-1] < 0.2 * max(rates)
    assert "loss" in result.validation


def test_mistakes_on_resume_are_refused(tmp_path: Path) -> None:
    data, folder = PointData(), tmp_path / "a"
    stop = At(3, lambda stage: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run_stage(autoencoder_stage(), data, data, SETTINGS, QUIET, folder, callbacks=[stop])
    with pytest.raises(ConfigError, match="already holds a training"):
        run_stage(autoencoder_stage(), data, data, SETTINGS, QUIET, folder)
    other = StageSettings(**{**vars(SETTINGS), "batch_size": 8})
    with pytest.raises(ConfigError, match="batch_size was 16, is 8"):
        run_stage(autoencoder_stage(), data, data, other, QUIET, folder, resume=True)
    with pytest.raises(ConfigError, match="samples was 48, is 47"):
        run_stage(autoencoder_stage(), PointData(47), data, SETTINGS, QUIET, folder, resume=True)
    with pytest.raises(ArtefactError, match="of stage 'autoencoder'"):
        run_stage(denoiser_stage(), latents(), latents(), SETTINGS, QUIET, folder, resume=True)
    content = (folder / "last.ckpt").read_bytes()
    (folder / "last.ckpt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtefactError, match="cannot read checkpoint"):
        run_stage(autoencoder_stage(), data, data, SETTINGS, QUIET, folder, resume=True)
