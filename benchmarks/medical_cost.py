r"""What a medical model costs: a posterior of a small patch; training steps, samples and memory beside MONAI's.

MONAI's `AutoencoderKL` and `DiffusionModelUNet` get as many parameters as ours, the same volumes, batch, optimiser
(AdamW) and bfloat16 autocast, and the same compression (a quarter of the voxels an axis, as many latent channels). Both
denoisers are trained on the latents of our autoencoder with the same objective, so that their held-out errors compare.
"""

import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from _common import CLOCKS, Row, interleave
from torch import Tensor, nn
from torch.nn.functional import pad

from sciLDM.autoencoders.grid import GridFields
from sciLDM.denoiser import NetDenoiser
from sciLDM.domains.medical import Volume, crop, keep_slices
from sciLDM.domains.medical.sources import read_entry
from sciLDM.model import LatentDiffusion, load
from sciLDM.rng import NoiseSource

__all__ = ["costs"]

OURS, MONAI = "ours", "MONAI"
SIDE = 32
BATCH = 4
RATE = {OURS: 2e-3, MONAI: 5e-4}
"""Learning rates of autoencoders: ours as configured, MONAI's as fast as it trains without spikes."""
DENOISER_RATE = 1e-3
KL = 1e-6
STEPS = 25
_STATUS = Path("/proc/self/status")


@final
class MonaiDenoiser(nn.Module):
    """`DiffusionModelUNet` called as our networks are; odd grids are padded, since it halves them."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        from monai.networks.nets import DiffusionModelUNet

        self.net = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=channels,
            out_channels=channels,
            num_res_blocks=1,
            channels=(width, 2 * width),
            attention_levels=(False, False),
            norm_num_groups=8,
            num_head_channels=8,
        )

    def forward(self, x: Tensor, level: Tensor, *_: Any) -> Tensor:
        odd = [n % 2 for n in reversed(x.shape[2:])]
        padded = pad(x, [k for n in odd for k in (0, n)], mode="replicate")
        return self.net(padded, 1000 * level)[..., : x.shape[2], : x.shape[3], : x.shape[4]]


def monai_autoencoder(channels: int, width: int) -> nn.Module:
    """Three levels, hence a quarter of the voxels along each axis."""
    from monai.networks.nets import AutoencoderKL

    return AutoencoderKL(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        channels=(width, 2 * width, 4 * width),
        num_res_blocks=(1, 1, 1),
        attention_levels=(False, False, False),
        latent_channels=channels,
        norm_num_groups=8,
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
    )


@final
@dataclass(frozen=True)
class Contender:
    """Both networks of one side.

    Attributes:
        autoencoder: Fresh.
        denoiser: Fresh.
        loss: Of an autoencoder, for network units `[batch, 1, x, y, z]`.
        rebuild: Without noise.
        decode: From latents.
    """

    autoencoder: nn.Module
    denoiser: NetDenoiser
    loss: Callable[[GridFields], Tensor]
    rebuild: Callable[[GridFields], Tensor]
    decode: Callable[[Tensor], Tensor]


def ours(model: LatentDiffusion) -> Contender:
    """As the model's configuration builds them, untrained; the denoiser starts from its Gaussian if it has one."""
    autoencoder: Any = model.codec.autoencoder()
    experiment = model.experiment
    net = experiment.network.build(autoencoder.latent_channels, model.codec.shape, ())
    denoiser = NetDenoiser(net, experiment.schedule, experiment.parametrisation, start=model.denoiser.start)
    generator = torch.Generator().manual_seed(0)

    def loss(fields: GridFields) -> Tensor:
        return (
            torch.stack([v for k, v in autoencoder.loss(fields, generator).items() if k[0] != "_"])
            .sum(0)
            .mean()
        )

    def rebuild(fields: GridFields) -> Tensor:
        return autoencoder.decode(autoencoder.code(fields)[0], None)

    return Contender(autoencoder, denoiser, loss, rebuild, lambda z: autoencoder.decode(z, None))


def monai(model: LatentDiffusion) -> Contender:
    """With about as many parameters."""
    mine = ours(model)
    channels = model.autoencoder.latent_channels
    autoencoder: Any = _of_size(lambda w: monai_autoencoder(channels, w), mine.autoencoder)
    net = _of_size(lambda w: MonaiDenoiser(channels, w), mine.denoiser.net)
    denoiser = NetDenoiser(net, model.experiment.schedule, model.experiment.parametrisation)

    def loss(fields: GridFields) -> Tensor:
        back, mean, spread = autoencoder(fields.values)
        weight = fields.weight if fields.weight is not None else torch.ones_like(back)
        fit = ((back.float() - fields.values).square() * weight).sum() / weight.sum()
        kl = 0.5 * (mean.square() + spread.square() - spread.square().log() - 1).flatten(1).sum(1).mean()
        return fit + KL * kl

    def rebuild(fields: GridFields) -> Tensor:
        return autoencoder.decode(autoencoder.encode(fields.values)[0])

    return Contender(autoencoder, denoiser, loss, rebuild, autoencoder.decode)


def _of_size(build: Callable[[int], nn.Module], like: nn.Module) -> nn.Module:
    """The width, a multiple of 8, with the nearest number of parameters."""
    wanted, widths = count(like), range(8, 129, 8)
    with torch.device("meta"):
        off = {width: abs(count(build(width)) - wanted) for width in widths}
    return build(min(widths, key=lambda width: off[width]))


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


CONTENDERS: Mapping[str, Callable[[LatentDiffusion], Contender]] = {OURS: ours, MONAI: monai}


def costs(
    model: LatentDiffusion, cache: Path, minutes: float, *, repeats: int, clock: str, quick: bool
) -> list[Row]:
    """All rows; MONAI's are left out where it is not installed."""
    corpus: Any = model.experiment.domain.prepare(cache, lambda *_: None)
    rows = [patch_row(model, [read_entry(e) for e in corpus.files("test")], clock, quick=quick)]
    fields = {split: corpus.fields(split, np.arange(min(n, 128))) for split, n in corpus.sizes.items()}
    contenders: dict[str, Contender] = {}
    for name, build in CONTENDERS.items():
        try:
            torch.manual_seed(0)
            contenders[name] = build(model)
        except ImportError as error:
            print(f"a peer is left out: {error}. Do `pip install -r benchmarks/requirements.txt`")
    rows += _speeds(contenders, fields["train"], model, repeats=1 if quick else repeats, clock=clock)
    rows += _memory(model, list(contenders))
    seconds = 1.0 if quick else 60 * minutes
    return rows + _errors(contenders, fields, model, seconds, CLOCKS[clock])


def patch_row(model: LatentDiffusion, volumes: Sequence[Volume], clock: str, *, quick: bool) -> Row:
    """16 samples of a patch of 32^3 voxels of which three of four slices are lost."""
    whole = next(v for v in volumes if min(v.shape) >= SIDE)
    patch = crop(whole, [(n - SIDE) // 2 for n in whole.shape], (SIDE,) * 3)
    now = CLOCKS[clock]
    begin = now()
    model.reconstruct(
        keep_slices(patch, axis=2, every=4),
        noise_std=0.01 * float(np.ptp(patch.data)),
        samples=2 if quick else 16,
        steps=2 if quick else None,
    )
    note = f"model grid {' x '.join(map(str, model.codec.grid))}"  # type: ignore[attr-defined]
    return Row("posterior of a 32^3 patch, 16 samples", now() - begin, "s", at_most=60.0, note=note)


def _speeds(
    contenders: Mapping[str, Contender],
    fields: GridFields,
    model: LatentDiffusion,
    *,
    repeats: int,
    clock: str,
) -> list[Row]:
    latent = torch.randn(BATCH, model.autoencoder.latent_channels, *model.codec.shape)
    works: dict[str, dict[str, Callable[[], object]]] = {
        "autoencoder step": {
            n: _step(c.autoencoder, lambda c=c: c.loss(_part(fields, 0))) for n, c in contenders.items()
        },
        "denoiser step": {
            n: _step(c.denoiser, lambda c=c: _denoising(c, model, latent, torch.Generator().manual_seed(0)))
            for n, c in contenders.items()
        },
        f"{BATCH} samples of {STEPS} steps": {n: lambda c=c: _sample(c, model) for n, c in contenders.items()},
    }  # fmt: skip
    rows = []
    for what, calls in works.items():
        seconds = interleave(calls, repeats=repeats, clock=clock)  # type: ignore[arg-type]
        for name, value in seconds.items():
            net = contenders[name].autoencoder if what.startswith("auto") else contenders[name].denoiser.net
            rows.append(Row(f"{what}, {name}", value, "s", note=f"{count(net) / 1e6:.2f} M parameters"))
        if MONAI in seconds:
            rows.append(Row(f"{what}, time of MONAI over ours", seconds[MONAI] / seconds[OURS], "1", 2.0))
    return rows


def _memory(model: LatentDiffusion, names: Sequence[str]) -> list[Row]:
    """Each in a process of its own, so that peaks do not mix; Linux only."""
    if model.reference is None or not _STATUS.exists():
        return []
    rows = []
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for name in names:
            for what in ("autoencoder step", "sampling"):
                used = pool.apply(_peak, (str(model.reference.parent), name, what))
                rows.append(
                    Row(f"{what}, peak memory, {name}", used, "GiB", note="above what was there before")
                )
    return rows


def _peak(run: str, name: str, what: str) -> float:
    torch.set_num_threads(1)
    model = load(run)
    contender = CONTENDERS[name](model)
    before = _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of what came before
    if what == "sampling":
        _sample(contender, model)
    else:
        fields = GridFields(torch.randn(BATCH, 1, *model.codec.grid))  # type: ignore[attr-defined]
        _step(contender.autoencoder, lambda: contender.loss(fields))()
    return _resident("VmHWM") - before


def _resident(name: str) -> float:
    """Memory of this process in GiB: `VmRSS` now, `VmHWM` at its peak."""
    line = next(s for s in _STATUS.read_text().splitlines() if s.startswith(f"{name}:"))
    return float(line.split()[1]) / 2**20


def _errors(
    contenders: Mapping[str, Contender],
    fields: Mapping[str, GridFields],
    model: LatentDiffusion,
    seconds: float,
    now: Callable[[], float],
) -> list[Row]:
    """Held-out errors after the same time."""
    rows = []
    with torch.no_grad():
        latents = {
            split: torch.cat([_latents(model, _part(f, k)) for k in range(0, len(f.values), BATCH)])
            for split, f in fields.items()
        }
    for name, contender in contenders.items():
        begin = now()
        if name == OURS:
            batches = [_part(fields["train"], k) for k in range(0, len(fields["train"].values), BATCH)]
            contender.autoencoder.prepare(batches)  # type: ignore[operator]
        make = lambda k, c=contender: c.loss(_part(fields["train"], k))  # noqa: E731
        steps = _train(contender.autoencoder, make, RATE[name], seconds - (now() - begin), now)
        psnr = _psnr(contender, fields["test"])
        rows.append(
            Row(
                f"autoencoder after {seconds:.0f} s, {name}, held-out PSNR", psnr, "dB", note=f"{steps} steps"
            )
        )
        generator = torch.Generator().manual_seed(1)
        z = latents["train"]
        make = lambda k, c=contender, g=generator, z=z: _denoising(c, model, _rows(z, k), g)  # noqa: E731
        steps = _train(contender.denoiser, make, DENOISER_RATE, seconds, now)
        error = _held_out(contender, model, latents["test"])
        rows.append(
            Row(
                f"denoiser after {seconds:.0f} s, {name}, held-out v error",
                error,
                "1",
                note=f"{steps} steps; 1: none",
            )
        )
    return rows


def _train(
    net: nn.Module, loss: Callable[[int], Tensor], rate: float, seconds: float, now: Callable[[], float]
) -> int:
    optimiser = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    begin, steps = now(), 0
    net.train()
    while (spent := (now() - begin) / max(seconds, 1e-9)) < 1:
        optimiser.param_groups[0]["lr"] = rate * min(1.0, (steps + 1) / 20) * (1 - spent)
        with torch.autocast("cpu", torch.bfloat16):
            value = loss(steps * BATCH)
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        steps += 1
    net.eval()
    return steps


def _step(net: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-6)

    def run() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            value = loss()
        value.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return run


def _denoising(c: Contender, model: LatentDiffusion, z: Tensor, generator: torch.Generator) -> Tensor:
    objective = model.experiment.objective
    return objective(c.denoiser, z, objective.draw(z, 0, generator)).mean()


@torch.no_grad()
def _sample(c: Contender, model: LatentDiffusion) -> Tensor:
    shape = (model.autoencoder.latent_channels, *model.codec.shape)
    sampler = model.experiment.sampler.with_steps(STEPS)
    return c.decode(
        sampler(c.denoiser, shape, noise=NoiseSource(0), ids=range(BATCH), device=torch.device("cpu"))
    )


@torch.no_grad()
def _psnr(c: Contender, fields: GridFields) -> float:
    """Mean over volumes; the range is 2."""
    found = []
    for k in range(0, len(fields.values), BATCH):
        part = _part(fields, k)
        weight = torch.ones_like(part.values) if part.weight is None else part.weight
        square = ((c.rebuild(part) - part.values).square() * weight).flatten(1).sum(1) / weight.flatten(
            1
        ).sum(1)
        found.append(10 * torch.log10(4 / square))
    return float(torch.cat(found).mean())


@torch.no_grad()
def _held_out(c: Contender, model: LatentDiffusion, z: Tensor) -> float:
    """The objective at its own levels, the same noise for all."""
    generator = torch.Generator().manual_seed(2)
    values = [_denoising(c, model, z[k : k + BATCH], generator) for k in range(0, len(z), BATCH)]
    return float(torch.stack(values).mean())


def _latents(model: LatentDiffusion, fields: GridFields) -> Tensor:
    return model.stats.normalise(model.autoencoder.code(fields)[0])


def _rows(x: Tensor, k: int) -> Tensor:
    return x[(torch.arange(BATCH) + k) % len(x)]


def _part(fields: GridFields, k: int) -> GridFields:
    """`BATCH` rows from row `k`, going round."""
    weight = None if fields.weight is None else _rows(fields.weight, k)
    return GridFields(_rows(fields.values, k), weight)
