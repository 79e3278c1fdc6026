r"""How many atoms a molecule should have: `p(n | properties)`.

Size is the strongest confounder of most properties, and the latent grid needs it before sampling starts. We model
`p(n, c) = p(n) prod_k N(c_k; mu_nk, s_nk^2)`, a Gaussian naive Bayes over the training set, so any subset of
properties may be asked for: those left open drop out of the product.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

__all__ = ["SizePrior"]


@final
@dataclass(frozen=True)
class SizePrior:
    """`p(n | c)` fitted on the training split.

    Attributes:
        atoms: The sizes seen, ascending.
        counts: How often each was seen.
        means: Mean of each property for each size, `{name: [size]}`.
        stds: Standard deviation likewise, pooled with the overall one where a size is rare.
    """

    atoms: Sequence[int]
    counts: Sequence[int]
    means: Mapping[str, Sequence[float]]
    stds: Mapping[str, Sequence[float]]

    @staticmethod
    def fit(sizes: np.ndarray, properties: Mapping[str, np.ndarray]) -> "SizePrior":
        """Fit from heavy-atom counts and property labels (NaN where missing)."""
        atoms, counts = np.unique(sizes, return_counts=True)
        means: dict[str, list[float]] = {}
        stds: dict[str, list[float]] = {}
        for name, values in properties.items():
            known = np.isfinite(values)
            overall_mean, overall_std = values[known].mean(), values[known].std() + 1e-6
            means[name], stds[name] = [], []
            for n in atoms:
                seen = values[known & (sizes == n)]
                # Ten pseudo-observations of the overall distribution keep rare sizes from being over-sure.
                weight = len(seen) / (len(seen) + 10)
                mean = seen.mean() if len(seen) else overall_mean
                std = seen.std() if len(seen) else overall_std
                means[name].append(float(weight * mean + (1 - weight) * overall_mean))
                stds[name].append(float(weight * std + (1 - weight) * overall_std) + 1e-6)
        return SizePrior(atoms.tolist(), counts.tolist(), means, stds)

    def refitted(self, sizes: np.ndarray, properties: Mapping[str, np.ndarray]) -> "SizePrior":
        """The prior of other molecules; a property that none of them has keeps what is known of it for each size."""
        known = {name: values for name, values in properties.items() if np.isfinite(values).any()}
        new = SizePrior.fit(sizes, known)
        nearest = [int(np.abs(np.asarray(self.atoms) - n).argmin()) for n in new.atoms]
        means, stds = (
            {name: new_one[name] if name in known else [old[name][k] for k in nearest] for name in self.means}
            for new_one, old in ((new.means, self.means), (new.stds, self.stds))
        )
        return SizePrior(new.atoms, new.counts, means, stds)

    def draw(self, wanted: Mapping[str, np.ndarray], u: np.ndarray) -> np.ndarray:
        """Sizes for uniform numbers `u` `[count]` in (0, 1), given labels `{name: [count]}` (NaN = left open)."""
        log_p = np.log(np.asarray(self.counts, dtype=float))[None].repeat(len(u), axis=0)
        for name, values in wanted.items():
            mean, std = np.asarray(self.means[name]), np.asarray(self.stds[name])
            # A target far outside the data still picks the size that comes nearest; squares must not overflow.
            z = np.clip((np.asarray(values, dtype=float)[:, None] - mean) / std, -1e100, 1e100)
            log_p += np.where(np.isfinite(z), -0.5 * z**2 - np.log(std), 0.0)
        p = np.exp(log_p - log_p.max(axis=1, keepdims=True))
        cumulative = np.cumsum(p / p.sum(axis=1, keepdims=True), axis=1)
        chosen = np.minimum((cumulative < u[:, None]).sum(axis=1), len(self.atoms) - 1)
        return np.asarray(self.atoms)[chosen]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "atoms": list(self.atoms),
            "counts": list(self.counts),
            "means": {k: list(v) for k, v in self.means.items()},
            "stds": {k: list(v) for k, v in self.stds.items()},
        }

    @staticmethod
    def from_dict(stored: Mapping[str, Any]) -> "SizePrior":
        """Inverse of `to_dict`."""
        return SizePrior(stored["atoms"], stored["counts"], stored["means"], stored["stds"])
