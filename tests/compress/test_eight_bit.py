"""8-bit weights: the error bound holds, and a model that was stored so is a model like any other."""

from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from sciLDM.artefact import load_artefact, save_artefact
from sciLDM.data.eight_bit import dequantise, quantise
from sciLDM.errors import ArtefactError


@given(
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=4),
    power=st.integers(-20, 20),
    seed=st.integers(0, 99),
)
def test_errors_are_at_most_half_a_step_of_their_channel(shape: list[int], power: int, seed: int) -> None:
    w = 2.0**power * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    w[0] *= 100.0  # one large channel costs the others nothing
    q, scale = quantise(w)
    step = w.abs().flatten(1).amax(dim=1) / 127
    assert torch.allclose(scale, step)
    error = (dequantise(q, scale) - w).abs().flatten(1).amax(dim=1)
    assert bool((error <= 0.5001 * step).all())
    assert torch.equal(quantise(dequantise(q, scale))[0], q)


def test_a_channel_of_zeros_stays_zero() -> None:
    assert torch.equal(dequantise(*quantise(torch.zeros(2, 3))), torch.zeros(2, 3))


def test_an_artefact_holds_weights_in_eight_bits_and_the_rest_as_before(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    w, table = torch.randn(64, 64, generator=generator), torch.randn(64, 64, generator=generator)
    tensors = {"a.weight": w, "a.bias": w[0], "start.basis": table, "count": torch.arange(6).view(2, 3)}
    options = {"tensors": tensors, "config": {}, "card": {}}
    folder = save_artefact(tmp_path / "small", dtype=torch.int8, **options)
    found = load_artefact(folder)
    assert found.card["format_version"] == 2
    assert load_artefact(save_artefact(tmp_path / "plain", **options)).card["format_version"] == 1
    assert found.tensors.keys() == tensors.keys()
    assert torch.equal(found.tensors["a.bias"], tensors["a.bias"])
    assert torch.equal(found.tensors["count"], tensors["count"])
    assert torch.equal(found.tensors["start.basis"], table.bfloat16())
    bound = w.abs().amax(dim=1, keepdim=True) / 254 * 1.001
    assert bool(((found.tensors["a.weight"] - w).abs() <= bound).all())


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"a\.weight holds values that are not finite"):
        save_artefact(
            tmp_path / "m",
            tensors={"a.weight": torch.full((2, 2), torch.inf)},
            config={},
            card={},
            dtype=torch.int8,
        )
