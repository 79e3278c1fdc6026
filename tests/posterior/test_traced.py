"""Jacobians that are traced once give what forward derivatives give, and are left alone where they cannot be traced."""

import pytest
import torch
from torch import Tensor

from sciLDM.guidance.posterior import DataMap, GaussNewton, IdentityMap, Isotropic, Problem
from sciLDM.guidance.posterior.gauss_newton import TRACED
from tests.posterior.problems import (
    F64,
    Attention,
    Matrix,
    Pointwise,
    Sinh,
    Squares,
    normal,
    prior,
    times,
)


class Bowed(DataMap):
    """A linear decoder, its outline, to which a slight bend is added."""

    def decode(self, z: Tensor) -> Tensor:
        return self.outline(z) + 0.02 * torch.sin(2 * z)

    def outline(self, z: Tensor) -> Tensor:
        return 2 * z + 0.5 * z.roll(1, dims=-1)

    def encode(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Clipped(DataMap):
    """A decoder that looks at its values, which cannot be traced."""

    def decode(self, z: Tensor) -> Tensor:
        return torch.sinh(z) if float(z.detach().abs().max()) < 100 else z

    def encode(self, x: Tensor) -> Tensor:
        return torch.asinh(x)


def problems() -> list[Problem]:
    values = normal(3, 1, 5, seed=3)
    weights = torch.full_like(values, 5.0)
    return [
        Problem(Sinh(), Squares(5), values, weights),
        Problem(IdentityMap(), Matrix(normal(5, 5, seed=4)), values, weights),
        Problem(Clipped(), Squares(5), values, weights),
    ]


@pytest.mark.parametrize("given", problems(), ids=["bent", "linear", "looks at values"])
@pytest.mark.parametrize("steps", [1, 3])
def test_traced_or_not_is_the_same(given: Problem, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    denoiser, t, z_t = prior(5), times(0.5, 1.0, 1.5), normal(3, 1, 5)

    def found() -> Tensor:
        return GaussNewton(denoiser, given, covariance=Isotropic(), steps=steps, tolerance=1e-8)(z_t, t)

    plain = found()
    assert plain.numel() < TRACED
    monkeypatch.setattr("sciLDM.guidance.posterior.gauss_newton.TRACED", 1)
    assert torch.allclose(found(), plain, atol=1e-10)


@torch.no_grad()
def test_attention_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    data = Attention().double()
    values = normal(2, 4, 3, seed=3)
    given = Problem(data, Pointwise(), values, torch.full_like(values, 3.0))
    denoiser = prior(24)
    z_t = normal(2, 4, 6)
    flat = lambda z, t: denoiser(z.flatten(1), t).view(z.shape)  # noqa: E731
    results = []
    for traced in (TRACED, 1):
        monkeypatch.setattr("sciLDM.guidance.posterior.gauss_newton.TRACED", traced)
        guided = GaussNewton(denoiser, given, covariance=Isotropic(), tolerance=1e-8)
        results.append(guided.correct(flat(z_t, times(0.5, 1.0)), lambda v: 0.5 * v, times(0.5, 1.0)))
    assert results[0].dtype == F64
    assert torch.allclose(results[0], results[1], atol=1e-10)


def test_derivatives_of_the_outline_meet_the_data_of_the_decoder() -> None:
    """A step with the cheap Jacobian: the decoder's own data are met, and the answer is that of the exact one."""
    denoiser, t, z_t = prior(24), times(0.5, 1.0), normal(2, 1, 24)
    given = Problem(
        Bowed(), Matrix(normal(9, 24, seed=4)), normal(2, 1, 9, seed=3), torch.full((2, 1, 9), 20.0).double()
    )
    answers = {
        outline: GaussNewton(
            denoiser,
            given,
            covariance=Isotropic(),
            steps=steps,
            tolerance=1e-8,
            outline=outline,
            max_iterations=50,
        )(z_t, t)
        for outline, steps in ((False, 3), (True, 3))
    }
    moved = (answers[False] - denoiser(z_t, t)).norm()
    assert float((answers[True] - answers[False]).norm()) < 0.02 * float(
        moved
    )  # as far as the Jacobians differ
    assert float(given.chi2(answers[True]).max()) < 0.05
