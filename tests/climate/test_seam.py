"""Global fields have no edge at the date line and nothing strange at the poles, after training."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor

from sciLDM.autoencoders.grid import GridAutoencoder, GridSettings
from sciLDM.domains.climate import Climate
from sciLDM.domains.climate.corpus import ClimateCorpus
from tests.climate.fields import make

ROWS, COLUMNS = 16, 32


def silent(_what: str, _done: int, _total: int) -> None:
    """No progress."""


def homogeneous(count: int, west: float) -> xr.Dataset:
    """Smooth noise whose statistics are the same at every longitude, and that is continuous across the poles."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 2 * ROWS, COLUMNS))
    # On the torus that goes over both poles: a meridian is continued by the opposite one.
    for axis, reach in ((1, 2), (2, 3)):
        x = sum(np.roll(x, k, axis=axis) for k in range(-reach, reach + 1)) / (2 * reach + 1) ** 0.5
    x = x + np.roll(x[:, ::-1], COLUMNS // 2, axis=2)
    data = make(count, shape=(ROWS, COLUMNS), step=1, west=west)
    data["tas"].values = (280 + x[:, :ROWS]).astype(np.float32)
    return data


def seam(x: Tensor, every: int = 1) -> float:
    """Mean absolute difference across the ends of the rows over that elsewhere, or at other borders of latent cells."""
    inside = x.diff(dim=-1).abs()[..., every - 1 :: every].mean()
    return float((x[..., 0] - x[..., -1]).abs().mean() / inside)


def across_pole(x: Tensor) -> float:
    """Mean absolute difference between opposite meridians at the poles over that of neighbouring rows."""
    over = torch.stack([x[..., end, :] - x[..., end, :].roll(COLUMNS // 2, dims=-1) for end in (0, -1)])
    return float(over.abs().mean() / x.diff(dim=-2).abs().mean())


@pytest.mark.parametrize("west", [0.0, -180.0])
def test_a_trained_decoder_leaves_no_seam(west: float, tmp_path: Path) -> None:
    settings = GridSettings(
        channels=4,
        patch=2,
        factors=(2,),
        widths=(16, 24),
        blocks=(1, 1),
        l1=0.0,
        mse=1.0,
        gradient=0.0,
        noise=0.01,
    )
    corpus = Climate(homogeneous(400, west), autoencoder=settings).prepare(tmp_path, silent)
    assert isinstance(corpus, ClimateCorpus)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = corpus._codec.autoencoder()
        assert isinstance(network, GridAutoencoder)
        assert set(network.layout.edges) == {"pole", "circular"}
        network.prepare([corpus.fields("train", np.arange(corpus.sizes["train"]))])
        optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
        generator, order = torch.Generator().manual_seed(0), np.random.default_rng(0)
        for _ in range(120):
            fields = corpus.fields("train", order.integers(0, corpus.sizes["train"], 16))
            loss = sum(term.mean() for term in network.loss(fields, generator).values())
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    network.eval()
    with torch.no_grad():
        held_out = corpus.fields("test", np.arange(corpus.sizes["test"]))
        decoded = network.decode(*network.code(held_out))
        drawn = network.decode(torch.randn(64, *network.code(held_out)[0].shape[1:]), None)
    explained = 1 - float((decoded - held_out.values).var() / held_out.values.var())
    assert explained > 0.4  # it has learnt something
    # So short a training leaves the borders of latent cells visible everywhere; the date line is one like all others.
    assert 0.97 <= seam(held_out.values) <= 1.03
    for x in (decoded, drawn):
        assert seam(x, every=4) <= 1.05
    truth = across_pole(held_out.values)
    assert across_pole(decoded) <= 1.1 * truth
    # Rows at the poles are neither dead nor wild.
    spread = decoded.std(dim=(0, 1, 3))
    assert float(spread[[0, -1]].min() / spread.median()) > 0.7
    assert float(spread[[0, -1]].max() / spread.median()) < 1.3
