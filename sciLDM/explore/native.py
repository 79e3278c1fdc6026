"""From the user's own objects to normalised latents, and back.

A codec takes part by having one method, `from_native` (see `FromNative`); it inherits nothing for it. What it must do:

* molecules: SMILES or RDKit molecules -> graph batch; labels by RDKit, mask from the number of atoms;
* climate: a data set on the training grid -> states, normalised by each date's climatology -> `codec.fields`; the dates
  give season, year and forcings, and stay in the request;
* medical: a volume -> its intensity scale and `codec.on_grid` -> `GridFields`; spacing and shape are its labels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, final, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sciLDM.conditions import check_conditions
from sciLDM.domain import Request
from sciLDM.errors import ConfigError, DataError, ShapeMismatch
from sciLDM.guidance import Conditioned
from sciLDM.model import LatentDiffusion

__all__ = [
    "Encoded",
    "FromNative",
    "HasRows",
    "decode",
    "encode",
    "encode_fields",
    "joined",
    "rows_of",
    "told",
]


@runtime_checkable
class FromNative(Protocol):
    """A codec that reads native objects, the inverse of `Codec.decode`."""

    def from_native(self, objects: Any, cond: Mapping[str, Any] | None = None) -> tuple[Any, Request]:
        """`(fields, request)`: the autoencoder's input, and grid, mask and labels of these objects.

        Args:
            objects: One native object or several; a result of `model.sample` should do.
            cond: Conditions that replace the objects' own labels: one value, or one for each object.

        Returns:
            One row an object, in order. `request.cond` holds every label that can be told from the object (NaN or -1
            where it cannot) and those of `cond`.

        Raises:
            DataError: An object that the model cannot represent; the message says which and why.
            ConfigError: A condition that is unknown, or that contradicts the object's grid.
        """
        ...


@runtime_checkable
class HasRows(Protocol):
    """A request with more in each row than conditions and mask (dates, say) must be able to take rows and join."""

    def rows(self, index: Sequence[int]) -> Request:
        """These rows, in this order; repeats allowed."""
        ...

    def joined(self, other: Request) -> Request:
        """The rows of this request, then those of another."""
        ...


@final
@dataclass(frozen=True)
class Encoded:
    """Objects as the denoiser sees them.

    Attributes:
        z: Normalised latents on the request's grid, on the model's device; 0 where no cell exists.
        request: Grid, mask, and the objects' own labels in the user's units.
    """

    z: Float[Tensor, "batch channel *shape"]
    request: Request

    def __len__(self) -> int:
        return len(self.z)

    @property
    def mask(self) -> Bool[Tensor, "batch *shape"] | None:
        """Cells that exist, on the device of the latents."""
        return None if self.request.mask is None else self.request.mask.to(self.z.device)

    def rows(self, index: Sequence[int]) -> "Encoded":
        """Some of the objects, in this order; repeats allowed."""
        return Encoded(
            self.z[torch.as_tensor(list(index), device=self.z.device)], rows_of(self.request, index)
        )

    def joined(self, other: "Encoded") -> "Encoded":
        """These objects, then others."""
        return Encoded(torch.cat([self.z, other.z]), joined(self.request, other.request))


def encode(model: LatentDiffusion, objects: Any, *, cond: Mapping[str, Any] | None = None) -> Encoded:
    """Normalised latents of native objects. What is encoded already is passed through.

    Args:
        model: A trained model.
        objects: Native objects, or `Encoded`.
        cond: Labels that replace the objects' own, in the user's units.

    Raises:
        ConfigError: The model's codec reads no native objects, or `cond` beside objects encoded before.
        DataError: Objects that the model cannot represent.
    """
    if isinstance(objects, Encoded):
        if cond:
            raise ConfigError(
                "conditions are read together with the objects: give the objects, not their latents"
            )
        return objects
    codec = model.codec
    if not isinstance(codec, FromNative):
        raise ConfigError(
            f"{type(codec).__name__} has no from_native(objects), so that {model.experiment.domain.name} objects "
            "cannot be encoded; give encode_fields the autoencoder's inputs instead"
        )
    fields, request = codec.from_native(objects, cond)
    return encode_fields(model, fields, request)


@torch.no_grad()
def encode_fields(model: LatentDiffusion, fields: Any, request: Request | None = None) -> Encoded:
    """Normalised latents of the autoencoder's inputs.

    Args:
        model: A trained model.
        fields: What `Autoencoder.encode` takes.
        request: Grid and labels; when None, the grid the encoder gives and no labels.

    Raises:
        DataError: Latents that are not finite.
        ShapeMismatch: Fields, request and model do not belong together.
    """
    if hasattr(fields, "to"):
        fields = fields.to(model.device)
    code, mask = model.autoencoder.code(fields)
    if not bool(code.isfinite().all()):
        bad = torch.nonzero(~code.isfinite().flatten(1).all(1)).flatten().tolist()
        raise DataError(f"the latents of object {bad[0]} are not finite; are its values?")
    z = model.stats.normalise_masked(code, mask)
    if request is None:
        return Encoded(z, Request(tuple(z.shape[2:]), {}, None if mask is None else mask.cpu()))
    if len(z.shape[2:]) != len(request.shape) or any(
        n > m for n, m in zip(z.shape[2:], request.shape, strict=True)
    ):
        raise ShapeMismatch(f"latents on a grid {tuple(z.shape[2:])} for a request of {request.shape}")
    check_conditions(request.cond, model.codec.conditions, len(z))
    full = z.new_zeros(*z.shape[:2], *request.shape)
    inside = tuple(slice(n) for n in z.shape[2:])
    full[(..., *inside)] = z
    if mask is not None:
        there = mask.new_zeros(len(z), *request.shape)
        there[(slice(None), *inside)] = mask
        if request.mask is None or not torch.equal(there.cpu(), request.mask.cpu()):
            raise ShapeMismatch("the encoder's cells are not those of the request's mask")
    return Encoded(full, request)


def conditioned(model: LatentDiffusion, encoded: Encoded) -> Conditioned:
    """The denoiser under the objects' labels and masks, without guidance, and without a memory of earlier estimates."""
    cond = {name: label.to(model.device) for name, label in encoded.request.cond.items()}
    return Conditioned(model.denoiser, cond, encoded.mask)


def decode(model: LatentDiffusion, encoded: Encoded) -> Any:
    """Native objects from normalised latents."""
    z = model.stats.denormalise(encoded.z)
    return model.codec.decode(model.autoencoder, z, encoded.request, reference=model.reference)


def rows_of(request: Request, index: Sequence[int]) -> Request:
    """Some rows of a request, in this order; repeats allowed.

    Raises:
        ConfigError: A kind of request that cannot take rows.
    """
    if isinstance(request, HasRows):
        return request.rows(index)
    _check_plain(request)
    chosen = torch.as_tensor(list(index))
    mask = None if request.mask is None else request.mask[chosen.to(request.mask.device)]
    cond = {name: label[chosen.to(label.device)] for name, label in request.cond.items()}
    return replace(request, cond=cond, mask=mask)


def joined(first: Request, second: Request) -> Request:
    """Rows of two requests one after the other.

    Raises:
        ConfigError: A kind of request that cannot be joined.
        ShapeMismatch: Requests for different grids.
    """
    if first.shape != second.shape:
        raise ShapeMismatch(f"objects on one latent grid expected, got {first.shape} and {second.shape}")
    if isinstance(first, HasRows):
        return first.joined(second)
    _check_plain(first)
    cond = {
        name: torch.cat([label, second.cond[name]])
        for name, label in first.cond.items()
        if name in second.cond
    }
    masks = [first.mask, second.mask]
    mask = torch.cat([m for m in masks if m is not None]) if None not in masks else None
    return replace(first, cond=cond, mask=mask)


def told(label: Tensor) -> bool:
    """Whether any object has this label: NaN, and -1 for categories, are missing."""
    return bool((label.isfinite() if label.is_floating_point() else label >= 0).any())


def _check_plain(request: Request) -> None:
    if type(request) is not Request:
        raise ConfigError(
            f"{type(request).__name__} holds more than conditions and mask: it needs rows(index) and joined(other)"
        )
