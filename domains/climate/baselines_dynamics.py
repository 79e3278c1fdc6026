r"""Baselines that evolve: the linear inverse model and analogs.

The linear inverse model (Penland & Sardeshmukh 1995, doi:10.1175/1520-0442(1995)008<1999:TOGOTS>2.0.CO;2) takes
principal components as a Markov process observed at the step `tau`,

    x(t + tau) = G x(t) + e,     G = C(tau) C(0)^-1,     <e e^T> = Q = C(0) - G C(0) G^T,

the last being the fluctuation-dissipation relation: the noise that keeps the variance where it is.
"""

from typing import final

import numpy as np
from jaxtyping import Float

from sciLDM.domains.climate.baselines import (
    EOFs,
    Forecaster,
    History,
    Initial,
    normal,
    pick,
    season_distance,
)
from sciLDM.errors import ConfigError
from sciLDM.rng import NoiseSource

__all__ = ["Analogs", "LinearInverseModel"]


@final
class LinearInverseModel(Forecaster):
    """Linear inverse model in EOF space.

    What the modes do not hold is forecast by damped persistence of each place's remainder, with the remainders of
    random training states as its noise, so that the spread is that of whole fields.

    Args:
        history: Training anomalies.
        modes: EOFs.

    Attributes:
        propagator: `G`.
        noise_covariance: `Q`, made positive where sampling errors made it negative, its trace kept.
    """

    def __init__(self, history: History, *, modes: int = 40) -> None:
        self.eofs = eofs = EOFs.fit(history.anomalies, history.weights, modes)
        now, then = history.pairs(1)
        x = eofs.components(history.anomalies)
        c0 = x[now].T @ x[now] / len(now)
        self.propagator = G = np.linalg.solve(c0, x[now].T @ x[then] / len(now)).T
        q = c0 - G @ c0 @ G.T
        self.noise_covariance, self._root = _positive((q + q.T) / 2)
        rest = history.anomalies - eofs.field(x)
        power = (rest**2).mean(0)
        r = (rest[now] * rest[then]).mean(0) / np.maximum(power, 1e-300)
        self._damping = np.clip(np.where(power > 1e-12 * (history.anomalies**2).mean(), r, 0.0), 0.0, 1.0)
        self._rest = rest

    def forecast(
        self, initial: Initial, leads: int, members: int, noise: NoiseSource
    ) -> Float[np.ndarray, "case member lead value"]:
        cases, modes = len(initial.states), len(self.propagator)
        start = self.eofs.components(initial.states)
        rest = np.repeat((initial.states - self.eofs.field(start))[:, None], members, axis=1)
        x = np.repeat(start[:, None], members, axis=1)
        eps = normal(noise, range(cases), (leads, members, modes))
        found = np.empty((cases, members, leads, initial.states.shape[1]))
        fresh = noise.fork("rest")
        for k in range(leads):
            x = x @ self.propagator.T + eps[:, k] @ self._root.T
            rows = np.stack([pick(fresh.fork(k), i, members, len(self._rest)) for i in range(cases)])
            rest = self._damping * rest + np.sqrt(1 - self._damping**2) * self._rest[rows]
            found[:, :, k] = self.eofs.field(x) + rest
        return found

    def mean(self, initial: Initial, leads: int) -> Float[np.ndarray, "case lead value"]:
        """The forecast without noise: what a residual model may be built on."""
        x = self.eofs.components(initial.states)
        rest = initial.states - self.eofs.field(x)
        found = []
        for _ in range(leads):
            x, rest = x @ self.propagator.T, self._damping * rest
            found.append(self.eofs.field(x) + rest)
        return np.stack(found, axis=1)


@final
class Analogs(Forecaster):
    """What followed the training states that are most like the initial one, at the same time of the year.

    Args:
        history: Training anomalies.
        modes: EOFs in which likeness is measured.
        width: Half width of the season, as a share of the year.
    """

    def __init__(self, history: History, *, modes: int = 20, width: float = 0.125) -> None:
        if not 0 < width <= 0.5:
            raise ConfigError(f"width must be a share of the year up to 1/2, got {width}")
        self.history, self.width = history, width
        self.eofs = EOFs.fit(history.anomalies, history.weights, modes)
        self._components = self.eofs.components(history.anomalies)

    def forecast(
        self, initial: Initial, leads: int, members: int, noise: NoiseSource
    ) -> Float[np.ndarray, "case member lead value"]:
        candidates = self.history.pairs(leads)[0]
        if len(candidates) < members:
            raise ConfigError(f"{members} analogs asked for, {len(candidates)} training states have a future")
        start = self.eofs.components(initial.states)
        found = []
        for x, phase in zip(start, initial.phase, strict=True):
            away = ((self._components[candidates] - x) ** 2).sum(1)
            season = season_distance(self.history.phase[candidates], phase) <= self.width
            if season.sum() >= members:
                away = np.where(season, away, np.inf)
            rows = candidates[np.argpartition(away, members - 1)[:members]]
            found.append(self.history.anomalies[rows[:, None] + np.arange(1, leads + 1)])
        return np.stack(found)


def _positive(q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The nearest covariance of the same trace, and its root."""
    values, vectors = np.linalg.eigh(q)
    kept = np.maximum(values, 0.0)
    if kept.sum() > 0:
        kept *= max(values.sum(), 0.0) / kept.sum()
    return (vectors * kept) @ vectors.T, vectors * np.sqrt(kept)
