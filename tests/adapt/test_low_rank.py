"""Low-rank terms: nothing at the start, exact when merged, and the only thing that is trained."""

import pytest
import torch
from torch import nn

from sciLDM.adapt import add_low_rank, merge_low_rank
from sciLDM.errors import ConfigError


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 10), nn.SiLU(), nn.LayerNorm(10), nn.Linear(10, 3))


def test_the_network_starts_as_it_was_and_merging_changes_no_output() -> None:
    net, x = network(), torch.randn(7, 6)
    before = net(x)
    trained = add_low_rank(net, 4)
    assert torch.equal(net(x), before)
    # Ranks are capped by a layer's smaller side.
    assert trained == 4 * (6 + 10) + 3 * (10 + 3)
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.01)
    for _ in range(5):
        optimiser.zero_grad()
        net(x).square().sum().backward()
        optimiser.step()
    moved = net(x)
    assert not torch.allclose(moved, before)
    merge_low_rank(net)
    torch.testing.assert_close(net(x), moved)
    assert net.state_dict().keys() == network().state_dict().keys()
    # Only matrices moved, each by a matrix of the rank asked for.
    for layer, old in zip((net[0], net[3]), (network()[0], network()[3]), strict=True):
        assert torch.equal(layer.bias, old.bias)
        assert int(torch.linalg.matrix_rank(layer.weight - old.weight)) <= 4
    assert all(p.requires_grad for p in net.parameters())


def test_ranks_and_networks_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        add_low_rank(network(), 0)
    with pytest.raises(ConfigError, match="no linear layers"):
        add_low_rank(nn.Conv1d(2, 2, 3), 2)
