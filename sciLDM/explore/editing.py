r"""Edits: noise an object to some level and denoise it under new conditions (SDEdit, Meng et al. 2022, 2108.01073).

`strength` is the angle between clean and noise, in units of a right angle, whatever the schedule:

    sigma / alpha = tan(pi strength / 2),        x_t ~ cos(pi strength / 2) x + sin(pi strength / 2) eps.

At 0.5 there is as much noise as signal. For a schedule of cosine form it is the time `t` itself. As it goes to 0 the
input comes back; 1 is a free sample, equal to that of `model.sample` with the same seed and request. With latents
`N(m, C)` and a stochastic sampler the edits of `x` are `N(m + K a (x - m), C - K a C)`, `K = a C (a^2 C + s^2)^-1`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import pi, tan
from typing import Any

import torch

from sciLDM.errors import ConfigError
from sciLDM.explore.native import Encoded, decode, encode, told
from sciLDM.explore.resume import resume
from sciLDM.model import LatentDiffusion
from sciLDM.rng import NoiseSource
from sciLDM.samplers import Sampler
from sciLDM.schedules import Schedule

__all__ = ["edit", "edit_latents", "noise_time", "opened"]


def edit(
    model: LatentDiffusion,
    objects: Any,
    strength: float,
    *,
    cond: Mapping[str, Any] | None = None,
    hold: Sequence[str] = (),
    samples: int = 1,
    guidance: float | Mapping[str, float] | None = None,
    sampler: Sampler | None = None,
    seed: int = 0,
    batch_size: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> Any:
    """Variants of objects: as different as `strength` allows, under new conditions.

    Args:
        model: A trained model.
        objects: Native objects (or `Encoded`, without `cond`).
        strength: In (0, 1]; see the module's docstring.
        cond: What to ask for, in the data's units: one value, or one for each object.
        hold: Conditions kept at the object's own value. All others are left open, but for those that are always
            given (the number of atoms).
        samples: Variants of each object.
        guidance: As for `model.sample`.
        sampler: Another one than the model's own; the levels of its grid below `strength` are used.
        seed: Variant `k` of object `i` depends on `(seed, i * samples + k)` and its object alone.
        batch_size: Variants computed at once.
        progress: `progress(done, total)` in variants.

    Returns:
        Native objects, the variants of each object together, in the order of the objects.

    Raises:
        ConfigError: Settings out of range, an unknown condition, or one that cannot be held.
        DataError: Objects that the model cannot represent.
    """
    check_strength(strength)
    made = edit_latents(
        model, encode(model, objects, cond=cond), strength, keep=(*(cond or {}), *hold), samples=samples,
        guidance=guidance, sampler=sampler, seed=seed, batch_size=batch_size, progress=progress,
    )  # fmt: skip
    return decode(model, made)


@torch.no_grad()
def edit_latents(
    model: LatentDiffusion,
    encoded: Encoded,
    strength: float,
    *,
    keep: Sequence[str] = (),
    samples: int = 1,
    guidance: float | Mapping[str, float] | None = None,
    sampler: Sampler | None = None,
    seed: int = 0,
    batch_size: int = 512,
    progress: Callable[[int, int], None] | None = None,
) -> Encoded:
    """As `edit`, on latents. `keep` names the labels of the request that the denoiser is told.

    Raises:
        ConfigError: Settings out of range, or a label that the request does not have.
    """
    check_strength(strength)
    if samples < 1 or batch_size < 1:
        raise ConfigError(f"samples and batch_size must be at least 1, got {samples} and {batch_size}")
    start = opened(model, encoded, keep).rows([k for k in range(len(encoded)) for _ in range(samples)])
    sampler, noise, made = sampler or model.experiment.sampler, NoiseSource(seed), []
    for first in range(0, len(start), batch_size):
        part = slice(first, min(first + batch_size, len(start)))
        denoiser, ids = model.guided(start.request, part, guidance), range(part.start, part.stop)
        if strength == 1:
            shape = tuple(start.z.shape[1:])
            made.append(sampler(denoiser, shape, noise=noise, ids=ids, device=start.z.device))
        else:
            t = noise_time(denoiser.schedule, strength)
            made.append(resume(sampler, denoiser, start.z[part], t, noise=noise, ids=ids))
        if progress is not None:
            progress(part.stop, len(start))
    return Encoded(torch.cat(made), start.request)


def noise_time(schedule: Schedule, strength: float) -> float:
    """Time at which `sigma / alpha = tan(pi strength / 2)`, held inside the schedule's own range.

    Raises:
        ConfigError: A strength outside (0, 1].
    """
    check_strength(strength)
    if strength == 1:
        return 1.0
    lmbda = -torch.tensor(tan(pi * strength / 2), dtype=torch.float64).log()
    return float(schedule.t_of_lmbda(lmbda))


def check_strength(strength: float) -> None:
    """Refuse what is no strength."""
    if not 0 < strength <= 1:
        raise ConfigError(
            f"strength: expected a number above 0 (hardly changed) and up to 1 (a free sample), got {strength}"
        )


def opened(model: LatentDiffusion, encoded: Encoded, keep: Sequence[str]) -> Encoded:
    """The same objects with all labels left open but those in `keep` and those always given.

    Raises:
        ConfigError: A label that the objects do not have.
    """
    request, known = encoded.request, {c.name: c for c in model.codec.conditions}
    for name in keep:
        if name not in request.cond:
            raise ConfigError(
                f"cannot hold {name!r}: the objects do not tell it; known of them: "
                f"{', '.join(n for n, label in request.cond.items() if told(label)) or 'nothing'}"
            )
    kept = {*keep, *request.always}
    cond = {name: label if name in kept else known[name].null(label) for name, label in request.cond.items()}
    return Encoded(encoded.z, replace(request, cond=cond))
