"""Bad settings are refused when they are written, and the learning rate is what they say."""

import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from torch import nn

from sciLDM.errors import ConfigError
from sciLDM.training import StageSettings, TrainerSettings
from sciLDM.training.optim import learning_rate_factor, make_optimiser


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"ema_decay": 1.0}, "ema_decay must be in"),
        ({"learning_rate": float("nan")}, "learning_rate must be a positive number"),
        ({"decay_from": 1.0}, "decay_from must be in"),
        ({"max_minutes": 0.0}, "max_minutes must be positive"),
        ({"clip_norm": 0.0}, "clip_norm must be positive"),
    ],
)
def test_bad_settings_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StageSettings(**options)


def test_bad_trainer_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="devices"):
        TrainerSettings(devices=0)


@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_rate_warms_up_stays_and_decays_to_zero(decay: str) -> None:
    settings = StageSettings(max_steps=1000, warmup_steps=10, decay=decay, decay_from=0.8)
    factors = [learning_rate_factor(settings, step, step / 1000) for step in range(1001)]
    assert factors[:3] == pytest.approx([0.1, 0.2, 0.3])
    assert factors[10:801] == [1.0] * 791
    assert factors[900] == pytest.approx(0.5)
    assert factors[1000] == pytest.approx(0.0, abs=1e-12)
    assert all(a >= b for a, b in pairwise(factors[800:]))


def test_rate_follows_time_when_time_is_further() -> None:
    settings = StageSettings(max_steps=1000, warmup_steps=0, decay="linear", max_minutes=1.0)
    assert learning_rate_factor(settings, 10, 0.75) == pytest.approx(0.25)
    assert learning_rate_factor(StageSettings(decay="none", warmup_steps=0), 10, 0.99) == 1.0


def test_a_short_trial_run_leaves_its_warm_up() -> None:
    assert learning_rate_factor(StageSettings(max_steps=20, warmup_steps=1000, decay="none"), 2, 0.1) == 1.0


def test_only_matrices_decay() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimiser = make_optimiser(net, StageSettings(weight_decay=0.5, learning_rate=0.1))
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step()
    for name, p in net.named_parameters():
        assert torch.allclose(p, before[name] * (1 - 0.1 * 0.5 if p.ndim == 2 else 1.0)), name


def test_muon_turns_a_matrix_along_all_directions_alike_and_leaves_the_rest_to_adamw() -> None:
    torch.manual_seed(0)
    block, head = nn.Linear(16, 8), nn.Linear(8, 4)
    net = nn.ModuleDict({"blocks": nn.ModuleList([block]), "head": head})
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimiser = make_optimiser(
        net, StageSettings(optimiser="muon", learning_rate=0.1, weight_decay=0.0, warmup_steps=0)
    )
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    optimiser.step()
    change = {name: p.detach() - before[name] for name, p in net.named_parameters()}
    # Newton-Schulz brings singular values to about 1 (0.7 to 1.2), whatever those of the gradient.
    spread = torch.linalg.svdvals(change["blocks.0.weight"]) / (0.1 * 0.2 * 16**0.5)
    assert float(spread.min()) > 0.5
    assert float(spread.max()) < 1.5
    for name in ("blocks.0.bias", "head.weight", "head.bias"):  # Adam's first step has the size of the rate
        assert torch.allclose(change[name].abs(), torch.full_like(change[name], 0.1), rtol=1e-3), name


def test_muon_is_refused_where_there_is_nothing_for_it() -> None:
    with pytest.raises(ConfigError, match="Linear has none; use adamw"):
        make_optimiser(nn.Linear(3, 4), StageSettings(optimiser="muon"))


def test_settings_load_without_lightning() -> None:
    code = "import sys, sciLDM.training; sys.exit(any(m.split('.')[0] == 'lightning' for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False, env=_environment()).returncode == 0


def _environment() -> dict[str, str]:
    import os

    return {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
