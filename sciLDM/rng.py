"""Per-sample randomness: sample *i* depends on `(seed, id_i, stream)` alone.

A counter-based generator (Philox, Salmon et al. 2011, doi:10.1145/2063384.2063405) needs no state: the key is a hash
of the seed and the stream, the upper words of the counter are the sample's identifier. Batch size, order of samples,
device and number of processes therefore cannot change a sample.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import ConfigError

__all__ = ["NoiseSource"]

_UNIFORM_BITS = 23  # (k + 1/2) / 2^23 is exact in float32 and never 0 or 1


@final
@dataclass(frozen=True)
class NoiseSource:
    """A source of reproducible noise, keyed per sample. It has no state: equal arguments give equal numbers.

    Numbers are drawn in float64 on the CPU and then cast, so float32 and float64 runs see the same noise.

    Args:
        seed: Any integer.
        paired: Normal numbers of an odd identifier are those of the even one before it with their signs turned
            (antithetic variates, Hammersley & Morton 1956, doi:10.1017/S0305004100031455).

    Example:
        >>> noise = NoiseSource(0)
        >>> pair = noise.normal([3, 7], (2,))
        >>> bool((noise.normal([7], (2,))[0] == pair[1]).all())
        True
    """

    seed: int
    paired: bool = field(default=False, kw_only=True)

    def normal(
        self,
        ids: Sequence[int],
        shape: tuple[int, ...],
        *,
        stream: int | str = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "batch *shape"]:
        """Standard normal numbers, one independent draw of `shape` per identifier.

        Args:
            ids: Identifiers of the samples, each in [0, 2^64). Equal identifiers get equal noise.
            shape: Shape of one sample.
            stream: What the noise is for (say, the solver's step); streams are independent.
            device: Where the result is put.
            dtype: Its floating-point type.

        Raises:
            ConfigError: An identifier is out of range.
        """
        draws = np.empty((len(ids), *shape))
        drawn = [int(i) // 2 * 2 for i in ids] if self.paired else ids
        for row, generator in enumerate(self._generators(drawn, stream)):
            draws[row] = generator.standard_normal(shape)
            if drawn[row] != ids[row]:
                draws[row] *= -1
        return torch.from_numpy(draws).to(dtype=dtype).to(device)

    def uniform(
        self,
        ids: Sequence[int],
        shape: tuple[int, ...] = (),
        stream: int | str = 0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "batch *shape"]:
        """Uniform numbers strictly inside (0, 1), never 0 or 1 in float32 or float64. Arguments as in `normal`."""
        draws = np.empty((len(ids), *shape))
        for row, generator in enumerate(self._generators(ids, stream)):
            draws[row] = generator.random(shape)
        scale = 2.0**-_UNIFORM_BITS
        return torch.from_numpy((np.floor(draws / scale) + 0.5) * scale).to(dtype=dtype).to(device)

    def fork(self, name: int | str) -> "NoiseSource":
        """An independent source for another purpose, itself a function of `(seed, name)` alone."""
        return NoiseSource(int.from_bytes(_digest("fork", self.seed, name), "little"), paired=self.paired)

    def _generators(self, ids: Sequence[int], stream: int | str) -> list[np.random.Generator]:
        key = np.frombuffer(_digest("stream", self.seed, stream), dtype="<u8")
        generators: list[np.random.Generator] = []
        for raw in ids:
            identifier = int(raw)
            if not 0 <= identifier < 2**64:
                raise ConfigError(
                    f"sample ids must lie in [0, 2^64), got {identifier}; number samples from 0"
                )
            # The identifier sits in the third word: samples are 2^128 blocks apart and never overlap.
            counter = np.array([0, 0, identifier, 0], dtype=np.uint64)
            generators.append(np.random.Generator(np.random.Philox(counter=counter, key=key)))
        return generators


def _digest(purpose: str, seed: int, name: int | str) -> bytes:
    # repr keeps 1 and "1" apart, and the tuple keeps the parts from running into each other.
    name = name if isinstance(name, str) else int(name)
    return blake2b(repr((purpose, int(seed), name)).encode(), digest_size=16).digest()
