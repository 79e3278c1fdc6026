r"""Variants of an object that are as like it as asked: a dial in the units of a similarity instead of `strength`.

How like a variant is to its object depends on both, and is only known once it is made. So variants are drawn at several
strengths, measured, and those kept whose similarity is nearest to what was asked; objects that come twice, and the
object itself, are left out. A large similarity is met by small strengths, a small one by large ones.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from sciLDM.errors import ConfigError, DataError
from sciLDM.explore.editing import edit_latents
from sciLDM.explore.native import Encoded, decode, encode
from sciLDM.model import LatentDiffusion
from sciLDM.samplers import Sampler

__all__ = ["variants"]


def variants(
    model: LatentDiffusion,
    lead: Any,
    similarity: float,
    *,
    measure: Callable[[Any, Any], Sequence[float]],
    keys: Callable[[Any], Sequence[Hashable]],
    count: int = 10,
    draws: int = 160,
    strengths: Sequence[float] = (0.25, 0.35, 0.45, 0.55, 0.65, 0.75, 0.85, 0.95),
    cond: Mapping[str, Any] | None = None,
    guidance: float | Mapping[str, float] | None = None,
    sampler: Sampler | None = None,
    seed: int = 0,
) -> Any:
    """Different variants of one object, the one nearest to the similarity asked for first.

    Args:
        model: A trained model.
        lead: One native object.
        similarity: Asked for, in the units of `measure`.
        measure: `measure(lead, variants)`: one number for each; NaN where there is none.
        keys: Tells variants apart, one key for each.
        count: How many at most; fewer where fewer different ones came.
        draws: Variants to draw, spread evenly over the strengths.
        strengths: As for `sciLDM.explore.edit`.
        cond: What else to ask for, in the data's units.
        guidance: As for `model.sample`.
        sampler: Another one than the model's own.
        seed: Of everything.

    Raises:
        ConfigError: Settings out of range.
        DataError: Several leads, or no variant that differs from the lead.
    """
    if count < 1 or draws < len(strengths) or not strengths:
        raise ConfigError(
            f"variants: expected a count from 1 and at least a draw for each strength, got {count} and {draws}"
        )
    start = encode(model, lead, cond=cond)
    if len(start) != 1:
        raise DataError(f"variants: expected one lead, got {len(start)}")
    made: Encoded | None = None
    for k, strength in enumerate(strengths):
        edited = edit_latents(
            model, start, strength, keep=tuple(cond or ()), samples=-(-draws // len(strengths)), guidance=guidance,
            sampler=sampler, seed=seed * 1009 + k,
        )  # fmt: skip
        made = edited if made is None else made.joined(edited)
    assert made is not None, "there are strengths"
    native = decode(model, made)
    off = np.abs(np.asarray(measure(lead, native), dtype=float) - similarity)
    seen: set[Hashable] = set(keys(decode(model, start)))
    named, chosen = list(keys(native)), []
    for k in np.argsort(np.nan_to_num(off, nan=np.inf), kind="stable").tolist():
        if len(chosen) < count and np.isfinite(off[k]) and named[k] not in seen:
            seen.add(named[k])
            chosen.append(k)
    if not chosen:
        raise DataError("variants: none differs from the lead; draw more, or allow larger strengths")
    return decode(model, made.rows(chosen))
