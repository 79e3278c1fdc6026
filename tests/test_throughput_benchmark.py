"""The benchmark of throughput: what the SMILES model of CharRNN's size does is what it is timed for."""

import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).parent.parent / "benchmarks"
if not (FOLDER / "throughput.py").exists():
    pytest.skip("benchmarks come with a clone only", allow_module_level=True)


@pytest.fixture(scope="module")
def bench():
    """The script, which imports what it shares with others by a plain name."""
    sys.path.insert(0, str(FOLDER))
    try:
        import throughput

        yield throughput
    finally:
        sys.path.remove(str(FOLDER))


def test_strings_have_the_lengths_asked_for(bench) -> None:
    net = bench.CharRNN(tokens=7, hidden=16, layers=2)
    lengths = torch.tensor([9, 5, 5, 1])
    torch.manual_seed(0)
    strings = net.sample(lengths)
    assert [len(s) for s in strings] == lengths.tolist()
    assert {token for s in strings for token in s} <= set(range(7))


def test_tokens_follow_the_distribution_given_what_came_before(bench) -> None:
    """The frequency of second tokens after each first one, against the network's own probabilities."""
    torch.manual_seed(0)
    net = bench.CharRNN(tokens=4, hidden=8, layers=1)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=1.0)
    first, second = torch.tensor(net.sample(torch.full((20_000,), 2))).T
    with torch.no_grad():
        for token in range(4):
            given = torch.tensor([[1, token]])
            expected = net.linear(net.lstm(net.embedding(given))[0][0, -1]).softmax(-1)
            drawn = second[first == token]
            assert len(drawn) > 100
            seen = torch.bincount(drawn, minlength=4) / len(drawn)
            assert (seen - expected).abs().max() < 4 * (0.25 / len(drawn)) ** 0.5


def test_published_size(bench) -> None:
    """Three layers of 768 units: 11.9 million weights in the LSTM alone."""
    net = bench.CharRNN()
    count = sum(p.numel() for p in net.lstm.parameters())
    assert count == 4 * 768 * (40 + 768 + 2) + 2 * 4 * 768 * (2 * 768 + 2)
