"""Trajectories of an autoregression: the start finds its order and forecasts with the spread that its errors have."""

import torch

from sciLDM.gaussian_start import GaussianStart
from sciLDM.gaussian_start.markov import FOLDS, Moments, autoregressive, best_order
from sciLDM.rng import NoiseSource

STATES, NUMBERS = 4, 12


def process(count: int, order: int, seed: int) -> torch.Tensor:
    """Overlapping trajectories `[count, channel, state, cell]` of a stationary autoregression."""
    noise = NoiseSource(seed).normal(range(count + STATES + 100), (NUMBERS,), stream="process").double()
    turn = torch.linalg.qr(NoiseSource(1).normal(range(NUMBERS), (NUMBERS,), stream="turn"))[0].double()
    scale = 2.0 ** -torch.arange(NUMBERS).div(2)  # a steep spectrum, as that of fields
    lags = (0.6, 0.0) if order == 1 else (0.3, 0.5)
    x = [torch.zeros(NUMBERS).double()] * 2
    for e in noise:
        x.append(turn @ (lags[0] * x[-1] + lags[1] * x[-2]) + scale * e)
    series = torch.stack(x[102 : 102 + count + STATES - 1]).view(-1, 2, NUMBERS // 2)
    return torch.stack([series[t : t + count] for t in range(STATES)], dim=2).float()


def moments(z: torch.Tensor) -> tuple[list[Moments], torch.Tensor]:
    index = torch.arange(z[0].numel()).view(2, STATES, -1).transpose(0, 1).flatten(1)
    return Moments.of([z], z[0].numel(), FOLDS, z.device), index


def test_the_order_of_the_process_is_found() -> None:
    for order in (1, 2):
        found = best_order(*moments(process(2000, order, order)))
        assert found is not None
        assert found[0] == order
    assert best_order(*moments(process(60, 1, 1))) is None


def test_the_whole_past_gives_the_covariance_back() -> None:
    z = process(500, 2, 0)
    parts, index = moments(z)
    found = Moments.sum(parts).about(Moments.sum(parts).mean)
    torch.testing.assert_close(found, torch.cov(z.flatten(1).double().mT, correction=0), rtol=1e-5, atol=1e-7)
    many = 10**9  # no correction for degrees of freedom
    whole = autoregressive(found, index, many, STATES - 1, 0.0)
    torch.testing.assert_close(whole, found, rtol=1e-5, atol=1e-6)
    # A strong ridge leaves every state its own variance, and nothing between states.
    apart = autoregressive(found, index, many, STATES - 1, 1e6)
    block = index[1][:, None], index[1]
    torch.testing.assert_close(apart[block], found[block], rtol=1e-3, atol=1e-4)
    assert float(apart[index[0][:, None], index[1]].abs().max()) < 1e-4


def test_forecasts_are_better_and_as_sure_as_they_should_be() -> None:
    train, new = process(200, 1, 2), process(4000, 1, 3)
    errors, spreads = [], []
    for trajectory in (None, (2, STATES)):
        start = GaussianStart(train[0].numel(), "context", trajectory=trajectory)
        start.fit([train])
        known = torch.where(torch.arange(STATES)[:, None] < STATES - 1, new, torch.nan)
        # So much noise that only the known states speak.
        none, full = torch.full((len(new),), 1e-3), torch.ones(len(new))
        estimate = start(torch.zeros_like(new), none, full, {"context": known})
        errors.append(float((estimate - new)[:, :, -1].square().mean()))
        joint, index = start.covariance.double(), moments(train)[1]
        before, last = index[:-1].flatten(), index[-1]
        gain = torch.linalg.solve(joint[before[:, None], before], joint[before[:, None], last])
        left = joint[last[:, None], last] - joint[last[:, None], before] @ gain
        spreads.append(float(left.diagonal().mean()))
    assert errors[1] < 0.97 * errors[0]
    assert spreads[0] < 0.85 * errors[0]
    assert 0.9 < spreads[1] / errors[1] < 1.1
