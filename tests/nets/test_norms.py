"""RMS normalisation against its definition, and short-sequence attention against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F

from sciLDM.nets.dit import _Attention
from sciLDM.nets.norms import stacked_rms_norm

EPS = 1e-6


def definition(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Two tensors normalised one by one, by PyTorch."""
    return torch.stack([F.rms_norm(x[k], x.shape[-1:], weight[k], EPS) for k in range(len(x))])


def example(*rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, *rows, 8, dtype=torch.float64, generator=generator)
    return x, torch.randn(2, 8, dtype=torch.float64, generator=generator)


def test_it_is_rms_normalisation() -> None:
    x, weight = example(3, 4, 5)
    torch.testing.assert_close(stacked_rms_norm(x, weight, EPS), definition(x, weight))


def test_a_row_of_zeros_has_finite_derivatives() -> None:
    x = torch.zeros(2, 3, 8, requires_grad=True)
    stacked_rms_norm(x, torch.ones(2, 8), EPS).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.full_like(x, EPS**-0.5))


def test_first_derivatives_in_both_modes_and_second_ones() -> None:
    x, weight = (part.requires_grad_() for part in example(2, 3))
    call = lambda x, weight: stacked_rms_norm(x, weight, EPS)  # noqa: E731
    assert torch.autograd.gradcheck(call, (x, weight), check_forward_ad=True, check_batched_grad=True)
    x, weight = (part.requires_grad_() for part in example(2))
    assert torch.autograd.gradgradcheck(call, (x, weight))


@pytest.mark.parametrize("transform", ["vmap", "jvp", "vjp", "hessian"])
def test_function_transforms_agree_with_the_definition(transform: str) -> None:
    x, weight = example(2, 3)

    def apply(function):
        f = lambda x: function(x, weight).pow(3)  # noqa: E731
        match transform:
            case "vmap":
                return torch.func.vmap(f, in_dims=1)(x)
            case "jvp":
                return torch.func.jvp(f, (x,), (x.flip(-1),))[1]
            case "vjp":
                return torch.func.vjp(f, x)[1](x.flip(-1))[0]
            case _:
                return torch.func.hessian(lambda x: f(x).sum())(x)

    torch.testing.assert_close(apply(lambda x, w: stacked_rms_norm(x, w, EPS)), apply(definition))


@pytest.mark.parametrize("length", [1, 9, 300])
def test_attention_in_bfloat16_stays_within_rounding_of_float32(length: int) -> None:
    """Below and above the length at which plain products take over; values and gradients, with masked keys."""
    torch.manual_seed(0)
    attention, x = _Attention(64, 4), torch.randn(2, length, 64)
    with torch.no_grad():
        attention.q_norm.weight.uniform_(0.5, 1.5)
        attention.k_norm.weight.uniform_(0.5, 1.5)
    bias = torch.zeros(2, 1, 1, length)
    bias[0, ..., 1 + length // 2 :] = -1e4
    results = []
    for enabled in (False, True):
        attention.zero_grad()
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            y = attention(leaf, None, bias)
        (y.float() * x.cos()).sum().backward()
        assert leaf.grad is not None
        assert attention.q_norm.weight.grad is not None
        results.append((y.float().detach(), leaf.grad, attention.q_norm.weight.grad.clone()))
    for exact, rounded in zip(*results, strict=True):
        assert (rounded - exact).norm() <= 0.03 * exact.norm() + 1e-3
