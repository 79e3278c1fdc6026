"""A domain of procedural phantoms: the smallest adapter that trains on fields and reconstructs them.

The truth of a phantom is the mean over each voxel of a drawing `DETAIL` times finer. Splits have seeds of their own,
and so have the volumes that a benchmark calibrates and tests on: any seed from 10 on.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from phantoms import draw, phantoms
from torch import Tensor

from sciLDM.autoencoders import Autoencoder
from sciLDM.autoencoders.grid import GridAutoencoder, GridFields, GridSettings
from sciLDM.domain import Corpus, Domain, Evaluation, FieldCodec, Progress, Request, Task
from sciLDM.errors import ConfigError
from sciLDM.operators import GaussianNoise, Observation, Operator
from sciLDM.posterior.result import Posterior
from sciLDM.rng import NoiseSource

__all__ = ["DETAIL", "PhantomCodec", "PhantomCorpus", "PhantomDomain", "fine_volumes", "volumes"]

DETAIL = 2
SEEDS = {"train": 0, "validation": 1, "test": 2}
_CHUNK = 128


def fine_volumes(ids: Sequence[int], side: int, *, seed: int) -> Float[Tensor, "case 1 side side side"]:
    """Phantoms on the grid that data are simulated on, `DETAIL * side` voxels an axis."""
    return draw(phantoms(ids, seed=seed), (DETAIL * side,) * 3)


def volumes(fine: Float[Tensor, "case 1 side side side"]) -> Float[Tensor, "case 1 half half half"]:
    """The truth on the grid that is reconstructed."""
    return torch.nn.functional.avg_pool3d(fine, DETAIL)


@final
class PhantomCorpus(Corpus):
    """Training, validation and test volumes in memory, drawn once and kept in `cache`.

    Args:
        side: Voxels an axis.
        sizes: Volumes of each split.
        state: Of the codec.
        cache: Folder for the drawn volumes.
        progress: Told how far the drawing has come.
    """

    def __init__(
        self, side: int, sizes: Mapping[str, int], state: dict[str, Any], cache: Path, progress: Progress
    ) -> None:
        self.sizes, self.state = dict(sizes), state
        source = (Path(__file__).parent / "phantoms.py").read_bytes()
        described = json.dumps([side, DETAIL, SEEDS]).encode()
        self.fingerprint = hashlib.sha256(source + described + json.dumps(self.sizes).encode()).hexdigest()[
            :16
        ]
        key = hashlib.sha256(source + described).hexdigest()[:16]
        self._values = {
            split: _drawn(side, count, SEEDS[split], cache / f"phantoms-{key}-{split}-{count}.npy", progress)
            for split, count in self.sizes.items()
        }

    def fields(self, split: str, indices: np.ndarray) -> GridFields:
        return GridFields(torch.from_numpy(self._values[split][indices].astype(np.float32)))

    def labels(self, split: str) -> Mapping[str, np.ndarray]:
        return {}

    def write_reference(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)


def _drawn(side: int, count: int, seed: int, path: Path, progress: Progress) -> np.ndarray:
    if path.exists():
        return np.load(path)
    made = np.empty((count, 1, side, side, side), dtype=np.float16)
    for start in range(0, count, _CHUNK):
        ids = range(start, min(start + _CHUNK, count))
        made[ids.start : ids.stop] = volumes(fine_volumes(ids, side, seed=seed)).numpy()
        progress(f"drawing phantoms of seed {seed}", ids.stop, count)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.npy")
    np.save(partial, made)
    partial.replace(path)
    return made


@final
class PhantomCodec(FieldCodec):
    """Fields `[batch, 1, side, side, side]` in [-1, 1], which is the network's range too.

    Args:
        state: `side` and the autoencoder's settings.
    """

    conditions = ()

    def __init__(self, state: Mapping[str, Any]) -> None:
        self.state = dict(state)
        self.grid = (int(state["side"]),) * 3
        settings = {k: _tuples(v) for k, v in state["autoencoder"].items()}
        self.settings = GridSettings(**{**settings, "data_range": 2.0})
        self.shape = self.settings.layout(self.grid, "replicate").coarse(self.grid)

    def autoencoder(self) -> Autoencoder[Any, Any]:
        return GridAutoencoder(1, self.grid, self.settings, edges="replicate")

    def plan(self, count: int, wanted: Mapping[str, Any], noise: NoiseSource, ids: Sequence[int]) -> Request:
        if wanted:
            raise ConfigError(f"phantoms have no conditions, got {sorted(wanted)}")
        return Request(self.shape, {})

    @torch.no_grad()
    def decode(
        self,
        autoencoder: Autoencoder[Any, Any],
        z: Float[Tensor, "batch channel *shape"],
        request: Request,
        *,
        reference: Path | None = None,
    ) -> Tensor:
        return autoencoder.decode(z, None).cpu()

    def to_units(
        self, decoded: Float[Tensor, "batch channel *grid"], context: Mapping[str, Tensor]
    ) -> Float[Tensor, "batch channel *grid"]:
        return decoded

    def from_units(
        self, x: Float[Tensor, "batch channel *grid"], context: Mapping[str, Tensor]
    ) -> GridFields:
        return GridFields(x)

    def task(
        self,
        observed: Any,
        operator: Operator | None,
        *,
        noise_std: float | None = None,
        cond: Mapping[str, Any] | None = None,
    ) -> Task:
        """`observed`: values `[case, *observation]` of `operator`."""
        if operator is None:
            raise ConfigError("phantoms: say by which operator they were observed")
        noise = None if noise_std is None else GaussianNoise(noise_std)
        return Task(
            Observation(observed, operator, noise), self.plan(len(observed), cond or {}, _NO_NOISE, ())
        )

    def deliver(self, posterior: Posterior, task: Task) -> Posterior:
        return posterior


_NO_NOISE = NoiseSource(0)


@final
class PhantomDomain(Domain):
    """Phantoms of a cube.

    Args:
        side: Voxels an axis.
        train: Training volumes.
        held_out: Volumes of validation and of test, each.
        autoencoder: Its settings.
        psnr: The least that the autoencoder must reach, range 2.
    """

    name = "phantoms"

    def __init__(
        self,
        *,
        side: int = 24,
        train: int = 4096,
        held_out: int = 128,
        autoencoder: GridSettings = GridSettings(),  # noqa: B008 - frozen
        psnr: float = 20.0,
    ) -> None:
        self.side, self.train, self.held_out, self.settings = side, train, held_out, autoencoder
        self.gate = {"psnr": psnr}

    def prepare(self, cache: Path, progress: Progress) -> PhantomCorpus:
        sizes = {"train": self.train, "validation": self.held_out, "test": self.held_out}
        state = {"side": self.side, "autoencoder": vars(self.settings)}
        return PhantomCorpus(self.side, sizes, json.loads(json.dumps(state)), cache, progress)

    def codec(self, state: Mapping[str, Any]) -> PhantomCodec:
        return PhantomCodec(state)

    def evaluate(self, samples: Any, codec: Any, reference: Path | None, progress: Progress) -> Evaluation:
        """Nothing: `posterior.py` scores reconstructions."""
        return Evaluation([])


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value
