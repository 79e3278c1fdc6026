"""Which samples a step sees: a function of the step alone, so resuming needs no other state than the step."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, final

import numpy as np

from sciLDM.errors import ConfigError

__all__ = ["BatchPlan", "PlannedBatch", "StepSampler"]


@final
@dataclass(frozen=True)
class BatchPlan:
    """An endless stream of samples, one permutation per epoch, cut into batches.

    Every epoch holds every sample once; a batch may reach over the end of an epoch, so none is ever left out.

    Args:
        seed: Seed of the permutations; that of epoch `e` depends on `(seed, e)` alone.
        count: Number of samples.
        batch_size: Samples a step; held to `count` when larger.
        order: Draws the order of an epoch, for data that are slow to read in any order; a plain permutation when None.

    Raises:
        ConfigError: No samples, or an empty batch.

    Example:
        >>> plan = BatchPlan(seed=0, count=10, batch_size=5)
        >>> sorted(int(i) for step in (0, 1) for i in plan.indices(step))
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    seed: int
    count: int
    batch_size: int
    order: Callable[[np.random.Generator], np.ndarray] | None = field(default=None, repr=False, compare=False)
    _permutations: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.count < 1 or self.batch_size < 1:
            raise ConfigError(
                f"a batch plan needs samples and a batch size, got count={self.count}, batch_size={self.batch_size}; "
                "is the training split empty?"
            )
        object.__setattr__(self, "batch_size", min(self.batch_size, self.count))

    def indices(self, step: int) -> np.ndarray:
        """Indices of the samples of batch `step` (from 0)."""
        position, stop = step * self.batch_size, (step + 1) * self.batch_size
        parts: list[np.ndarray] = []
        while position < stop:
            epoch, start = divmod(position, self.count)
            part = self._permutation(epoch)[start : start + stop - position]
            parts.append(part)
            position += len(part)
        return np.concatenate(parts)

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._permutations:
            for old in [e for e in self._permutations if abs(e - epoch) > 1]:
                del self._permutations[old]
            generator = np.random.Generator(
                np.random.Philox(np.random.SeedSequence([self.seed % 2**64, epoch]))
            )
            draw = self.order
            self._permutations[epoch] = generator.permutation(self.count) if draw is None else draw(generator)
        return self._permutations[epoch]


class PlannedBatch(NamedTuple):
    """What to load for a step: the step's number and the samples of this process."""

    step: int
    indices: np.ndarray


@final
class StepSampler:
    """Batches `start .. stop - 1` of a plan, for one of several processes.

    Process `rank` of `world` gets every `world`-th sample of each batch, so that all together see the batch that a
    single process would have seen.

    Raises:
        ConfigError: The batch cannot be shared out evenly.
    """

    def __init__(self, plan: BatchPlan, start: int, stop: int, *, rank: int = 0, world: int = 1) -> None:
        if plan.batch_size % world:
            raise ConfigError(
                f"batch_size={plan.batch_size} cannot be shared evenly by {world} devices; "
                f"use {max(1, plan.batch_size // world) * world}"
            )
        self.plan, self.start, self.stop, self.rank, self.world = plan, start, stop, rank, world

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __iter__(self) -> Iterator[PlannedBatch]:
        for step in range(self.start, self.stop):
            yield PlannedBatch(step, self.plan.indices(step)[self.rank :: self.world])
