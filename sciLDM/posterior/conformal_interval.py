r"""Split-conformal intervals of derived quantities: volumes, regional means, extremes.

Calibrated voxels do not make calibrated sums, since their errors are correlated. Here the quantity itself is
calibrated: with one score `s = |fn(x) - mean| / std` a case, and `q` the `ceil((K + 1) level)`-th smallest of the `K`
scores, `mean +- q std` covers the value of a new, exchangeable case with probability at least `level` (and, without
ties, less than `level + 1 / (K + 1)`), whatever the model (Lei et al. 2018, arXiv:1604.04173).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import ConfigError, DataError, ShapeMismatch
from sciLDM.posterior.conformal import LEVELS, check_levels, pairs, quantile, scores
from sciLDM.posterior.result import Posterior

__all__ = ["ConformalInterval"]

_FORMAT = 1


@final
@dataclass(frozen=True)
class ConformalInterval:
    """Calibrated intervals of one derived quantity, such as a volume or a regional mean.

    Made by `fit` or `from_state`.

    Attributes:
        family: Operator family.
        cases: Calibration cases.
        quantiles: Score by level, one per value of `fn` (flattened).
    """

    family: str
    cases: int
    quantiles: Mapping[float, tuple[float, ...]]

    @staticmethod
    def fit(
        fn: Callable[[Tensor], Tensor],
        posteriors: Sequence[Posterior],
        truths: Sequence[Float[Tensor, "case channel *grid"]],
        *,
        family: str,
        levels: Sequence[float] = LEVELS,
    ) -> "ConformalInterval":
        """Calibrate on cases that neither training nor tuning has seen.

        Args:
            fn: `[batch, channel, *grid]` to `[batch, *value]`, row by row.
            posteriors: Reconstructions, at least two samples each; calibrated or not, but always alike.
            truths: Complete fields in the same units.
            family: Operator family.
            levels: Nominal coverages; those that this number of cases cannot support are refused.

        Raises:
            ConfigError: Levels out of range.
            DataError: Too few cases for a level, or an ensemble without spread.
        """
        check_levels(levels)
        rows = [scores(fn(x), *_moments(fn, p)).reshape(len(x), -1) for p, x in pairs(posteriors, truths)]
        found = torch.cat(rows)
        if bool(found.isnan().any()):
            raise DataError("a derived quantity is NaN for a truth or for samples; leave those cases out")
        quantiles = {
            level: tuple(
                quantile(list(column.unflatten(0, (-1, 1))), level, True, f"{family!r}, value {k}")
                for k, column in enumerate(found.T)
            )
            for level in levels
        }
        return ConformalInterval(family, len(found), quantiles)

    def interval(
        self, fn: Callable[[Tensor], Tensor], posterior: Posterior, level: float = 0.9
    ) -> tuple[Float[Tensor, "case *value"], Float[Tensor, "case *value"]]:
        """`mean -+ q std` of `fn` over the samples, for the `fn` of the calibration.

        Raises:
            ConfigError: A level that was not calibrated.
            ShapeMismatch: `fn` gives another number of values.
        """
        if level not in self.quantiles:
            raise ConfigError(f"not calibrated at level {level} (calibrated at {sorted(self.quantiles)})")
        mean, std = _moments(fn, posterior)
        q = torch.tensor(self.quantiles[level]).to(mean)
        if q.numel() != mean[0].numel():
            raise ShapeMismatch(f"fn gives {mean[0].numel()} values a case, {q.numel()} were calibrated")
        half = q.reshape(mean.shape[1:]) * std
        return mean - half, mean + half

    def state(self) -> dict[str, Any]:
        """Plain JSON."""
        quantiles = {str(level): list(q) for level, q in self.quantiles.items()}
        return {"format": _FORMAT, "family": self.family, "cases": self.cases, "quantiles": quantiles}

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> "ConformalInterval":
        """Inverse of `state`.

        Raises:
            DataError: Written by a newer version, or damaged.
        """
        try:
            if state["format"] != _FORMAT:
                raise ValueError(f"format {state['format']}")
            quantiles = {float(v): tuple(map(float, q)) for v, q in state["quantiles"].items()}
            return ConformalInterval(str(state["family"]), int(state["cases"]), quantiles)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"the stored calibration is damaged ({error!r}); calibrate again") from error


def _moments(fn: Callable[[Tensor], Tensor], posterior: Posterior) -> tuple[Tensor, Tensor]:
    values = fn(posterior.samples.flatten(0, 1)).unflatten(0, posterior.samples.shape[:2])
    if values.shape[1] < 2:
        raise DataError("a derived quantity needs at least 2 samples a case for its spread; draw more")
    return values.mean(dim=1), values.std(dim=1)
