"""Fields larger than the trained grid: in parts as at once, wherever the prior acts on cells alone."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import numpy as np
import pytest
import torch
from torch import Tensor

from sciLDM.autoencoders import Autoencoder, LatentStats
from sciLDM.autoencoders.grid import GridAutoencoder, GridFields, GridSettings
from sciLDM.conditions import FieldMap, Vector
from sciLDM.denoiser import Denoiser
from sciLDM.domain import FieldCodec, Request, Task
from sciLDM.errors import ConfigError
from sciLDM.guidance.posterior import (
    DecodeEncodeSolver,
    GaussNewtonSolver,
    HybridSolver,
    Isotropic,
    PosteriorSolver,
    Tweedie,
)
from sciLDM.guidance.tiled import Tile, TileLayout
from sciLDM.operators import BlockMean, Blur, GaussianNoise, Identity, Observation, Operator, ThickSlice
from sciLDM.parametrisation import expand
from sciLDM.posterior.error_model import AutoencoderError
from sciLDM.posterior.reconstruct import Prior, Settings, reconstruct
from sciLDM.posterior.result import Posterior
from sciLDM.posterior.sampling import default_sampler
from sciLDM.posterior.tiled import TiledAutoencoder, Tiling, needs_tiles, reconstruct_tiled, tile_request
from sciLDM.rng import NoiseSource
from sciLDM.schedules import CosineSchedule
from tests.posterior.linear import LinearAutoencoder

NOISE = NoiseSource(2)
TRAINED, LARGE = (16, 16), (24, 36)
SMALL = GridSettings(channels=3, widths=(6, 8), blocks=(1, 1))


@final
class PlaneCodec(FieldCodec):
    """Fields on a plane, in units of 10 about 50; a condition that says where a tile lies."""

    conditions = (Vector("place", size=2), FieldMap("map", channels=1))
    shape = (4, 4)

    def autoencoder(self) -> GridAutoencoder:
        made = GridAutoencoder(1, TRAINED, SMALL, edges="replicate").eval()
        for k, parameter in enumerate(made.parameters()):
            parameter.data += 0.05 * NOISE.normal([k], tuple(parameter.shape), stream="weights")[0]
        return made

    def plan(self, count: int, wanted: Mapping[str, Any], noise: NoiseSource, ids: Sequence[int]) -> Request:
        return Request(self.shape, {})

    def decode(
        self, autoencoder: Autoencoder, z: Tensor, request: Request, *, reference: Path | None = None
    ) -> list[Tensor]:
        return list(autoencoder.decode(z, None))

    def to_units(self, decoded: Tensor, context: Mapping[str, Tensor]) -> Tensor:
        return 50 + 10 * decoded

    def from_units(self, x: Tensor, context: Mapping[str, Tensor]) -> GridFields:
        return GridFields((x - 50) / 10)

    def task(
        self,
        observed: Any,
        operator: Operator | None,
        *,
        noise_std: float | None = None,
        cond: Mapping[str, Any] | None = None,
    ) -> Task:
        assert operator is not None
        noise = None if noise_std is None else GaussianNoise(noise_std)
        coarse = tuple(n // 4 for n in operator.in_shape[1:])
        field = torch.arange(coarse[0] * coarse[1]).reshape(1, 1, *coarse).float()
        labels = {"place": torch.zeros(1, 2), "map": field}
        return Task(Observation(observed, operator, noise), Request(coarse, labels))

    def deliver(self, posterior: Posterior, task: Task) -> Posterior:
        return posterior

    def tile_conditions(
        self, cond: Mapping[str, Tensor], origins: Sequence[tuple[int, ...]], shape: tuple[int, ...]
    ) -> dict[str, Tensor]:
        return {**cond, "place": torch.tensor(origins).float()}


@final
class Cells(Denoiser):
    """Acts on each cell alone, by what the map says there; checks that the place agrees with the map."""

    def __init__(self, field: Tensor, place: Tensor) -> None:
        super().__init__(CosineSchedule())
        self.field = field
        corner = place[:, 0] * (LARGE[1] // 4) + place[:, 1]
        assert torch.equal(field[:, 0, 0, 0], corner)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = self.schedule(t)
        gain = expand(alpha / (alpha**2 + sigma**2), x_t)
        return gain * x_t * (0.8 + 0.2 * torch.sin(self.field))


@pytest.fixture(scope="module")
def prior() -> Prior:
    torch.manual_seed(0)
    codec = PlaneCodec()
    stats = LatentStats(3)
    stats.mean.copy_(torch.tensor([0.1, -0.2, 0.0]))
    stats.std.copy_(torch.tensor([0.5, 0.8, 1.2]))
    error = AutoencoderError(1, TRAINED)
    error.floor.fill_(0.02)
    error.slope.fill_(0.01)
    error.typical.fill_(0.03)
    error.prior.fill_(1.0)

    def denoiser(request: Request, part: slice) -> Denoiser:
        return Cells(request.cond["map"][part], request.cond["place"][part])

    return Prior(codec, codec.autoencoder(), stats, denoiser, error)


OPERATORS: dict[str, Operator] = {
    "gaps": Identity((1, *LARGE)),
    "thick": ThickSlice((1, *LARGE), axis=2, spacing=1.0, thickness=3.0, gap=1.5),
    "coarse": BlockMean((1, *LARGE), (4, 3)),
    "blur": Blur((1, *LARGE), 0.7),
}


def task_of(operator: Operator, std: float | None = 0.5) -> Task:
    x = 50 + 10 * NOISE.normal([0], (1, *LARGE), stream="truth")
    y = operator(x) + 0.5 * NOISE.normal([0], operator.out_shape, stream="errors")
    if isinstance(operator, Identity):
        y[..., 1::4] = torch.nan
        y[..., 2::4] = torch.nan
    return PlaneCodec().task(y, operator, noise_std=std)


def settings(solver: PosteriorSolver | None = None, **options: Any) -> Settings:
    return Settings(
        samples=2, seed=3, solver=solver or DecodeEncodeSolver(), sampler=default_sampler(3), **options
    )


PARTS = Tiling(box=12)


@pytest.mark.parametrize("shape", [(16, 16), (24, 36), (40, 21)])
def test_boxes_give_the_numbers_and_derivatives_of_the_whole(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    whole = GridAutoencoder(1, TRAINED, replace(SMALL, block_pca=True), edges="replicate")
    for parameter in [*whole.parameters(), whole.pca.basis]:  # type: ignore[union-attr]
        parameter.data += 0.1 * torch.randn(parameter.shape)
    whole = whole.double().eval()
    parts = TiledAutoencoder(whole, box=6)
    values = torch.randn(2, 1, *shape).double()
    weight = torch.rand(2, 1, *shape) + 0.1
    z = whole.code(GridFields(values))[0].detach()
    assert torch.allclose(parts.code(GridFields(values, weight))[0], z, atol=1e-10)
    assert torch.allclose(parts.decode(z), whole.decode(z), atol=1e-10)
    assert torch.allclose(parts.outline(z), whole.outline(z), atol=1e-10)
    v, u = torch.randn_like(z), torch.randn_like(whole.decode(z))
    for got, wanted in ((parts.decode, whole.decode), (parts.outline, whole.outline)):
        assert torch.allclose(torch.func.vjp(got, z)[1](u)[0], torch.func.vjp(wanted, z)[1](u)[0], atol=1e-10)
        assert torch.allclose(
            torch.func.jvp(got, (z,), (v,))[1], torch.func.jvp(wanted, (z,), (v,))[1], atol=1e-10
        )
    pull = [torch.func.vjp(lambda x, c=c: c.code(GridFields(x))[0], values)[1](v)[0] for c in (parts, whole)]
    assert torch.allclose(*pull, atol=1e-10)


@pytest.mark.parametrize("name", OPERATORS)
def test_parts_are_as_good_as_the_whole(name: str, prior: Prior) -> None:
    """A prior that acts on cells alone is not changed by tiles, so neither is anything else."""
    task = task_of(OPERATORS[name])
    got = reconstruct_tiled(task, prior, settings(batch_size=5), tiling=PARTS)
    wanted = reconstruct(task, prior, settings(batch_size=1))
    for part in ("mean", "std", "samples", "null_space"):
        # Conjugate gradients stop at a residual, so rounding may count for more than rounding.
        assert torch.allclose(getattr(got, part), getattr(wanted, part), atol=5e-3), part
    assert torch.allclose(got.chi2, wanted.chi2, rtol=1e-3)
    assert got.details["tiles"]["grid"] == [6, 9]
    assert got.details["evaluations"]["denoiser"] == 3


@pytest.mark.parametrize(
    "solver",
    [
        GaussNewtonSolver(covariance=Tweedie(), rank=0, max_iterations=2),
        HybridSolver(covariance=Isotropic(), rank=2, switch=1.0, max_iterations=2),
    ],
    ids=["gauss-newton", "hybrid"],
)
def test_solvers_with_derivatives_work_in_parts(solver: PosteriorSolver, prior: Prior) -> None:
    task = task_of(OPERATORS["thick"])
    got = reconstruct_tiled(task, prior, settings(solver, batch_size=4), tiling=PARTS)
    wanted = reconstruct(task, prior, settings(solver, batch_size=1))
    assert torch.allclose(got.samples, wanted.samples, atol=5e-3)  # their spread is about 10


def test_same_bytes_again_and_the_same_numbers_in_any_batch_and_order(
    prior: Prior, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(OPERATORS["gaps"])
    first = reconstruct_tiled(task, prior, settings(batch_size=8), tiling=PARTS)
    again = reconstruct_tiled(task, prior, settings(batch_size=8), tiling=PARTS)
    assert torch.equal(first.samples, again.samples)
    assert torch.equal(first.mean, again.mean)
    in_order = TileLayout.tiles

    def reversed_tiles(self: TileLayout, shape: Sequence[int], t: float) -> list[Tile]:
        return in_order(self, shape, t)[::-1]

    scale = float(first.samples.abs().max())
    for size, tiles in ((1, in_order), (8, reversed_tiles)):
        monkeypatch.setattr(TileLayout, "tiles", tiles)
        other = reconstruct_tiled(task, prior, settings(batch_size=size), tiling=PARTS)
        assert float((other.samples - first.samples).abs().max()) < 1e-4 * scale


def test_conditions_and_masks_are_cut_to_the_tile() -> None:
    request = Request(
        (6, 9),
        {"place": torch.zeros(2, 2), "map": torch.arange(108.0).reshape(2, 1, 6, 9)},
        torch.arange(108).reshape(2, 6, 9) % 2 == 0,
        frozenset({"place"}),
    )
    got = tile_request(PlaneCodec(), request, [1, 0, 1], [(0, 0), (2, 5), (1, 3)])
    assert got.shape == (4, 4)
    assert got.always == request.always
    assert torch.equal(got.cond["map"][1], request.cond["map"][0][:, 2:6, 5:9])
    assert torch.equal(got.cond["place"][2], torch.tensor([1.0, 3.0]))
    assert got.mask is not None
    assert request.mask is not None
    assert torch.equal(got.mask[2], request.mask[1][1:5, 3:7])


def test_when_tiles_are_needed(prior: Prior) -> None:
    codec = PlaneCodec()
    for shape, wanted in (((4, 4), False), ((4, 5), True), ((2, 4), False), ((6, 9), True)):
        assert needs_tiles(codec, prior.autoencoder, Request(shape, {})) == wanted
    assert not needs_tiles(codec, LinearAutoencoder(), Request((6, 9), {}))
    with pytest.raises(ConfigError, match="cannot work in parts"):
        TiledAutoencoder(LinearAutoencoder())
    with pytest.raises(ConfigError, match="box"):
        Tiling(box=0)


def volume(*shape: int) -> np.ndarray:
    """A smooth bright spot with a little noise."""
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    noise = NOISE.normal([0], shape, stream="volume")[0].numpy()
    return (500 * np.exp(-2 * sum(a**2 for a in axes)) + 5 * noise + 20).astype(np.float32)


def test_tiles_of_a_volume_are_told_what_patches_are_told_in_training(tmp_path: Path) -> None:
    pytest.importorskip("pydicom")
    import nibabel as nib

    from sciLDM.domains.medical import Medical

    for k in range(3):
        nib.save(nib.Nifti1Image(volume(38, 12, 16), np.eye(4)), tmp_path / f"p{k}.nii")
    settings = {"channels": 4, "widths": (8, 8), "blocks": (0, 0)}
    domain = Medical(str(tmp_path), grid=(16, 16, 16), autoencoder=GridSettings(**settings))
    corpus = domain.prepare(tmp_path / "cache", lambda *_: None)
    codec = domain.codec(corpus.state)
    assert isinstance(codec, FieldCodec)
    scan = volume(38, 12, 16)
    scan[..., 1::2] = np.nan
    task = codec.task(nib.Nifti1Image(scan, np.eye(4)), None, noise_std=1.0)
    assert task.request.shape == (12, 4, 4)
    # The grid is 48 long and begins 5 voxels before the volume; patches begin at 0, 11 and 22.
    labels = corpus.labels("train")
    for first, patch in ((4, 1), (0, 0), (8, 2)):
        got = tile_request(codec, task.request, [0], [(first, 0, 0)])
        own = {name: got.cond[name][0].numpy() for name in ("shape", "position", "spacing")}
        if first == 4:
            assert all(np.allclose(own[name], labels[name][patch], atol=1e-5) for name in own)
        else:  # cut off by the end of the volume
            size = {0: 11.0, 8: 11.0}[first]
            centre = {0: 5.5, 8: 32.5}[first] / 38
            assert np.allclose(own["shape"], [size / 16, 12 / 16, 1])
            assert np.allclose(own["position"], [2 * centre - 1, 0, 0, np.log(38 / size), 0, 0], atol=1e-5)


def test_a_large_volume_is_reconstructed_in_tiles_without_being_asked(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    pytest.importorskip("pydicom")
    import nibabel as nib

    from tests.medical.model import tiny_model

    model = copy.copy(tiny_model(tmp_path_factory))
    model.autoencoder_error = AutoencoderError(1, (16, 16, 16))
    model.autoencoder_error.floor.fill_(0.5)
    scan = volume(10, 38, 12)
    scan[:, 1::2] = np.nan
    seen = nib.Nifti1Image(scan, np.diag([1.0, 1, 2, 1]))
    options: dict[str, Any] = {"noise_std": 5.0, "samples": 2, "steps": 2, "seed": 4}
    one, again, other = (model.reconstruct(seen, batch_size=b, **options) for b in (8, 8, 3))
    assert one.details["Sampling"]["tiles"]["grid"] == [4, 12, 4]
    assert one.draws.shape == (2, 10, 38, 12)
    assert np.array_equal(one.draws, again.draws)
    assert np.abs(one.draws - other.draws).max() < 1e-4 * np.abs(one.draws).max()
    known = np.isfinite(scan)
    assert np.abs(one.arrays["recon"] - scan)[known].mean() < 10.0
