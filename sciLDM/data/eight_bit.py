r"""Matrices as 8-bit integers with one scale for each output channel.

    w_ij ~ s_i q_ij,   s_i = max_j |w_ij| / 127,   q_ij = round(w_ij / s_i)   =>   |w_ij - s_i q_ij| <= s_i / 2

Symmetric and per channel, as Krishnamoorthi 2018 (arXiv:1806.08342) recommends for weights. They are stored so and used
as floating-point numbers: half of bfloat16's file, the same speed.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int8
from torch import Tensor

from sciLDM.errors import ArtefactError

__all__ = ["dequantise", "quantise", "to_eight_bit", "to_floats"]

_SCALE = ".eight_bit_scale"


def quantise(
    w: Float[Tensor, "rows *columns"],
) -> tuple[Int8[Tensor, "rows *columns"], Float[Tensor, "rows"]]:
    """`q` and `s`; a row of zeros has scale 1."""
    largest = w.detach().float().flatten(1).abs().amax(dim=1)
    scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest))
    return (w.detach().float() / _beside(scale, w)).round().clamp(-127, 127).to(torch.int8), scale


def dequantise(
    q: Int8[Tensor, "rows *columns"], scale: Float[Tensor, "rows"]
) -> Float[Tensor, "rows *columns"]:
    """`s q` in float32."""
    return q.float() * _beside(scale, q)


def to_eight_bit(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of linear maps, convolutions and embeddings as integers and scales; all else as it is.

    Raises:
        ArtefactError: Values that are not finite.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim < 2 or not tensor.is_floating_point() or name.rpartition(".")[2] != "weight":
            found[name] = tensor
            continue
        if not bool(tensor.isfinite().all()):
            raise ArtefactError(f"{name} holds values that are not finite, expected weights; train again")
        found[name], found[name + _SCALE] = quantise(tensor)
    return found


def to_floats(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `to_eight_bit`, but for rounding."""
    return {
        name: dequantise(tensor, tensors[name + _SCALE]) if name + _SCALE in tensors else tensor
        for name, tensor in tensors.items()
        if not name.endswith(_SCALE)
    }


def _beside(scale: Tensor, w: Tensor) -> Tensor:
    return scale.view(-1, *[1] * (w.ndim - 1))
