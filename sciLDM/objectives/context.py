r"""Random context: in training, part of each latent is given clean, so that one network samples, forecasts and fills.

A latent whose first grid axis is time (or depth, or any sequence) has some of its frames revealed through a `FieldMap`
condition; what is unknown there is NaN. Revealing the first frames asks for a forecast, the last ones for a hindcast,
scattered ones for infilling, none for a free sample (masked trajectories as in Rozet et al. 2025, arXiv:2507.02608).
"""

from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sciLDM.errors import ConfigError

__all__ = ["RandomContext"]


@final
class RandomContext:
    """Which frames of a training sample are revealed.

    With probability `none` nothing is; else with probability `forward` the first `n` frames, `n` uniform from 1 to all
    but one; else each frame on its own with a probability that is itself uniform, at least one being kept back.

    Args:
        name: The `FieldMap` condition that carries the revealed frames; its channels are the latent's.
        forward: Share of forecasts among the samples with context.
        none: Share of samples without context.

    Raises:
        ConfigError: A share outside 0 to 1.
    """

    def __init__(self, name: str = "context", *, forward: float = 0.6, none: float = 0.2) -> None:
        for option, share in (("forward", forward), ("none", none)):
            if not 0 <= share <= 1:
                raise ConfigError(f"{option}: expected a share between 0 and 1, got {share}")
        self.name, self.forward, self.none = name, forward, none

    def known(self, u: Float[Tensor, "batch columns"]) -> Bool[Tensor, "batch frames"]:
        """Which frames are revealed, from uniform numbers: four columns, then one for each frame."""
        kind, mode, amount, keep = u[:, :4].unbind(dim=1)
        own = u[:, 4:]
        frames = own.shape[1]
        count = 1 + (amount * (frames - 1)).floor().clamp(max=max(frames - 2, 0))
        first = torch.arange(frames, device=u.device) < count[:, None]
        scattered = own < amount[:, None]
        hidden = (keep * frames).floor().clamp(max=frames - 1).long()
        scattered = scattered.scatter(1, hidden[:, None], False)
        chosen = torch.where((mode < self.forward)[:, None], first, scattered)
        return chosen & (kind >= self.none)[:, None] & (frames > 1)

    def reveal(
        self, z: Float[Tensor, "batch channel frames *shape"], known: Bool[Tensor, "batch frames"]
    ) -> Float[Tensor, "batch channel frames *shape"]:
        """The revealed frames of `z`, NaN elsewhere."""
        return torch.where(spread(known, z), z, torch.nan)


def spread(known: Tensor, z: Tensor) -> Tensor:
    """Frames as cells: `[batch, 1, frames, 1, ...]`, to broadcast over `z`."""
    return known.reshape(len(known), 1, -1, *[1] * (z.ndim - 3))
