"""The trainable denoiser: what runs in which precision, and what it refuses."""

import pytest
import torch
from torch import Tensor, nn

from sciLDM.denoiser import NetDenoiser
from sciLDM.errors import ShapeMismatch
from sciLDM.parametrisation import V
from sciLDM.schedules import CosineSchedule


class Recorder(nn.Module):
    """A pointwise network that remembers how it was called."""

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.mix = nn.Conv1d(4, channels, 1)
        self.calls: list[tuple[Tensor, ...]] = []

    def forward(self, x: Tensor, c_noise: Tensor, cond: object, mask: object, previous: object) -> Tensor:
        output = self.mix(x)
        self.calls.append((x.detach(), c_noise, output.detach()))
        return output


def test_only_the_network_runs_under_autocast() -> None:
    net = Recorder()
    x, t = torch.randn(5, 4, 8), torch.linspace(0.05, 0.95, 5)
    wide = NetDenoiser(net, CosineSchedule(), V())(x, t)
    half = NetDenoiser(net, CosineSchedule(), V(), autocast_dtype=torch.bfloat16)(x, t)
    assert half.dtype == torch.float32
    scaled, c_noise, output = net.calls[-1]
    assert (scaled.dtype, c_noise.dtype, output.dtype) == (torch.float32, torch.float32, torch.bfloat16)
    # What is left is c_skip x + c_out F in float32: at low noise the sample keeps all its digits.
    assert torch.allclose(wide, half, atol=3e-2)
    assert torch.allclose(wide[0], half[0], atol=3e-3)


def test_the_estimate_is_the_state_where_there_is_no_noise_and_gradients_flow() -> None:
    denoiser = NetDenoiser(Recorder(), CosineSchedule(), V())
    x = torch.randn(2, 4, 8)
    x0 = denoiser(x, torch.zeros(2))
    assert torch.allclose(x0, x, atol=1e-3)
    denoiser(x, torch.ones(2)).sum().backward()
    assert all(bool(p.grad.isfinite().all()) and float(p.grad.abs().sum()) > 0 for p in denoiser.parameters())


def test_a_network_of_the_wrong_width_is_named() -> None:
    with pytest.raises(ShapeMismatch, match=r"\(2, 4, 8\), got \(2, 3, 8\)"):
        NetDenoiser(Recorder(3), CosineSchedule(), V())(torch.randn(2, 4, 8), torch.zeros(2))
