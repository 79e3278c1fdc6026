"""Saliency maps: which latent cells (atoms, patches of a grid) a quantity depends on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sciLDM.errors import ConfigError, ShapeMismatch
from sciLDM.explore.attribution import Attribution, IntegratedGradients
from sciLDM.explore.native import encode
from sciLDM.explore.quantities import Conditional, Decoded, Quantity
from sciLDM.model import LatentDiffusion

__all__ = ["Saliency", "saliency"]


@final
@dataclass(frozen=True)
class Saliency:
    """Contributions of latents to a quantity.

    Attributes:
        contributions: Of every latent number; 0 where no cell exists.
        mask: Cells that exist, or None when all do.
        difference: What contributions should sum to, `f(z) - f(0)`, where `f` is known: compare with `total` for
            `IntegratedGradients`.
    """

    contributions: Float[Tensor, "batch channel *shape"]
    mask: Bool[Tensor, "batch *shape"] | None
    difference: Float[Tensor, "batch"] | None = None

    @property
    def per_cell(self) -> Float[Tensor, "batch *shape"]:
        """Signed contribution of each cell; NaN where none exists. For molecules, atom by atom."""
        summed = self.contributions.sum(1)
        return summed if self.mask is None else summed.masked_fill(~self.mask, float("nan"))

    @property
    def importance(self) -> Float[Tensor, "batch *shape"]:
        """Size of each cell's contribution, regardless of sign (Euclidean over channels); NaN where none exists."""
        size = self.contributions.square().sum(1).sqrt()
        return size if self.mask is None else size.masked_fill(~self.mask, float("nan"))

    @property
    def total(self) -> Float[Tensor, "batch"]:
        """Sum of all contributions."""
        return self.contributions.flatten(1).sum(1)

    def on_grid(self, shape: tuple[int, ...]) -> Float[Tensor, "batch *grid"]:
        """`per_cell` on a finer grid: every point gets the value of the cell that covers it.

        Raises:
            ShapeMismatch: Another number of axes than the latents have.
        """
        cells = self.per_cell
        if len(shape) != cells.ndim - 1:
            raise ShapeMismatch(f"a grid of {cells.ndim - 1} axes expected, got {tuple(shape)}")
        for axis, (n, count) in enumerate(zip(shape, cells.shape[1:], strict=True), start=1):
            index = torch.arange(n, device=cells.device) * count // n
            cells = cells.index_select(axis, index)
        return cells


@torch.no_grad()
def saliency(
    model: LatentDiffusion,
    objects: Any,
    quantity: Quantity | Callable[[Any], Tensor] | str,
    *,
    method: Attribution | None = None,
    batch_size: int = 128,
) -> Saliency:
    """Which latent cells of each object a quantity depends on.

    Args:
        model: A trained model.
        objects: Native objects, or `Encoded`.
        quantity: A `Quantity`; a function of what the decoder says stands for `Decoded(function)`, the name of a
            condition for `Conditional(name)`.
        method: `IntegratedGradients()` when None.
        batch_size: Objects computed at once.

    Raises:
        ConfigError: A quantity that cannot be asked about, or a setting out of range.
        DataError: Objects that the model cannot represent.
    """
    if isinstance(quantity, str):
        quantity = Conditional(quantity)
    elif not isinstance(quantity, Quantity):
        quantity = Decoded(quantity)
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
    encoded, method, maps, differences = encode(model, objects), method or IntegratedGradients(), [], []
    for first in range(0, len(encoded), batch_size):
        ids = range(first, min(first + batch_size, len(encoded)))
        part = encoded.rows(ids)
        found = method(lambda z, p=part, i=ids: quantity.gradient(model, p, z, i), part.z)
        maps.append(found if part.mask is None else found * part.mask[:, None])
        now, before = (quantity.value(model, part, z) for z in (part.z, torch.zeros_like(part.z)))
        differences.append(None if now is None or before is None else now - before)
    known = [d for d in differences if d is not None]
    return Saliency(torch.cat(maps), encoded.mask, torch.cat(known) if len(known) == len(maps) else None)
