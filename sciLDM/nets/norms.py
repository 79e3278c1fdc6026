r"""RMS normalisation, `y = w x / sqrt(mean(x^2) + eps)` (Zhang & Sennrich 2019, arXiv:1910.07467), for CPUs.

There PyTorch composes it of eight steps in float32, and its derivative of twenty: a tenth of a training step. With
`r = 1 / sqrt(mean(x^2) + eps)`, `n = x r` and the gradient `g` of `y`, the derivative is `r (w g - n mean(w g n))`.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

__all__ = ["stacked_rms_norm"]


def stacked_rms_norm(
    x: Float[Tensor, "stack *rows width"], weight: Float[Tensor, "stack width"], eps: float
) -> Float[Tensor, "stack *rows width"]:
    """Normalise each of the stacked tensors over its last axis, with its own weight, in the type of `x`.

    Sums are float32. Derivatives of any order, forward mode and `vmap` work as for PyTorch's own functions.

    Args:
        x: Tensors, stacked along the first axis.
        weight: One row of weights each.
        eps: Added to the mean square.
    """
    weight = weight.to(x.dtype)
    if x.device.type == "cpu":
        return _StackedRMSNorm.apply(x, weight, eps)  # type: ignore[no-any-return]
    return F.rms_norm(x, x.shape[-1:], None, eps) * _beside(weight, x)


def _reciprocal_rms(x: Tensor, eps: float) -> Tensor:
    # Sums in float32 inside; asking for a float32 result would copy all of `x` first.
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    norm = norm.to(torch.promote_types(x.dtype, torch.float32))
    return (norm.square() / x.shape[-1] + eps).rsqrt().to(x.dtype)


def _beside(weight: Tensor, x: Tensor) -> Tensor:
    return weight.view(weight.shape[0], *[1] * (x.ndim - 2), -1)


class _StackedRMSNorm(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return x * _reciprocal_rms(x, eps) * _beside(weight, x)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        x, weight, ctx.eps = inputs
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx, gradient):
        # From the inputs alone, so that it can be differentiated again.
        x, weight = ctx.saved_tensors
        r = _reciprocal_rms(x, ctx.eps)
        n = x * r
        product = (gradient * n).reshape(x.shape[0], -1, x.shape[-1])
        mean = (product @ weight[..., None]).view_as(r) / -x.shape[-1]
        return torch.addcmul(gradient * _beside(weight, x), n, mean) * r, product.sum(dim=1), None

    @staticmethod
    def jvp(ctx, x_tangent, weight_tangent, _):
        x, weight = ctx.saved_tensors
        r = _reciprocal_rms(x, ctx.eps)
        n = x * r
        tangent = torch.zeros_like(x)
        if x_tangent is not None:
            along = (n * x_tangent).mean(dim=-1, keepdim=True)
            tangent = (x_tangent - n * along) * r * _beside(weight, x)
        return tangent if weight_tangent is None else tangent + n * _beside(weight_tangent, x)
