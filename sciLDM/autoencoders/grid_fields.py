"""What a grid autoencoder is fed, and how its output is judged: fields with weights, loss terms, scores."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.nets.convolutional import Edge

__all__ = ["GridFields", "band_power", "gradient_error", "log_spectrum_error", "weighted_mean"]


class GridFields(NamedTuple):
    """A batch of fields on a regular grid.

    Attributes:
        values: The fields; anything finite or not where the weight is 0.
        weight: How much each cell counts (area weights, say); 0 where the value is missing. None counts all alike.
        static: Fields known beforehand and the same for all samples (orography, land, coordinates).
    """

    values: Float[Tensor, "batch channel *shape"]
    weight: Float[Tensor, "batch one_or_channel *shape"] | None = None
    static: Float[Tensor, "static *shape"] | None = None


def weighted_mean(x: Float[Tensor, "batch channel *shape"], weight: Tensor | None) -> Float[Tensor, "batch"]:
    """Mean over channels and cells; 0 for a sample without a single known value."""
    if weight is None:
        return x.flatten(1).mean(dim=1)
    weight = weight.to(x.dtype).expand_as(x)
    return (x * weight).flatten(1).sum(dim=1) / weight.flatten(1).sum(dim=1).clamp_min(1e-12)


def gradient_error(
    error: Float[Tensor, "batch channel *shape"], weight: Tensor | None
) -> Float[Tensor, "batch"]:
    """Mean absolute first difference of the error, averaged over the axes: edges must lie where they lay."""
    terms = []
    for dim in range(2, error.ndim):
        if error.shape[dim] < 2:
            continue
        both = None
        if weight is not None:
            n = weight.shape[dim]
            both = (weight.narrow(dim, 0, n - 1) * weight.narrow(dim, 1, n - 1)).sqrt()
        terms.append(weighted_mean(error.diff(dim=dim).abs(), both))
    return torch.stack(terms).mean(dim=0) if terms else error.new_zeros(error.shape[0])


def band_power(
    x: Float[Tensor, "batch channel *shape"], edges: Sequence[Edge], bands: int
) -> Float[Tensor, "batch channel {bands}"]:
    """Mean spectral power in `bands` equal ranges of the wavenumber, from 0 to the Nyquist wavenumber of any axis.

    Axes that do not close on themselves are tapered (Hann); the mean is taken out first. Corners of the spectrum,
    beyond the Nyquist wavenumber, are left out.
    """
    axes = tuple(range(2, x.ndim))
    x = x.float() - x.float().mean(dim=axes, keepdim=True)
    radius = torch.zeros((), device=x.device)
    for dim, edge in zip(axes, edges, strict=True):
        n = x.shape[dim]
        view = [-1 if d == dim else 1 for d in axes]
        if edge != "circular" and n > 2:
            window = torch.hann_window(n + 2, periodic=False, device=x.device)[1:-1]
            x = x * window.view(view)
        wave = (
            torch.fft.rfftfreq(n, device=x.device)
            if dim == axes[-1]
            else torch.fft.fftfreq(n, device=x.device)
        )
        radius = radius + (2 * wave).square().view(view)
    power = torch.fft.rfftn(x, dim=axes).abs().square().flatten(2)
    band = (radius.sqrt() * bands).long().flatten()
    inside = ((band < bands) & (radius.flatten() > 0)).to(power)
    sums = power.new_zeros(*power.shape[:2], bands + 1)
    sums.index_add_(2, band.clamp_max(bands), power * inside)
    counts = power.new_zeros(bands + 1).index_add_(0, band.clamp_max(bands), inside)
    return (sums / counts.clamp_min(1.0))[..., :bands]


def log_spectrum_error(
    truth: Float[Tensor, "batch channel *shape"],
    rebuilt: Float[Tensor, "batch channel *shape"],
    edges: Sequence[Edge],
    *,
    bands: int = 12,
) -> Float[Tensor, "batch"]:
    """Mean `|log S_rebuilt - log S_truth|` over wavenumber bands: detail must have its variance, wherever it lies."""
    power = [band_power(x, edges, bands) for x in (truth, rebuilt)]
    # What is a millionth of the strongest band is rounding, not signal.
    floor = 1e-6 * power[0].amax(dim=-1, keepdim=True) + 1e-12
    used = (power[0].detach().sum(dim=(0, 1)) > 0).to(floor)
    ratio = (torch.log(power[1] + floor) - torch.log(power[0] + floor)).abs()
    return (ratio * used).sum(dim=(1, 2)) / (used.sum() * ratio.shape[1]).clamp_min(1.0)
