"""Large ensembles: sampled and written block by block, so that memory is that of one block whatever their size.

Sample `i` depends on `(seed, i)` alone. Its last bits also depend on how many samples a processor multiplies at once,
so the blocks are part of the request: what was killed and resumed, or one member made again (`members_again`), then
equals the whole run bit by bit (same machine, same number of threads).
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from sciLDM.data.draft import Draft, plain
from sciLDM.data.latent_cache import module_hash
from sciLDM.domain import Request
from sciLDM.errors import ConfigError
from sciLDM.rng import NoiseSource

__all__ = ["EnsembleModel", "WritesBlocks", "block_size", "members_again", "write_ensemble"]

BLOCK_BYTES = 2**28
"""Most bytes of the samples of one block."""

_BATCH = 64

_Guidance = float | Mapping[str, float] | None


@runtime_checkable
class WritesBlocks(Protocol):
    """A codec whose samples can be written in blocks. It offers this by having the members.

    Attributes:
        block_formats: Endings of what it writes so.
        sample_bytes: Size of one sample in memory.
    """

    block_formats: tuple[str, ...]

    @property
    def sample_bytes(self) -> int: ...

    def create_samples(self, path: Path, request: Request, *, block: int, details: Mapping[str, Any]) -> None:
        """Lay out a store for all samples of a request.

        Args:
            path: The store.
            request: Of all samples.
            block: Samples that are written at once.
            details: What the store should say of its making.
        """
        ...

    def write_block(self, path: Path, first: int, samples: Any) -> None:
        """Write native samples `first`, `first + 1`, ... into the store."""
        ...


@runtime_checkable
class EnsembleModel(Protocol):
    """What is needed of `sciLDM.LatentDiffusion`."""

    codec: Any
    parts: Any
    sample: Any


def write_ensemble(
    model: EnsembleModel,
    path: str | Path,
    count: int,
    *,
    cond: Mapping[str, Any] | None = None,
    guidance: _Guidance = None,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int = _BATCH,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Sample and write, block by block; an interrupted call with the same arguments goes on where it stopped.

    Args:
        model: A loaded model whose codec writes blocks.
        path: Where to; one that is there is replaced when the new one is complete.
        count: Samples.
        cond: As in `LatentDiffusion.sample`: a value for all, or one per sample.
        guidance: As there.
        steps: As there.
        seed: As there.
        batch_size: Samples of a block; fewer where they take more than 256 MiB.
        progress: `progress(done, count)` after each block.

    Raises:
        ConfigError: A domain that cannot write blocks, settings out of range, or an unfinished output of another
            request.
    """
    codec, path = model.codec, Path(path)
    _check(codec, path, count, batch_size)
    block = block_size(codec.sample_bytes, batch_size, count)
    request = _asked(model, count, block, cond, guidance, steps, seed)
    draft = Draft.open(path, request)
    if draft.finished:
        return draft.finish()
    if not draft.created:
        draft.clear()
        whole = codec.plan(count, cond or {}, NoiseSource(seed), range(count))
        told = {"model": request["model"][:12], "seed": seed, "steps": steps, "block": block}
        codec.create_samples(draft.content, whole, block=block, details=told)
        draft.created_now()
    starts = range(0, count, block)
    for k in draft.pending(len(starts)):
        samples = _block(model, request, starts[k], cond=cond, guidance=guidance)
        codec.write_block(draft.content, starts[k], samples)
        draft.mark(k)
        if progress is not None:
            progress(min(starts[k] + block, count), count)
    return draft.finish()


def members_again(
    model: EnsembleModel,
    members: Sequence[int],
    *,
    count: int,
    cond: Mapping[str, Any] | None = None,
    guidance: _Guidance = None,
    steps: int | None = None,
    seed: int = 0,
    batch_size: int = _BATCH,
) -> dict[int, Any]:
    """Native samples of the blocks that hold these members, by the number of the block's first member.

    Arguments are those of `write_ensemble`; every value equals the one that was written there, bit by bit.

    Raises:
        ConfigError: Members that are not in the ensemble.
    """
    wrong = [m for m in members if not 0 <= m < count]
    if wrong:
        raise ConfigError(f"members: expected numbers from 0 to {count - 1}, got {wrong[0]}")
    block = block_size(model.codec.sample_bytes, batch_size, count)
    request = _asked(model, count, block, cond, guidance, steps, seed)
    starts = sorted({m // block * block for m in members})
    return {start: _block(model, request, start, cond=cond, guidance=guidance) for start in starts}


def block_size(sample_bytes: int, wanted: int, count: int) -> int:
    """Samples of a block."""
    return max(1, min(wanted, count, BLOCK_BYTES // max(sample_bytes, 1)))


def model_hash(model: EnsembleModel) -> str:
    """sha256 of all weights."""
    parts = sorted(model.parts.items())
    return hashlib.sha256(repr([(name, module_hash(part)) for name, part in parts]).encode()).hexdigest()


def _block(
    model: EnsembleModel,
    request: Mapping[str, Any],
    start: int,
    *,
    cond: Mapping[str, Any] | None,
    guidance: _Guidance,
) -> Any:
    count, block = request["count"], request["block"]
    stop = min(start + block, count)
    own = {name: _part(value, slice(start, stop), count) for name, value in (cond or {}).items()}
    return model.sample(
        stop - start,
        cond=own,
        guidance=guidance,
        steps=request["steps"],
        seed=request["seed"],
        first=start,
        batch_size=stop - start,
    )


def _asked(
    model: EnsembleModel,
    count: int,
    block: int,
    cond: Mapping[str, Any] | None,
    guidance: _Guidance,
    steps: int | None,
    seed: int,
) -> dict[str, Any]:
    return {
        "what": "samples", "model": model_hash(model), "count": count, "block": block, "seed": seed, "steps": steps,
        "cond": plain(cond or {}), "guidance": plain(guidance),
    }  # fmt: skip


def _part(value: Any, part: slice, count: int) -> Any:
    """The values of some samples, where there is one a sample."""
    if isinstance(value, str) or not (isinstance(value, Tensor) or np.ndim(value) > 0):
        return value
    if len(value) != count:
        raise ConfigError(f"cond: expected one value, or one for each of {count} samples, got {len(value)}")
    return value[part]


def _check(codec: Any, path: Path, count: int, batch_size: int) -> None:
    if not isinstance(codec, WritesBlocks):
        raise ConfigError(
            f"{type(codec).__name__} writes no ensembles block by block; use sample() and write the result"
        )
    if path.suffix.lower() not in codec.block_formats:
        raise ConfigError(f"{path}: expected an ending {', '.join(codec.block_formats)}")
    if count < 1 or batch_size < 1:
        raise ConfigError(f"count and batch_size must be at least 1, got {count} and {batch_size}")
