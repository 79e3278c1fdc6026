"""Cases of a gap-filling study: windows of held-out states, and what was observed of them."""

from dataclasses import dataclass
from typing import final

import numpy as np
from jaxtyping import Bool, Float

from sciLDM.domains.climate.baselines import normal
from sciLDM.domains.climate.calendar import Times
from sciLDM.domains.climate.evaluation_data import StudyData, spread_over
from sciLDM.domains.climate.evaluation_masks import observing_masks
from sciLDM.rng import NoiseSource

__all__ = ["Windows", "observe"]


@final
@dataclass(frozen=True, eq=False)
class Windows:
    """Cases of a study.

    Attributes:
        truth: In the data's units, NaN where unknown.
        observed: With errors, in the data's units, NaN where not observed.
        seen: Where there is an observation.
        anomalies: Of the observed values.
        error: Standard deviation of the observation errors, as anomalies.
        times: Dates, `[case, state]`.
        first: Number of the first case, for seeds.
    """

    truth: Float[np.ndarray, "case state value"]
    observed: Float[np.ndarray, "case state value"]
    seen: Bool[np.ndarray, "case state value"]
    anomalies: Float[np.ndarray, "case state value"]
    error: Float[np.ndarray, "case state value"]
    times: Times

    @property
    def hidden(self) -> Float[np.ndarray, "case state value"]:
        """The truth where it was not observed."""
        return np.where(self.seen, np.nan, self.truth)


def observe(
    study: StudyData, name: str, kind: str, fraction: float, count: int | None, noise_std: float, seed: int
) -> Windows:
    """Windows of a period, observed."""
    period, frames = study.periods[name], study.codec.frames
    starts = spread_over(period.starts(frames), count, frames)
    rows = starts[:, None] + np.arange(frames)
    truth = study.row(period.values[rows]).astype(np.float32)
    times = Times(period.times.seconds[rows], period.times.calendar, period.times.dtype)
    _, at_row, at_column = np.nonzero(study.exists)
    ids = period.times.seconds[rows].ravel()
    ids = np.round((ids - ids.min()) / max(study.codec.asked.step.seconds, 1.0)).astype(int)
    # Channels of one place are observed together.
    places, where = np.unique(np.stack([at_row, at_column], 1), axis=0, return_inverse=True)
    masks = observing_masks(
        kind, fraction, places.astype(float), study.codec.template.grid.shape, ids, seed=seed
    )
    seen = masks[:, where.ravel()].reshape(truth.shape) & np.isfinite(truth)
    numbers = (rows[:, 0] + (10_000_000 if name == "test" else 0)).tolist()
    errors = normal(NoiseSource(seed).fork("observation errors"), numbers, truth.shape[1:])
    observed = np.where(seen, truth + noise_std * errors, np.nan).astype(np.float32)
    return Windows(
        truth, observed, seen, study.from_units(observed, times), noise_std / study.spread(times), times
    )
