"""Two processes train as one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sciLDM.training import StageSettings
from sciLDM.training.trainer import run_stage
from tests.training.toys import QUIET, PointData, autoencoder_stage, rows

SCRIPT = """
import sys
from pathlib import Path
from sciLDM.training import StageSettings, TrainerSettings, run_stage
from tests.training.toys import PointData, autoencoder_stage

settings = StageSettings(max_steps=int(sys.argv[2]), batch_size=16, warmup_steps=2, learning_rate=1e-2, decay="none",
                         log_every=1, validate_every=5, checkpoint_every=5, ema_decay=0.9)
trainer = TrainerSettings(accelerator="cpu", devices=2, strategy="ddp", progress_bar=False)
# Without noise and dropout the processes' different random numbers do not matter.
stage = autoencoder_stage(noise=0.0, dropout=0.0)
data = PointData()
result = run_stage(stage, data, data, settings, trainer, Path(sys.argv[1]), resume=True)
print("DONE", result.steps, result.validation["loss"])
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_follow_the_curve_of_one(tmp_path: Path, root: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    for steps in (5, 12):  # the second continues the first
        command = [sys.executable, str(script), str(tmp_path / "two"), str(steps)]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=250)
        assert done.returncode == 0, done.stderr
    settings = StageSettings(
        max_steps=12,
        batch_size=16,
        warmup_steps=2,
        learning_rate=1e-2,
        decay="none",
        log_every=1,
        validate_every=5,
        checkpoint_every=5,
        ema_decay=0.9,
    )
    stage, data = autoencoder_stage(noise=0.0, dropout=0.0), PointData()
    run_stage(stage, data, data, settings, QUIET, tmp_path / "one")
    one, two = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert [r["step"] for r in two] == [r["step"] for r in one]
    for a, b in zip(one, two, strict=True):
        assert float(b["train/grad_norm"]) == pytest.approx(float(a["train/grad_norm"]), rel=1e-3)
        if a["val/loss"]:
            assert float(b["val/loss"]) == pytest.approx(float(a["val/loss"]), rel=1e-3)
    saved = torch.load(tmp_path / "two/last.ckpt", weights_only=True)["state_dict"]
    for name, value in stage.state_dict().items():
        assert torch.allclose(saved[name], value, atol=1e-4), name
