"""Random context: what is revealed, and that the network is scored on the rest alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sciLDM.conditions import FieldMap
from sciLDM.denoiser import NetDenoiser
from sciLDM.errors import ConfigError
from sciLDM.nets import DiTNetwork
from sciLDM.objectives import DiffusionObjective, RandomContext
from sciLDM.parametrisation import V
from sciLDM.schedules import CosineSchedule


def uniforms(batch: int, frames: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(batch, 4 + frames, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 7), st.integers(0, 50))
def test_something_is_always_left_to_predict(frames: int, seed: int) -> None:
    known = RandomContext(none=0.0).known(uniforms(64, frames, seed))
    assert not known.all(dim=1).any()
    assert frames == 1 or known.any()


def test_shares_are_those_asked_for() -> None:
    known = RandomContext(forward=1.0, none=0.25).known(uniforms(20_000, 4))
    counts = known.sum(dim=1)
    assert (known[:, 1:] <= known[:, :-1]).all()  # a forecast reveals the past without holes
    torch.testing.assert_close((counts == 0).float().mean().item(), 0.25, atol=0.02, rtol=0)
    for n in (1, 2, 3):
        torch.testing.assert_close((counts == n).float().mean().item(), 0.25, atol=0.02, rtol=0)


def test_revealed_frames_are_given_and_not_scored() -> None:
    torch.manual_seed(0)
    conditions = (FieldMap("context", channels=2, dropout=0.0),)
    net = DiTNetwork(width=16, depth=1, heads=2).build(2, (3, 2), conditions)
    seen: dict[str, torch.Tensor] = {}
    net.register_forward_pre_hook(lambda _module, args: seen.update(args[2]))
    denoiser = NetDenoiser(net, CosineSchedule(), V())
    objective = DiffusionObjective(self_condition=0.0, context=RandomContext(forward=1.0, none=0.0))
    z = torch.randn(5, 2, 3, 2)
    draw = objective.draw(z, 1, torch.Generator().manual_seed(1))
    loss = objective(denoiser, z, draw, conditions=conditions)
    known = seen["context"].isfinite()
    torch.testing.assert_close(seen["context"][known], z[known])
    other = z.clone()
    t = objective.times(draw.u, denoiser.schedule, 1.0)
    alpha, sigma = denoiser.schedule(t)
    x_t = alpha[:, None, None, None] * other + sigma[:, None, None, None] * draw.eps
    error = (denoiser(x_t, t, {"context": seen["context"]}) - other).square()
    expected = torch.stack([e[~k].mean() for e, k in zip(error, known, strict=True)])
    weight = objective.weighting(denoiser.schedule.lmbda(t))
    torch.testing.assert_close(loss, weight * expected)


def test_a_domain_without_the_condition_is_refused() -> None:
    net = DiTNetwork(width=16, depth=1, heads=2).build(2, (3,), ())
    objective = DiffusionObjective(context=RandomContext())
    z = torch.randn(2, 2, 3)
    draw = objective.draw(z, 0, torch.Generator().manual_seed(1))
    with pytest.raises(ConfigError, match=r"'context'.*declares none"):
        objective(NetDenoiser(net, CosineSchedule(), V()), z, draw)
