r"""A volume larger than the trained grid, three of four slices lost, rebuilt by tiles: memory, time, seams.

A seam would be a jump of the error `recon - truth` where a tile of the last noise level begins. Latent cells are blocks
of voxels and errors always jump a little from block to block, so borders of tiles are held against all other borders of
blocks. A smaller copy is rebuilt with two numbers of tiles at once, whose results must agree.
"""

import resource
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from _common import Row, parser, print_rows, write_rows
from scipy.ndimage import zoom

from sciLDM import load
from sciLDM.domains.medical import Volume, keep_slices
from sciLDM.domains.medical.volume import from_array
from sciLDM.guidance.tiled import TileLayout
from sciLDM.model import LatentDiffusion
from sciLDM.posterior.sampling import default_sampler
from sciLDM.posterior.tiled import Tiling

NOISE = 0.01
GIB = 2**20


def cube(path: Path, side: int) -> Volume:
    """A volume scaled to fill a cube and padded to it."""
    image = nib.as_closest_canonical(nib.load(path))
    data = np.asarray(image.dataobj, dtype=np.float32)
    scale = side / max(data.shape)
    small = zoom(data, scale, order=1)[:side, :side, :side]
    before = [(side - n) // 2 for n in small.shape]
    padded = np.pad(small, [(b, side - n - b) for b, n in zip(before, small.shape, strict=True)])
    return from_array(padded, np.diag([1 / scale, 1 / scale, 1 / scale, 1.0]), name=path.stem)


def rebuilt(
    model: LatentDiffusion, volume: Volume, steps: int, samples: int, batch: int
) -> tuple[np.ndarray, float, float]:
    """Mean, chi-square and seconds."""
    began = time.monotonic()
    found = model.reconstruct(
        keep_slices(volume, axis=2, every=4),
        noise_std=NOISE * float(np.ptp(volume.data)),
        samples=samples,
        steps=steps,
        batch_size=batch,
        paired=True,
        progress=lambda done, total: print(f"{done} of {total}, peak {peak():.2f} GiB", flush=True),
    )
    return found.arrays["recon"], float(found.chi2), time.monotonic() - began


def peak() -> float:
    """Peak memory of the process [GiB]."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB


def agreement(model: LatentDiffusion, volume: Volume, batch: int) -> Row:
    """The same samples, with another number of tiles at once."""
    means = [rebuilt(model, volume, 2, 2, count)[0] for count in (batch, 5)]
    differ = float(np.abs(means[0] - means[1]).max() / np.ptp(volume.data))
    return Row("batches of tiles: largest difference, of the range", differ, "1", at_most=1e-4)


def seams(error: np.ndarray, model: LatentDiffusion, steps: int) -> float:
    """Mean absolute jump of the error across borders of tiles over that across all other borders of blocks."""
    codec = model.codec
    cells = tuple(codec.shape)
    factor = [n // c for n, c in zip(codec.grid, cells, strict=True)]  # type: ignore[attr-defined]
    shape = tuple(n // f for n, f in zip(error.shape, factor, strict=True))
    sampler = default_sampler(steps)
    last = sampler.grid(model.denoiser.schedule, steps)[-1]
    tiling = Tiling()
    tiles = TileLayout(cells, tiling.overlap, tiling.shift).tiles(shape, float(last))
    within, across = [], []
    for axis, f in enumerate(factor):
        borders = {edge for tile in tiles for edge in tile.box[axis]} - {0, shape[axis]}
        jump = np.abs(np.diff(error, axis=axis)).mean(axis=tuple(k for k in range(3) if k != axis))
        for cell in range(1, shape[axis]):
            (across if cell in borders else within).append(jump[cell * f - 1])
    return float(np.mean(across) / np.mean(within))


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("run", help="a trained medical model")
    arguments.add_argument("volume", type=Path, help="a NIfTI file, say the MNI152 template")
    arguments.add_argument("--side", type=int, default=256)
    arguments.add_argument(
        "--small", type=int, default=80, help="side of the copy that is rebuilt twice; 0: none"
    )
    arguments.add_argument("--steps", type=int, default=5)
    arguments.add_argument("--samples", type=int, default=2)
    arguments.add_argument("--batch", type=int, default=16, help="tiles at once")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    model = load(options.run)
    steps = 2 if options.quick else options.steps

    rows = []
    if options.small:
        rows.append(agreement(model, cube(options.volume, options.small), options.batch))
    volume = cube(options.volume, options.small if options.quick and options.small else options.side)
    recon, chi2, seconds = rebuilt(model, volume, steps, options.samples, options.batch)
    error, scale = recon - volume.data, float(np.ptp(volume.data))
    lost = np.ones(volume.shape[2], dtype=bool)
    lost[::4] = False
    mse = float(np.square(error[..., lost] / scale).mean())
    size = " x ".join(map(str, volume.shape))
    rows += [
        Row(f"{size}: peak memory of the process", peak(), "GiB", at_most=8.0),
        Row(f"{size}: {options.samples} samples of {steps} steps", seconds, "s"),
        Row(f"{size}: jumps at tile borders over others", seams(error, model, steps), "1", at_most=1.05),
        Row(f"{size}: PSNR in three of four slices", -10 * np.log10(mse), "dB"),
        Row(f"{size}: chi-square", chi2, "1"),
    ]
    print_rows(rows)
    write_rows(rows, options.json)


if __name__ == "__main__":
    main()
