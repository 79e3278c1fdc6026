r"""Objects of high value in few calls of an oracle: Bayesian optimisation with the model as its neighbourhood.

Each round a Gaussian process on `activations` learns what the oracle has said so far. Proposals are variants of the
best objects (noise added and taken away again, `edit`, at several strengths) and free samples, so that every proposal
is what the model holds for possible. Of those never asked before, the batch is chosen by Thompson sampling (Kandasamy
et al. 2018, arXiv:1705.09236): for each place in it one function is drawn from the posterior, and its best proposal is
taken. That balances what looks good against what is unknown, and draws of a batch differ by themselves.

    found = explore.optimise(model, lambda molecules: scores, start=smiles, rounds=10, batch=20)
    found.best(5)
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch

from sciLDM.errors import ConfigError, DataError
from sciLDM.evaluate.gaussian_process import GaussianProcess
from sciLDM.explore.activations import activations
from sciLDM.explore.editing import edit
from sciLDM.explore.native import encode
from sciLDM.explore.probe import scaled
from sciLDM.model import LatentDiffusion

__all__ = ["Optimisation", "Oracle", "optimise"]

Oracle = Callable[[Sequence[Any]], Sequence[float]]
"""Values of objects, the higher the better; NaN where there is none."""

_STRENGTHS = (0.35, 0.5, 0.65)
_FEWEST = 8


@final
@dataclass
class Optimisation:
    """What was asked, in order, and what the oracle said.

    Attributes:
        objects: Native objects, each different.
        values: Of the oracle.
        rounds: Round of each; the start is round 0.
    """

    objects: list[Any] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)

    def best(self, count: int) -> list[tuple[Any, float]]:
        """The best objects with their values, best first."""
        order = np.argsort(-np.nan_to_num(np.asarray(self.values), nan=-np.inf), kind="stable")
        return [(self.objects[k], self.values[k]) for k in order[:count]]

    def ask(self, oracle: Oracle, objects: Sequence[Any], number: int) -> None:
        """Ask for some objects, and remember."""
        values = [float(v) for v in oracle(objects)]
        if len(values) != len(objects):
            raise DataError(f"oracle: expected a value for each of {len(objects)} objects, got {len(values)}")
        self.objects += list(objects)
        self.values += values
        self.rounds += [number] * len(objects)


def optimise(
    model: LatentDiffusion,
    oracle: Oracle,
    *,
    start: Sequence[Any] | None = None,
    rounds: int = 10,
    batch: int = 20,
    parents: int = 10,
    proposals: int = 200,
    free: float = 0.2,
    key: Callable[[Any], Hashable] = str,
    listed: Callable[[Any], Sequence[Any]] | None = None,
    steps: int | None = None,
    seed: int = 0,
) -> Optimisation:
    """Maximise an oracle.

    Args:
        model: A trained model.
        oracle: Asked with `batch` objects a round.
        start: Objects to ask for first; `batch` samples of the model when None.
        rounds: After the start.
        batch: Objects of a round.
        parents: Best objects whose variants are proposed.
        proposals: Candidates of a round, before repeats are left out; these cost sampling, no calls of the oracle.
        free: Share of them that are free samples.
        key: Tells whether two objects are the same.
        listed: Objects in what the model returns; a table's first column (molecules: SMILES) when None.
        steps: Denoiser calls for each proposal; the model's own when None.
        seed: Of everything.

    Raises:
        ConfigError: Settings out of range.
        DataError: An oracle that answers with another number of values.
    """
    if min(rounds, batch, parents, proposals) < 1 or not 0 <= free <= 1:
        raise ConfigError(
            "optimise: expected rounds, batch, parents and proposals from 1 and free in [0, 1], got "
            f"{rounds}, {batch}, {parents}, {proposals} and {free}"
        )
    read = listed or _first_column
    sampler = model.experiment.sampler if steps is None else model.experiment.sampler.with_steps(steps)
    done = Optimisation()
    if start is None:
        start = read(model.sample(batch, sampler=sampler, seed=seed))
    done.ask(oracle, _new(start, set(), key), 0)
    for number in range(1, rounds + 1):
        fresh = _propose(model, done, parents, proposals, free, sampler, seed * 100_003 + number, read)
        fresh = _new(fresh, {key(o) for o in done.objects}, key)
        if not fresh:
            break
        done.ask(oracle, _choose(model, done, fresh, batch, seed * 100_003 + number), number)
    return done


def _propose(
    model: LatentDiffusion,
    done: Optimisation,
    parents: int,
    proposals: int,
    free: float,
    sampler: Any,
    seed: int,
    read: Callable[[Any], Sequence[Any]],
) -> list[Any]:
    """Variants of the best, the same number at each strength, and free samples."""
    best = [o for o, value in done.best(parents) if np.isfinite(value)]
    loose = round(free * proposals) if best else proposals
    found = list(read(model.sample(loose, sampler=sampler, seed=seed))) if loose else []
    each = -(-(proposals - loose) // (len(_STRENGTHS) * len(best))) if best else 0
    for k, strength in enumerate(_STRENGTHS if each else ()):
        made = edit(model, best, strength, samples=each, sampler=sampler, seed=3 * seed + k)
        found += list(read(made))
    return found


def _choose(model: LatentDiffusion, done: Optimisation, fresh: list[Any], batch: int, seed: int) -> list[Any]:
    """A batch by Thompson sampling; at random while there is too little to learn from."""
    values = np.asarray(done.values)
    known = np.flatnonzero(np.isfinite(values))
    generator = torch.Generator().manual_seed(seed)
    if len(known) < _FEWEST or np.ptp(values[known]) == 0:
        return [fresh[k] for k in torch.randperm(len(fresh), generator=generator)[:batch].tolist()]
    objects = [done.objects[k] for k in known] + fresh
    x = scaled(activations(model, encode(model, objects)))
    y = torch.from_numpy(values[known])
    process = GaussianProcess.fit(x[: len(known)], y)
    draws = process.draw(x[len(known) :], min(batch, len(fresh)), generator)
    taken: list[int] = []
    for draw in draws:
        draw = draw.clone()
        draw[taken] = -torch.inf
        taken.append(int(draw.argmax()))
    return [fresh[k] for k in taken]


def _new(objects: Sequence[Any], known: set[Hashable], key: Callable[[Any], Hashable]) -> list[Any]:
    """Those that are not known, each once, in their order."""
    found, seen = [], set(known)
    for one in objects:
        if key(one) not in seen:
            seen.add(key(one))
            found.append(one)
    return found


def _first_column(samples: Any) -> list[Any]:
    table = getattr(samples, "table", None)
    if table is None:
        raise ConfigError(
            f"optimise: {type(samples).__name__} is no table of objects; say how to list them by listed=..."
        )
    column = table[table.columns[0]]
    return [value for value in column if isinstance(value, str) and value]
