"""What training reads from: anything with a length and `fields(indices)`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, final, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sciLDM.domain import Corpus
from sciLDM.errors import ShapeMismatch
from sciLDM.training.plan import PlannedBatch, StepSampler

__all__ = ["Batch", "LatentData", "OrdersEpochs", "SplitData", "TrainingData", "make_loader", "to_device"]


@runtime_checkable
class TrainingData(Protocol):
    """A data set of known length that can collate any of its samples. It must not depend on global random state."""

    def __len__(self) -> int: ...

    def fields(self, indices: np.ndarray) -> Any:
        """Samples `indices`, collated: tensors, nested containers of tensors, or objects with `.to(device)`."""
        ...


@runtime_checkable
class OrdersEpochs(Protocol):
    """A data set that is cheaper to read in some orders than in others: larger than memory, in chunks."""

    def epoch(self, rng: np.random.Generator) -> np.ndarray:
        """A random order of all samples, a function of the generator alone."""
        ...


@runtime_checkable
class _OrdersSplits(Protocol):
    """A corpus of that kind."""

    def epoch(self, split: str, rng: np.random.Generator) -> np.ndarray: ...


@final
class SplitData:
    """One split of a `Corpus`, as `TrainingData` for the autoencoder."""

    def __init__(self, corpus: Corpus, split: str) -> None:
        self.corpus, self.split = corpus, split

    def __len__(self) -> int:
        return int(self.corpus.sizes[self.split])

    def fields(self, indices: np.ndarray) -> Any:
        return self.corpus.fields(self.split, indices)

    def epoch(self, rng: np.random.Generator) -> np.ndarray:
        """A random order of all samples: the corpus's own, or any."""
        if isinstance(self.corpus, _OrdersSplits):
            return self.corpus.epoch(self.split, rng)
        return rng.permutation(len(self))


@final
class LatentData:
    """Normalised latents in memory, with masks and labels, as `TrainingData` for the denoiser.

    Raises:
        ShapeMismatch: Latents, masks and labels of different lengths.
    """

    def __init__(
        self,
        z: Float[Tensor, "samples channel *shape"],
        mask: Bool[Tensor, "samples *shape"] | None = None,
        cond: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.z, self.mask, self.cond = z, mask, dict(cond or {})
        parts = {**self.cond} if mask is None else {**self.cond, "mask": mask}
        for name, part in parts.items():
            if len(part) != len(z):
                raise ShapeMismatch(
                    f"{len(z)} latents, but {len(part)} of {name!r}; are they of the same split?"
                )

    def __len__(self) -> int:
        return len(self.z)

    def fields(self, indices: np.ndarray) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        index = torch.from_numpy(np.asarray(indices, dtype=np.int64))
        mask = None if self.mask is None else self.mask[index]
        return self.z[index], mask, {name: label[index] for name, label in self.cond.items()}


class Batch(NamedTuple):
    """A loaded step: its number, which samples it holds (for error messages and keyed noise), and their fields."""

    step: int
    indices: np.ndarray
    fields: Any


class _Planned(Dataset):
    def __init__(self, data: TrainingData) -> None:
        self.data = data

    def __getitem__(self, planned: PlannedBatch) -> Batch:
        return Batch(planned.step, planned.indices, self.data.fields(planned.indices))


def make_loader(
    data: TrainingData, sampler: StepSampler, *, workers: int = 0, pin: bool = False
) -> DataLoader:
    """A loader whose items are the sampler's batches, in order."""
    return DataLoader(
        _Planned(data),
        sampler=sampler,
        batch_size=None,
        collate_fn=_as_is,  # pyright: ignore[reportArgumentType]  # one batch, not a list of samples
        num_workers=workers,
        pin_memory=pin,
        # Without a generator of its own a loader draws worker seeds from torch's global one.
        generator=torch.Generator().manual_seed(0),
    )


def _as_is(batch: Batch) -> Batch:
    return batch


def to_device(fields: Any, device: torch.device) -> Any:
    """Move tensors in nested containers, dataclasses (frozen ones too) and objects with `.to` to a device."""
    if hasattr(fields, "to"):
        return fields.to(device)
    if isinstance(fields, Mapping):
        return {name: to_device(value, device) for name, value in fields.items()}
    if isinstance(fields, tuple) and hasattr(fields, "_fields"):
        return type(fields)(*(to_device(value, device) for value in fields))
    if isinstance(fields, (list, tuple)):
        return type(fields)(to_device(value, device) for value in fields)
    if dataclasses.is_dataclass(fields) and not isinstance(fields, type):
        parts = {
            f.name: to_device(getattr(fields, f.name), device) for f in dataclasses.fields(fields) if f.init
        }
        return dataclasses.replace(fields, **parts)
    return fields
