"""A training that diverges stops at once, names the cause, and leaves the last checkpoint as it was."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from sciLDM.errors import TrainingDiverged
from sciLDM.training import BatchPlan, StageSettings
from sciLDM.training.guard import diverged
from sciLDM.training.trainer import run_stage
from tests.training.toys import QUIET, PointData, autoencoder_stage, weights

SETTINGS = StageSettings(
    max_steps=20, batch_size=8, warmup_steps=2, validate_every=100, checkpoint_every=3, ema_decay=0.9
)


def test_bad_sample_is_named_and_the_checkpoint_stays_good(tmp_path: Path) -> None:
    stage, data = autoencoder_stage(poison=8), PointData()
    with pytest.raises(TrainingDiverged) as error:
        run_stage(stage, data, data, SETTINGS, QUIET, tmp_path / "a")
    indices = BatchPlan(0, 48, 8).indices(8)
    message = str(error.value)
    assert "diverged at step 8" in message
    assert f"loss term 'right' is not finite in 1 of 8 samples for training samples [{indices[1]}]" in message
    assert ", ".join(str(i) for i in indices) in message
    assert "lower learning_rate" in message
    assert "precision: fp32" in message
    saved = torch.load(tmp_path / "a/last.ckpt", weights_only=True)
    assert saved["global_step"] == 6
    assert all(torch.isfinite(v).all() for v in saved["state_dict"].values())
    # The bad step changed neither weights nor average, so even the stage in memory is good.
    assert all(torch.isfinite(v).all() for v in [*weights(stage).values(), *stage.ema.shadow.values()])


class Spoil(Callback):
    """Write an infinite weight after step 4."""

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.step == 4:
            with torch.no_grad():
                pl_module.network.dec.weight[0, 0] = float("inf")


def test_bad_weights_are_named_before_what_follows_from_them(tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match=r"step 4: the weights of 'dec\.weight'"):
        run_stage(
            autoencoder_stage(),
            PointData(),
            PointData(),
            SETTINGS,
            QUIET,
            tmp_path / "a",
            callbacks=[Spoil()],
        )


def test_bad_gradient_of_a_finite_loss_is_named() -> None:
    net = nn.Linear(2, 2)
    net.weight.grad, net.bias.grad = torch.zeros(2, 2), torch.tensor([0.0, float("nan")])
    terms = {"loss": torch.ones(3)}
    message = str(diverged(net, terms, step=7, indices=np.arange(3), learning_rate=0.1))
    assert "step 7: the loss is finite, but the gradient of 'bias' is not" in message
    net.bias.grad = torch.zeros(2)
    assert "norm overflows" in str(diverged(net, terms, step=7, indices=np.arange(3), learning_rate=0.1))
