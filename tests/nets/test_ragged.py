"""Samples computed in groups of similar length: the same numbers as in one padded batch, for less work."""

import pytest
import torch
from torch import Tensor

from sciLDM.conditions import Scalar
from sciLDM.nets import DiT
from sciLDM.nets import dit as module
from sciLDM.nets.ragged import join, split_by_length


def lengths_to_mask(lengths: Tensor, longest: int) -> Tensor:
    return torch.arange(longest) < lengths[:, None]


def test_join_undoes_split() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 30, (100,), generator=generator)
    mask = lengths_to_mask(lengths, 30)
    x = torch.randn(100, 2, 30, 30, generator=generator) * (mask[:, None, :, None] & mask[:, None, None, :])
    groups = split_by_length(mask, power=2)
    assert groups is not None
    parts = [x[of, :, :n, :n] for of, n in groups]
    assert torch.equal(join(parts, groups, 30, (2, 3)), x)
    assert sum(part.numel() for part in parts) < 0.6 * x.numel()
    assert sorted(torch.cat([of for of, _ in groups]).tolist()) == list(range(100))


def test_groups_are_made_where_they_save_work() -> None:
    lengths = torch.arange(1, 65)
    assert split_by_length(None) is None
    assert split_by_length(lengths_to_mask(lengths[:20], 64)) is None  # few samples
    assert split_by_length(lengths_to_mask(torch.full((64,), 9), 9)) is None  # equal lengths
    assert split_by_length(lengths_to_mask(torch.where(lengths < 3, 5, 9), 9)) is None  # nearly
    assert split_by_length(lengths_to_mask(lengths, 64)) is not None


def test_dit_gives_the_same_values_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net = DiT(4, (24,), width=32, depth=2, heads=4, conditions=[Scalar("logP")])
    for p in net.parameters():  # adaLN-Zero starts as the zero function
        torch.nn.init.normal_(p, std=0.1)
    x, previous, level = torch.randn(64, 4, 24), torch.randn(64, 4, 24), torch.rand(64)
    cond = {"logP": torch.randn(64)}
    mask = lengths_to_mask(torch.randint(2, 25, (64,)), 24)

    def run() -> tuple[Tensor, Tensor]:
        net.zero_grad()
        y = net(x, level, cond, mask, previous).masked_fill(~mask[:, None], 0.0)
        y.square().sum().backward()
        return y.detach(), torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])

    y, gradient = run()
    monkeypatch.setattr(module, "split_by_length", lambda mask: None)
    padded, padded_gradient = run()
    assert y.abs().max() > 0.1
    torch.testing.assert_close(y, padded, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient, padded_gradient, rtol=1e-4, atol=1e-3 * gradient.abs().mean().item())
