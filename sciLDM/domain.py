r"""The seam between core and domain: three small roles that an adapter fills.

    Domain   what the user configures: where the data is, how the autoencoder looks
      |  prepare()
      v
    Corpus   the data, split and featurised; needed for training only
      |  state (plain JSON: vocabulary, statistics, units)
      v
    Codec    what travels with the weights: builds the autoencoder, says what may be asked for, and turns
             latents into native objects

Everything between `Autoencoder.encode` and `Autoencoder.decode` is the core's.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sciLDM.autoencoders import Autoencoder
from sciLDM.conditions import Condition
from sciLDM.errors import ConfigError
from sciLDM.operators import Observation, Operator
from sciLDM.posterior.result import Posterior
from sciLDM.rng import NoiseSource

__all__ = ["Codec", "Corpus", "Domain", "Evaluation", "FieldCodec", "Progress", "Request", "Task"]

Progress = Callable[[str, int, int], None]
"""`progress(what, done, total)`: called from long loops; draws a bar, or does nothing."""


class Corpus(ABC):
    """A prepared data set. Splits are `train`, `validation` and `test`.

    Attributes:
        sizes: Number of samples per split.
        fingerprint: Hash of the data as featurised; keys the latent cache.
        state: What the codec needs, as plain JSON.
        notes: Lines that the user must see: what was left out of the data, and why.
    """

    sizes: Mapping[str, int]
    fingerprint: str
    state: dict[str, Any]
    notes: Sequence[str] = ()

    @abstractmethod
    def fields(self, split: str, indices: np.ndarray) -> Any:
        """The autoencoder's input for these samples, collated."""

    @abstractmethod
    def labels(self, split: str) -> Mapping[str, np.ndarray]:
        """Condition labels of a whole split, in the user's units; NaN or -1 where missing."""

    @abstractmethod
    def write_reference(self, folder: Path) -> None:
        """Leave in a run folder what later evaluation needs: rejected rows, training items to compare with."""


@dataclass(frozen=True)
class Request:
    """What the core must sample.

    Attributes:
        shape: Grid of the latents, without batch and channels.
        cond: Labels for every sample, in the user's units.
        mask: Cells that exist.
        always: Conditions that guidance must not drop.
    """

    shape: tuple[int, ...]
    cond: Mapping[str, Tensor]
    mask: Bool[Tensor, "batch *shape"] | None = None
    always: frozenset[str] = frozenset()

    def repeated(self, times: int) -> "Request":
        """Each sample so many times, one after the other; what a domain adds to a request stays as it is."""
        cond = {name: label.repeat_interleave(times, dim=0) for name, label in self.cond.items()}
        mask = None if self.mask is None else self.mask.repeat_interleave(times, dim=0)
        return replace(self, cond=cond, mask=mask)


@dataclass(frozen=True)
class Evaluation:
    """Scores of a set of samples, and what is needed to read them.

    Attributes:
        rows: One per metric: `metric`, `value`, `floor` (the same score for real training data), `samples`, `note`.
        protocol: Name of the protocol, sample sizes, versions.
        failures: Lines that a strict reader must see (small samples, checks that did not run).
    """

    rows: Sequence[Mapping[str, Any]]
    protocol: Mapping[str, Any] = field(default_factory=dict)
    failures: Sequence[str] = ()


class Codec(ABC):
    """Travels with the weights: knows vocabulary, units and conditions, but holds no training data.

    Attributes:
        conditions: What may be asked for.
        shape: The largest latent grid.
        measurable: Conditions that can be measured on a sample, so that `choose` can tell how well they are met.
    """

    conditions: tuple[Condition, ...]
    shape: tuple[int, ...]
    measurable: frozenset[str] = frozenset()

    @abstractmethod
    def autoencoder(self) -> Autoencoder[Any, Any]:
        """A new, untrained autoencoder."""

    @abstractmethod
    def plan(self, count: int, wanted: Mapping[str, Any], noise: NoiseSource, ids: Sequence[int]) -> Request:
        """Fill in what the user left open (say, the number of atoms) for samples `ids`.

        Args:
            count: Number of samples.
            wanted: Condition values in the user's units: a number, or one per sample.
            noise: Source of the choices; sample `i` depends on `ids[i]` alone.
        """

    @abstractmethod
    def decode(
        self,
        autoencoder: Autoencoder[Any, Any],
        z: Float[Tensor, "batch channel *shape"],
        request: Request,
        *,
        reference: Path | None = None,
    ) -> Any:
        """Native objects (with everything a user wants to know about them) from latents.

        Args:
            reference: Folder written by `Corpus.write_reference`, or None.
        """

    def choose(self, samples: Any, candidates: int) -> Any:
        """Of each run of so many native samples, the one that meets its request best.

        Written by codecs with `measurable` conditions.
        """
        raise NotImplementedError(f"{type(self).__name__} has no measurable conditions")


@dataclass(frozen=True)
class Task:
    """A reconstruction as the core sees it: one row a case.

    Attributes:
        observation: Values and operator; the operator acts on `FieldCodec.grid` in the data's units.
        request: Grid, conditions and mask of the latents.
        context: What `to_units` and `from_units` need for each case (scales, seasons), `[case, ...]` by name.
        native: What `deliver` needs to return the user's kind of object; the core does not look at it.
    """

    observation: Observation
    request: Request
    context: Mapping[str, Tensor] = field(default_factory=dict)
    native: Any = None


class FieldCodec(Codec):
    """A codec whose decoder gives fields on a grid, so that observations of them can be inverted.

    `Autoencoder.decode` must return a tensor `[batch, channel, *grid]`. Both maps are differentiable and act row by
    row; `context` has one row for each row of the batch.
    """

    @abstractmethod
    def to_units(
        self, decoded: Float[Tensor, "batch channel *grid"], context: Mapping[str, Tensor]
    ) -> Float[Tensor, "batch channel *grid"]:
        """What the decoder says, in the data's units (K, HU, ...)."""

    @abstractmethod
    def from_units(self, x: Float[Tensor, "batch channel *grid"], context: Mapping[str, Tensor]) -> Any:
        """The autoencoder's input for fields in the data's units."""

    @abstractmethod
    def task(
        self,
        observed: Any,
        operator: Operator | None,
        *,
        noise_std: float | None = None,
        cond: Mapping[str, Any] | None = None,
    ) -> Task:
        """Read what the user observed.

        Args:
            observed: Native observations: tensors of the operator's shape, or what the domain documents.
            operator: None when the domain can tell from `observed` alone (gaps marked by NaN, say).
            noise_std: Standard deviation of the observation errors in the data's units; None to estimate it.
            cond: Conditions, in the user's units.
        """

    @abstractmethod
    def deliver(self, posterior: Posterior, task: Task) -> Any:
        """The posterior as native objects, with their coordinates and units."""


class Domain(ABC):
    """What the user configures. The constructor's arguments are the YAML's `domain.init_args`.

    Attributes:
        name: Short name, as in the entry point.
        gate: Smallest acceptable held-out score per metric of `Autoencoder.metrics` before stage 2 starts.
    """

    name: ClassVar[str]
    gate: Mapping[str, float]

    @abstractmethod
    def prepare(self, cache: Path, progress: Progress) -> Corpus:
        """Read, check, featurise and split the data. Slow parts are cached under `cache` and report progress."""

    @abstractmethod
    def codec(self, state: Mapping[str, Any]) -> Codec:
        """The codec for a prepared data set, or for a loaded artefact."""

    @abstractmethod
    def evaluate(self, samples: Any, codec: Codec, reference: Path | None, progress: Progress) -> Evaluation:
        """Score native samples beside the field's floor and baselines."""


def broadcast_labels(wanted: Mapping[str, Any], count: int, known: Sequence[str]) -> dict[str, Tensor]:
    """Turn `{"gap": 7.0}` or `{"gap": [..]}` into labels `[count]`; NaN leaves a sample's value open.

    Raises:
        ConfigError: An unknown name, something that is no number, an infinite one, or a list of the wrong length.
    """
    labels: dict[str, Tensor] = {}
    for name, value in wanted.items():
        if name not in known:
            import difflib

            folded = {entry.casefold(): entry for entry in known}
            near = difflib.get_close_matches(str(name).casefold(), folded, n=2, cutoff=0.5)
            hint = f"; did you mean {' or '.join(repr(folded[n]) for n in near)}?" if near else ""
            raise ConfigError(
                f"cannot condition on {name!r}; this model knows {', '.join(known) or 'no conditions'}{hint}"
            )
        try:
            value = value.detach().cpu() if isinstance(value, Tensor) else value
            label = torch.as_tensor(np.asarray(value, dtype=np.float64)).float()
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"condition {name!r}: expected a number or {count} of them, got {value!r}"
            ) from error
        if label.ndim == 0:
            label = label.expand(count)
        if label.shape != (count,):
            got = f"{len(label)} values" if label.ndim == 1 else f"an array of shape {tuple(label.shape)}"
            raise ConfigError(
                f"condition {name!r}: expected one number, or one for each of {count} samples, got {got}"
            )
        if bool(label.isinf().any()):
            raise ConfigError(
                f"condition {name!r}: expected finite numbers (NaN leaves one open), got {value!r}"
            )
        labels[name] = label.clone()
    return labels
