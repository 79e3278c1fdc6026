r"""Covariance of trajectories whose states depend on the few states before them.

    x_t = m_t + sum_(i <= k) A_i (x_(t-i) - m_(t-i)) + e_t,    e_t ~ N(0, Q_t)

A covariance of `T` states of `p` numbers has `T^2 p^2 / 2` entries. Where its blocks are regressions on every earlier
state, `n` trajectories leave them in-sample errors that are too small by `1 - q / n` (`q` the number of regressors) and
errors on other data that are too large by about as much: forecasts are worse than need be and too sure of themselves.
An autoregression of order `k` has the regressions that the data support, and `Q_t` is divided by the degrees of freedom
that are left. The covariance follows state by state; its inverse has a banded block Cholesky factor (Bickel & Levina
2008, doi:10.1214/009053607000000758).

The order is that of the smallest corrected information criterion of the last state's regression (Bedrick & Tsai 1994,
Biometrics 50, 226),

    AICc = n (ln |Q| + p) + 2 d (q p + p (p + 1) / 2),    d = n / (n - q - p - 1).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["autoregressive", "best_order"]

Covariance = Float[Tensor, "size size"]


def autoregressive(
    covariance: Covariance, states: Int[Tensor, "state number"], count: int, order: int
) -> Covariance:
    """The covariance of an autoregression.

    Args:
        covariance: Of samples.
        states: Where the numbers of each state lie.
        count: Samples.
        order: `k`; 0 for states that do not depend on each other.
    """
    found = torch.zeros_like(covariance)
    found[_block(states[0], states[0])] = covariance[_block(states[0], states[0])]
    for t in range(1, len(states)):
        new, past = states[t], states[max(0, t - order) : t].flatten()
        # Without regressors, sizes of 0 go through all that follows.
        weights, rest = _regression(covariance, past, new)
        before = states[:t].flatten()
        rest = rest * count / (count - len(past))
        between = found[_block(before, past)] @ weights
        found[_block(before, new)], found[_block(new, before)] = between, between.mT
        found[_block(new, new)] = rest + weights.mT @ found[_block(past, past)] @ weights
    return (found + found.mT) / 2


def best_order(covariance: Covariance, states: Int[Tensor, "state number"], count: int) -> int | None:
    """The order with the smallest criterion; None where samples are too few for any.

    Args:
        covariance: Of samples.
        states: Where the numbers of each state lie.
        count: Samples.
    """
    numbers, criteria = states.shape[1], {}
    for order in range(1, len(states)):
        past = states[len(states) - 1 - order : -1].flatten()
        left = count - len(past) - numbers - 1
        if left > 0:
            _, rest = _regression(covariance, past, states[-1])
            fitted = len(past) * numbers + numbers * (numbers + 1) / 2
            criteria[order] = count * float(torch.logdet(rest)) + 2 * count / left * fitted
    return min(criteria, key=lambda order: criteria[order]) if criteria else None


def _regression(covariance: Tensor, past: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of the regressors, and the covariance that is left."""
    between = covariance[_block(past, new)]
    weights = torch.linalg.solve(covariance[_block(past, past)], between)
    rest = covariance[_block(new, new)] - between.mT @ weights
    return weights, (rest + rest.mT) / 2


def _block(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    return rows[:, None], columns[None]
