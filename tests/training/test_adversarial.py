"""The adversarial term: the formulas, whose weights move, and that it does what it is for."""

from pathlib import Path

import pytest
import torch
from torch import nn

from sciLDM.errors import ConfigError
from sciLDM.training import AdversarialSettings, StageSettings
from sciLDM.training.adversarial import Adversary
from sciLDM.training.stages import AutoencoderStage
from sciLDM.training.trainer import run_stage
from tests.training.toys import QUIET, PointAutoencoder, PointData, weights


def adversarial(**options: object) -> AdversarialSettings:
    torch.manual_seed(7)
    critic = nn.Sequential(nn.Linear(6, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1))
    return AdversarialSettings(critic, real=lambda fields: fields.x, fake=lambda decoded: decoded, **options)


@pytest.mark.parametrize("kind", ["hinge", "non_saturating"])
def test_losses_are_those_of_the_papers_and_gradients_go_where_they_should(kind: str) -> None:
    adversary = Adversary(adversarial(kind=kind, weight=0.5))
    fields, decoded = PointData(4).fields(torch.arange(4).numpy()), torch.randn(4, 6, requires_grad=True)
    d_real, d_fake = (adversary.discriminator(x).squeeze(1).detach() for x in (fields.x, decoded))
    generator = adversary.decoder_loss(fields, decoded)
    discriminator = adversary.discriminator_loss()
    if kind == "hinge":
        want = -0.5 * d_fake, (1 - d_real).clamp_min(0) + (1 + d_fake).clamp_min(0)
    else:
        want = -0.5 * d_fake.sigmoid().log(), -d_real.sigmoid().log() - (1 - d_fake.sigmoid()).log()
    assert torch.allclose(generator, want[0], atol=1e-5)
    assert torch.allclose(discriminator, want[1], atol=1e-5)
    generator.sum().backward()
    assert decoded.grad.abs().sum() > 0
    assert all(p.grad is None for p in adversary.parameters())
    decoded.grad = None
    discriminator.sum().backward()
    assert decoded.grad is None
    assert all(p.grad is not None for p in adversary.parameters())


def test_two_optimisers_count_as_one_step_and_resume_exactly(tmp_path: Path) -> None:
    options = {"batch_size": 8, "warmup_steps": 0, "learning_rate": 1e-2, "decay": "none", "log_every": 1}
    data = PointData()

    def stage() -> AutoencoderStage:
        torch.manual_seed(1)
        return AutoencoderStage(PointAutoencoder(), adversarial(start_step=3))

    whole, broken = stage(), stage()
    critic = [p.detach().clone() for p in broken.adversary.parameters()]
    run_stage(whole, data, data, StageSettings(max_steps=8, **options), QUIET, tmp_path / "whole")
    run_stage(broken, data, data, StageSettings(max_steps=3, **options), QUIET, tmp_path / "broken")
    assert all(torch.equal(p, q) for p, q in zip(critic, broken.adversary.parameters(), strict=True))
    resumed = stage()
    result = run_stage(
        resumed, data, data, StageSettings(max_steps=8, **options), QUIET, tmp_path / "broken", resume=True
    )
    assert (whole.step, result.steps, whole.trainer.global_step) == (8, 8, 8)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(resumed)[name]), name
    pairs = list(zip(whole.adversary.parameters(), resumed.adversary.parameters(), strict=True))
    assert all(torch.equal(p, q) for p, q in pairs)
    # Its matrices moved; the last bias need not (hinge gradients of real and fake cancel there).
    assert not any(torch.equal(c, p) for c, (p, _) in zip(critic, pairs, strict=True) if p.ndim == 2)
    assert "adversarial" not in " ".join(whole.network.state_dict())


def test_decoder_learns_to_please_a_frozen_critic(tmp_path: Path) -> None:
    # A critic that knows the answer (it likes a large first coordinate) and no reconstruction pull worth mentioning.
    critic = nn.Linear(6, 1, bias=False)
    with torch.no_grad():
        critic.weight.copy_(torch.tensor([[1.0, 0, 0, 0, 0, 0]]))
    settings = AdversarialSettings(critic, lambda f: f.x, lambda d: d, weight=50.0, learning_rate=1e-12)
    torch.manual_seed(1)
    stage, data = AutoencoderStage(PointAutoencoder(), settings), PointData()
    options = StageSettings(max_steps=40, batch_size=16, warmup_steps=0, learning_rate=3e-2)
    run_stage(stage, data, data, options, QUIET, tmp_path / "a")
    with torch.no_grad():
        decoded = stage.network.decode(stage.network.code(data.fields(torch.arange(48).numpy()))[0], None)
    assert decoded[:, 0].mean() > data.x[:, 0].mean() + 1.0


def test_bad_options_are_refused() -> None:
    with pytest.raises(ConfigError, match="weight and start_step"):
        adversarial(weight=-1.0)
