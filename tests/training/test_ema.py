"""The running average: its formula, and that looking at it changes nothing."""

import pytest
import torch
from torch import nn

from sciLDM.errors import ArtefactError
from sciLDM.training import EMA


def test_average_follows_the_formula() -> None:
    net = nn.Linear(3, 2)
    ema = EMA(net, 0.6)
    expected = net.weight.detach().double().clone()
    for n in range(12):
        with torch.no_grad():
            net.weight.normal_()
        ema.update()
        decay = min(0.6, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * net.weight.detach().double()
    assert torch.allclose(ema.shadow["weight"].double(), expected, atol=1e-6)


def test_constant_weights_are_their_own_average() -> None:
    net = nn.Linear(3, 2)
    ema = EMA(net, 0.999)
    for _ in range(5):
        ema.update()
    assert torch.equal(ema.shadow["weight"], net.weight)


def test_only_trained_parameters_are_averaged_and_buffers_stay() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    net[0].weight.requires_grad_(False)
    assert sorted(EMA(net, 0.9).shadow) == ["0.bias", "1.bias", "1.weight"]


def test_swap_shows_the_average_and_restores_bit_for_bit_even_after_an_error() -> None:
    net = nn.Linear(3, 2)
    ema = EMA(net, 0.9)
    with torch.no_grad():
        net.weight.normal_()
    ema.update()
    raw, state = net.weight.detach().clone(), ema.state()

    def look() -> None:
        with ema.average(), ema.average():
            assert torch.equal(net.weight, ema.shadow["weight"])
            assert torch.equal(ema.trained_weights()["weight"], raw)
            assert torch.equal(ema.state()["shadow"]["weight"], state["shadow"]["weight"])
            raise KeyError("in the middle")

    with pytest.raises(KeyError):
        look()
    assert torch.equal(net.weight, raw)
    assert not ema.swapped
    assert not torch.equal(net.weight, ema.shadow["weight"])


def test_low_precision_weights_have_a_float32_average() -> None:
    net = nn.Linear(8, 8).bfloat16()
    ema = EMA(net, 0.9999)
    start = ema.shadow["weight"].clone()
    with torch.no_grad():
        net.weight.add_(1.0)
    for _ in range(3):
        ema.updates = 10**6  # past the warm start: a step of 1e-4 would be lost in bfloat16
        ema.update()
    moved = (ema.shadow["weight"] - start).mean().item()
    assert moved == pytest.approx(3e-4, rel=0.02)


def test_state_of_another_network_is_refused() -> None:
    with pytest.raises(ArtefactError, match="another network"):
        EMA(nn.Linear(2, 2), 0.9).load(EMA(nn.Linear(2, 2, bias=False), 0.9).state())
