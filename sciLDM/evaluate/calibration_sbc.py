r"""Simulation-based calibration (Talts et al. 2018, arXiv:1804.06788): is the whole machinery a posterior at all?

Draw `x ~ p(x)` from the prior that the sampler itself uses, `y ~ p(y | x)`, and samples from the computed posterior of
`y`. Then `x` and the samples are exchangeable, whatever the model, so that the rank of any quantity is uniform. No data
are needed; a failure is a fault of the sampler, not of the model.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.evaluate.calibration import ranks
from sciLDM.evaluate.calibration_statistics import Flatness, flatness
from sciLDM.rng import NoiseSource

__all__ = ["SBC", "simulation_based_calibration"]


@final
@dataclass(frozen=True)
class SBC:
    """Ranks of one quantity over all simulations.

    Attributes:
        positions: `u = (rank + U) / (M + 1)` of each simulation; uniform when the sampler is right.
        rank_histogram: Share of simulations by bin.
        flat: Test of its flatness.
    """

    positions: np.ndarray
    rank_histogram: tuple[float, ...]
    flat: Flatness


def simulation_based_calibration(
    prior: Callable[[range], Tensor],
    simulate: Callable[[Tensor, range], Tensor],
    posterior: Callable[[Tensor, range], Tensor],
    *,
    simulations: int = 200,
    batch_size: int = 32,
    quantities: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
    bins: int = 10,
    seed: int = 0,
) -> dict[str, SBC]:
    """Run the three callables and rank truths among their posterior samples.

    Args:
        prior: `prior(ids)`: one draw for each identifier, `[batch, *shape]`.
        simulate: `simulate(x, ids)`: observations with noise.
        posterior: `posterior(y, ids)`: samples `[batch, sample, *shape]`.
        simulations: How many.
        batch_size: How many at once.
        quantities: By name, functions `[batch, *shape]` to `[batch]`; mean, smallest and largest value, and root mean
            square of the field when None. Choose what the application reads off.
        bins: Bins of the histogram; several simulations should fall into each.
        seed: Of tie-breaking.

    Raises:
        ConfigError: Too few simulations for the bins.
        ShapeMismatch: A quantity that is no single number.
    """
    if simulations < 5 * bins:
        raise ConfigError(
            f"{simulations} simulations are too few for {bins} bins; use at least 5 a bin, better 20"
        )
    measured = _DEFAULT if quantities is None else quantities
    found: dict[str, list[Tensor]] = {name: [] for name in measured}
    noise = NoiseSource(seed)
    for start in range(0, simulations, batch_size):
        ids = range(start, min(start + batch_size, simulations))
        x = prior(ids)
        samples = posterior(simulate(x, ids), ids)
        for name, fn in measured.items():
            truth = _number(name, fn, x)
            members = _number(name, fn, samples.flatten(0, 1)).unflatten(0, samples.shape[:2])
            found[name].append(ranks(members, truth, noise.fork(name), ids))
    return {name: _ranked(torch.cat(parts).double().cpu().numpy(), bins) for name, parts in found.items()}


def _ranked(positions: np.ndarray, bins: int) -> SBC:
    counts = np.eye(bins)[np.minimum((positions * bins).astype(int), bins - 1)]
    weight = np.ones(len(positions))
    return SBC(positions, tuple(counts.mean(0).tolist()), flatness(counts, weight))


def _number(name: str, fn: Callable[[Tensor], Tensor], x: Tensor) -> Float[Tensor, "batch"]:
    value = fn(x)
    if value.shape != (len(x),):
        raise ShapeMismatch(f"quantity {name!r}: expected one number a sample, got {tuple(value.shape)}")
    return value


_DEFAULT: Mapping[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda x: x.flatten(1).mean(1),
    "smallest": lambda x: x.flatten(1).amin(1),
    "largest": lambda x: x.flatten(1).amax(1),
    "root mean square": lambda x: x.flatten(1).square().mean(1).sqrt(),
}
