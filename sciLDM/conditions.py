r"""What a sample can be conditioned on: scalars, vectors, categories, fields and token sequences.

A condition is declared once, in the user's own units, with the statistics that make it a network input. Its labels
travel in a `Cond` mapping; a missing label (NaN, or -1 for a category) and a dropped label are the same thing: both
are read as the entry's learned null embedding. So labels may be missing in training, any subset may be asked for in
sampling, and classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598) needs no second mechanism.
"""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.types import Cond

__all__ = [
    "Category",
    "Condition",
    "FieldMap",
    "Scalar",
    "Tokens",
    "Vector",
    "check_conditions",
    "drop_conditions",
]


@dataclass(frozen=True)
class Condition(ABC):
    """One named entry of a `Cond`.

    Attributes:
        name: Key in the mapping.
        dropout: Share of training samples whose label is replaced by the null label; 0 means never dropped.
    """

    name: str
    dropout: float

    @property
    @abstractmethod
    def trailing(self) -> int:
        """How many axes a label has behind the batch axis; -1 when it follows the latent's shape."""

    def null(self, like: Tensor) -> Tensor:
        """Labels of the shape of `like`, all missing."""
        return torch.full_like(like, float("nan"))


@final
@dataclass(frozen=True)
class Scalar(Condition):
    """A number in the user's units; the network sees `(value - mean) / std`. Labels: `[batch]`.

    Attributes:
        counts: Above 0, it counts something: each of 0, 1, ..., `counts` has a learned vector, read linearly between,
            and what lies outside reads as the nearest.
    """

    dropout: float = 0.15
    mean: float = 0.0
    std: float = 1.0
    counts: int = 0

    @property
    def trailing(self) -> int:
        return 0


@final
@dataclass(frozen=True)
class Vector(Condition):
    """A fixed number of features, already of order one. Labels: `[batch, size]`.

    Attributes:
        spreads: Whether the variance of what is modelled follows it, as that of the weather follows the season; a dense
            `gaussian_start` then lets its own variances do so.
    """

    dropout: float = 0.15
    size: int = 1
    spreads: bool = False

    @property
    def trailing(self) -> int:
        return 1


@final
@dataclass(frozen=True)
class Category(Condition):
    """One of `classes` classes, numbered from 0. Labels: integer `[batch]`, -1 when missing."""

    dropout: float = 0.15
    classes: int = 2

    @property
    def trailing(self) -> int:
        return 0

    def null(self, like: Tensor) -> Tensor:
        return torch.full_like(like, -1)


@final
@dataclass(frozen=True)
class FieldMap(Condition):
    """A field on the latent's own grid. Labels: `[batch, channels, *shape]`, NaN where missing."""

    dropout: float = 0.15
    channels: int = 1

    @property
    def trailing(self) -> int:
        return -1


@final
@dataclass(frozen=True)
class Tokens(Condition):
    """A sequence of feature vectors (text, stations). Labels: `[batch, length, size]`, NaN rows are padding."""

    dropout: float = 0.15
    size: int = 1

    @property
    def trailing(self) -> int:
        return 2


def check_conditions(cond: Cond, conditions: Sequence[Condition], batch: int) -> None:
    """Refuse unknown names and wrong shapes before any compute.

    Raises:
        ConfigError: A name that no declared condition has.
        ShapeMismatch: A label tensor whose batch or rank is wrong.
    """
    known = {c.name: c for c in conditions}
    for name, label in cond.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"unknown condition {name!r}; this model knows {sorted(known) or 'none'}{hint}")
        want = known[name].trailing
        if label.shape[0] != batch or (want >= 0 and label.ndim != want + 1):
            raise ShapeMismatch(
                f"condition {name!r}: expected {batch} labels with {want} trailing axes, got shape {tuple(label.shape)}"
            )


def drop_conditions(
    cond: Cond, conditions: Iterable[Condition], u: Tensor, *, all_together: float = 0.0
) -> Mapping[str, Tensor]:
    """Replace labels by their null, each entry on its own and, with probability `all_together`, all at once.

    Args:
        u: Uniform numbers in (0, 1), `[batch, 1 + number of conditions]`; the first column decides "all at once".
        all_together: Probability of dropping every entry that may be dropped.
    """
    dropped = dict(cond)
    everything = u[:, 0] < all_together
    for k, condition in enumerate(conditions):
        label = dropped.get(condition.name)
        if label is None or condition.dropout == 0.0:
            continue
        drop = everything | (u[:, 1 + k] < condition.dropout)
        drop = drop.reshape(-1, *[1] * (label.ndim - 1))
        dropped[condition.name] = torch.where(drop, condition.null(label), label)
    return dropped
