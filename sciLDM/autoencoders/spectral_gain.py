r"""Decoded fields whose small waves have the power of real ones.

What latents say of a small wave is little, and a decoder trained on square errors rebuilds no more than that: its
amplitude is too low, as that of every regression. After the training the amplitudes of wavenumber band `k` are
multiplied by

    g_k = sqrt(max(1, p S_k / S'_k)),

with `S_k` the mean power of training fields, `S'_k` that of the same fields decoded, and `p` the share of the power
that is asked for. Where a share `e` of the power is explained (`S'_k = e S_k`), the error of that band grows from
`1 - e` to `1 - e + (sqrt(p) - sqrt(e))^2`: `p` is a choice between errors and spectra.

Waves are those of the cosine transform, which continues a box by its mirror image; bands are the whole numbers of half
waves along the shortest side. Waves beyond 0.7 of the shortest that the grid has stay as they are: grids resolve them
poorly, and latents say next to nothing of them.
"""

from collections.abc import Iterable, Sequence
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sciLDM.cosine import cosine_transform

__all__ = ["SpectralGain"]

_RESOLVED = 0.7


@final
class SpectralGain(nn.Module):
    """Gains of each channel and wave; 1 until they are fitted.

    Args:
        channels: Of the fields.
        shape: Their grid.
        share: `p`.
    """

    gain: Tensor

    def __init__(self, channels: int, shape: Sequence[int], share: float) -> None:
        super().__init__()
        self.share = share
        self.register_buffer("gain", torch.ones(channels, *shape))

    def forward(
        self, x: Float[Tensor, "batch channel *shape"], mean: Tensor | float = 0.0
    ) -> Float[Tensor, "batch channel *shape"]:
        """Sharpened fields; gains act on what is left of a mean."""
        return x + cosine_transform((self.gain - 1) * cosine_transform(x - mean), inverse=True)

    @torch.no_grad()
    def fit(
        self,
        pairs: Iterable[tuple[Float[Tensor, "batch channel *shape"], Float[Tensor, "batch channel *shape"]]],
    ) -> None:
        """From batches of fields and of what becomes of them, both about a mean of 0."""
        totals = [torch.zeros_like(self.gain, dtype=torch.float64) for _ in range(2)]
        for pair in pairs:
            for total, x in zip(totals, pair, strict=True):
                total += cosine_transform(x.to(self.gain)).square().sum(dim=0)
        band, channels = self._bands().flatten(), len(self.gain)
        real, made = (
            torch.zeros(channels, int(band.max()) + 1).to(t).index_add_(1, band, t.flatten(1)) for t in totals
        )
        gain = (self.share * real / made.clamp(min=1e-12)).clamp(min=1.0).sqrt()
        numbers = torch.arange(gain.shape[1], device=gain.device)
        gain[:, (numbers == 0) | (numbers > _RESOLVED * (min(self.gain.shape[1:]) - 1))] = 1.0
        self.gain.copy_(gain[:, band].view_as(self.gain))

    def _bands(self) -> Tensor:
        shape = self.gain.shape[1:]
        square = torch.zeros(shape, dtype=torch.float64, device=self.gain.device)
        for axis, n in enumerate(shape):
            wave = torch.arange(n, dtype=torch.float64, device=square.device) / n
            square += wave.square().view([-1 if a == axis else 1 for a in range(len(shape))])
        # Rounding must not move a wave of a whole number into the band below.
        return (min(shape) * square.sqrt() + 1e-9).floor().long()
