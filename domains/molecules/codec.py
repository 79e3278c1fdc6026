"""What travels with molecular weights: vocabulary, properties with their units, size prior, decoding."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.autoencoders import Autoencoder, NoiseBottleneck
from sciLDM.conditions import Category, Condition, Scalar
from sciLDM.domain import Codec, Request, broadcast_labels
from sciLDM.domains.molecules.autoencoder import GraphLogits, MolecularGraphAE
from sciLDM.domains.molecules.completion import LabelTable, MoleculeRequest, asked_for
from sciLDM.domains.molecules.decode import decode_molecules
from sciLDM.domains.molecules.native import read_molecules, write_items
from sciLDM.domains.molecules.ranges import draw_targets, outside, read_ranges
from sciLDM.domains.molecules.samples import MoleculeSamples
from sciLDM.domains.molecules.settle import settle, settled_loss
from sciLDM.domains.molecules.sizes import SizePrior
from sciLDM.domains.molecules.vocabulary import Vocabulary
from sciLDM.errors import ConfigError
from sciLDM.rng import NoiseSource

__all__ = ["AutoencoderSettings", "MoleculeCodec", "Property"]

ATOMS = "atoms"
"""The condition that carries the number of heavy atoms; always given."""


@dataclass(frozen=True)
class AutoencoderSettings:
    """Size of the graph autoencoder."""

    channels: int = 8
    """Latent channels per atom: 8 for QM9-size molecules, 12 to 16 for drug-like ones."""
    width: int = 96
    """Model width."""
    depth: int = 3
    """Transformer layers in the encoder, and as many in the decoder."""
    heads: int = 4
    """Attention heads."""
    noise: float = 0.6
    """Largest noise the decoder is trained on; the code is bounded by 1."""
    valence_weight: float = 0.1
    """Weight of the penalty on expected valences above their cap."""

    def __post_init__(self) -> None:
        for name in ("channels", "width", "depth", "heads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"autoencoder.{name} must be at least 1, got {getattr(self, name)}")
        if self.width % self.heads:
            raise ConfigError(
                f"autoencoder.width must be a multiple of heads, got {self.width} and {self.heads}"
            )
        if self.noise < 0 or self.valence_weight < 0:
            raise ConfigError("autoencoder.noise and autoencoder.valence_weight must be 0 or more")


@dataclass(frozen=True)
class Property:
    """A number that molecules can be asked for.

    Attributes:
        name: Column or descriptor name.
        descriptor: Whether RDKit can recompute it for a new molecule.
        mean: Mean over the training split, in the property's own units.
        std: Standard deviation likewise.
        quantiles: 0, 5, 25, 50, 75, 95 and 100 % of the training split.
        counts: The largest value of a property that counts something; 0 for other properties.
    """

    name: str
    descriptor: bool
    mean: float
    std: float
    quantiles: Sequence[float]
    counts: int = 0


@final
class MoleculeCodec(Codec):
    """Codec of a molecular model; built from plain JSON.

    Args:
        state: As `MoleculeCorpus.state`: vocabulary, properties, sizes, autoencoder settings, source.

    Attributes:
        takes_ranges: Properties may be asked for as `(low, high)`; see `ranges`.
    """

    takes_ranges = True

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.state = dict(state)
        self.vocabulary = Vocabulary.from_dict(state["vocabulary"])
        self.properties = tuple(Property(**p) for p in state["properties"])
        self.sizes = SizePrior.from_dict(state["sizes"])
        joint = state.get("completion")
        self.completion = None if joint is None else LabelTable(**joint)
        self.settings = AutoencoderSettings(**state["autoencoder"])
        self.shape = (self.vocabulary.max_atoms,)
        scalars: list[Condition] = [
            Scalar(p.name, dropout=state["dropout"], mean=p.mean, std=p.std, counts=p.counts)
            for p in self.properties
        ]
        self.conditions = (Category(ATOMS, dropout=0.0, classes=self.vocabulary.max_atoms + 1), *scalars)
        self.measurable = frozenset(p.name for p in self.properties if p.descriptor)

    def autoencoder(self) -> Autoencoder[Any, Any]:
        options = asdict(self.settings)
        noise = options.pop("noise")
        return MolecularGraphAE(self.vocabulary, bottleneck=NoiseBottleneck(noise), **options)

    def plan(self, count: int, wanted: Mapping[str, Any], noise: NoiseSource, ids: Sequence[int]) -> Request:
        values, ranges = read_ranges({name: value for name, value in wanted.items() if name != ATOMS})
        atoms = wanted.get(ATOMS)
        known = [ATOMS, *(p.name for p in self.properties)]
        together = None
        if self.completion is not None and len(ranges) > 1 and set(ranges) <= set(self.completion.names):
            u = noise.uniform(ids, (1,), stream="ranges").squeeze(1).numpy().astype(float)
            together = self.completion.within(ranges, u)
        values |= draw_targets(ranges, self.properties, noise, ids) if together is None else together
        labels = broadcast_labels(
            {name: values.get(name, np.nan) for name in (*values, *ranges)}, count, known
        )
        if atoms is None:
            u = noise.uniform(ids, (1,), stream=ATOMS).squeeze(1).numpy()
            sizes = self.sizes.draw({k: v.numpy() for k, v in labels.items()}, u)
        else:
            sizes = broadcast_labels({ATOMS: atoms}, count, [ATOMS])[ATOMS].numpy()
            if (sizes != sizes.round()).any() or sizes.min() < 1 or sizes.max() > self.vocabulary.max_atoms:
                raise ConfigError(
                    f"atoms: expected whole numbers of heavy atoms from 1 to {self.vocabulary.max_atoms}, "
                    f"got {sizes.min():g} to {sizes.max():g}"
                )
        sizes, cond = self._completed(sizes, labels, atoms is not None, noise, ids)
        counts = torch.as_tensor(sizes.astype(np.int64))
        mask = torch.arange(self.shape[0])[None] < counts[:, None]
        return MoleculeRequest(self.shape, {ATOMS: counts, **cond}, mask, frozenset({ATOMS}), labels, ranges)

    def _completed(
        self,
        sizes: np.ndarray,
        labels: Mapping[str, Tensor],
        fixed: bool,
        noise: NoiseSource,
        ids: Sequence[int],
    ) -> tuple[np.ndarray, dict[str, Tensor]]:
        """Sizes (unless fixed) and properties of the samples that ask for one; the others stay as they are."""
        asking = np.zeros(len(sizes), dtype=bool)
        for label in labels.values():
            asking |= label.isfinite().numpy()
        if self.completion is None or not asking.any():
            return sizes, dict(labels)
        u = noise.uniform(ids, (1,), stream="completion").squeeze(1).numpy().astype(float)
        drawn, values = self.completion.complete(
            {name: label.numpy()[asking] for name, label in labels.items()},
            sizes[asking] if fixed else np.full(asking.sum(), np.nan),
            u[asking],
        )
        sizes, whole = sizes.copy(), {}
        sizes[asking] = drawn
        for name, found in values.items():
            label = labels.get(name, torch.full((len(sizes),), torch.nan)).clone()
            label[torch.as_tensor(asking)] = torch.as_tensor(found).to(label)
            whole[name] = label
        return sizes, whole

    def from_native(self, objects: Any, cond: Mapping[str, Any] | None = None) -> tuple[Any, Request]:
        """Graphs and labels of the user's own molecules; see `native.read_molecules`."""
        return read_molecules(self, objects, cond, atoms=ATOMS)

    def adapted(self, request: Request) -> dict[str, Any]:
        """The state of a model fine-tuned on these molecules: samples should have their sizes."""
        labels = {p.name: request.cond[p.name].cpu().numpy() for p in self.properties}
        atoms = request.cond[ATOMS].cpu().numpy()
        joint = None if self.completion is None else LabelTable.of(atoms, labels)
        return {
            **self.state,
            "sizes": self.sizes.refitted(atoms, labels).to_dict(),
            "completion": None if joint is None else joint.to_dict(),
        }

    def write_items(self, folder: Path, objects: Any, reference: Path | None) -> None:
        """Training molecules of such a model: what it was fine-tuned on, and those known before."""
        write_items(folder, objects, reference, self.state["source"])

    @torch.no_grad()
    def decode(
        self,
        autoencoder: Autoencoder[Any, Any],
        z: Float[Tensor, "batch channel *shape"],
        request: Request,
        *,
        reference: Path | None = None,
    ) -> MoleculeSamples:
        assert request.mask is not None, "a molecular request always has a mask"
        decoded = []
        for start in range(0, len(z), 1024):
            part = slice(start, start + 1024)
            decoded += decode_molecules(autoencoder.decode(z[part], request.mask[part]), self.vocabulary)
        requested, ranges = asked_for(request)
        return MoleculeSamples.build(
            decoded,
            requested,
            descriptors=[p.name for p in self.properties if p.descriptor],
            reference=reference,
            source=self.state["source"],
            ranges=ranges,
        )

    def choose(self, samples: Any, candidates: int) -> MoleculeSamples:
        """Nearest to what was asked, in standard deviations of the training set summed over the properties.

        All values inside a range that was asked for are equally near.
        """
        assert isinstance(samples, MoleculeSamples)
        distance = np.zeros(len(samples))
        for p in self.properties:
            if p.descriptor and f"requested_{p.name}" in samples.table:
                requested, realised = (
                    samples.table[f"{kind}_{p.name}"] for kind in ("requested", "realised")
                )
                ends = samples.ranges.get(p.name)
                if ends is None:
                    off = (realised - requested).abs().to_numpy(dtype=float) / (p.std or 1.0)
                else:
                    off = outside(realised.to_numpy(dtype=float), ends) / (p.std or 1.0)
                distance += np.where(requested.isna(), 0.0, np.nan_to_num(off, nan=np.inf))
        best = distance.reshape(-1, candidates).argmin(axis=1)
        return samples.take(np.arange(len(best)) * candidates + best)

    def settle(self, decoded: GraphLogits) -> dict[str, Tensor]:
        """Graphs under the valence constraint; see `settle.settle`."""
        return settle(decoded, self.vocabulary)

    def settled_loss(
        self, settled: Mapping[str, Tensor], decoded: GraphLogits
    ) -> dict[str, Float[Tensor, "batch"]]:
        """Negative log-likelihood of such graphs; see `settle.settled_loss`."""
        return settled_loss(settled, decoded)
