"""Sampling: molecules per second, from noise to latents and from noise to the table that users get."""

import torch
from _common import CLOCKS, Row, parser, print_rows, write_rows

import sciLDM
from sciLDM.model import LatentDiffusion
from sciLDM.rng import NoiseSource

TYPES = {"float32": None, "bfloat16": torch.bfloat16}


def measure(model: LatentDiffusion, count: int, steps: int, repeats: int, clock: str) -> list[Row]:
    """Rows of this benchmark; the best of `repeats`, each with another seed.

    Decoding and the table are timed together: bonds and valences, properties, novelty and nearest neighbours.
    """
    now = CLOCKS[clock]
    sampler = model.experiment.sampler.with_steps(steps)
    latents: dict[str, float] = dict.fromkeys(TYPES, float("inf"))
    table = float("inf")
    for seed in range(1 + repeats):
        for name, dtype in TYPES.items():
            model.to("cpu", dtype=dtype)
            noise, ids = NoiseSource(seed), range(count)
            start = now()
            request = model.codec.plan(count, {}, noise, ids)
            z = model.sample_latents(request, ids, noise, sampler=sampler)
            sampled = now()
            model.codec.decode(model.autoencoder, z, request, reference=model.reference)
            if seed:  # the first one also reads the reference molecules
                latents[name] = min(latents[name], sampled - start)
                table = min(table, now() - sampled)
    rows = []
    for name, seconds in latents.items():
        what = f"{steps} steps, {name}"
        rows.append(Row(f"sample, {what}, latents alone", count / seconds, "molecules/s"))
        rows.append(Row(f"sample, {what}, with decoding and table", count / (seconds + table), "molecules/s"))
    return [*rows, Row("decoding and table alone", count / table, "molecules/s", note=f"{count} samples")]


def main() -> None:
    arguments = parser(__doc__ or "")
    arguments.add_argument("model", nargs="?", default="qm9-small", help="shipped model or run folder")
    arguments.add_argument("--count", type=int, default=1024, help="molecules (default: 1024)")
    arguments.add_argument("--steps", type=int, default=20, help="denoiser calls a molecule (default: 20)")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    model = sciLDM.load(options.model)
    sizes = (32, 2, 1) if options.quick else (options.count, options.steps, min(options.repeats, 3))
    rows = measure(model, *sizes, clock=options.clock)
    print_rows(rows)
    write_rows(rows, options.json)


if __name__ == "__main__":
    main()
