r"""Quantities predicted from few labels: a Gaussian process on what the denoiser makes of the user's objects.

Features are standardised `activations`; `GaussianProcess` chooses kernel and noise. Objects kept apart turn its
standard deviations into split-conformal intervals `mu +- q s`, with `q` the `ceil((K + 1) level)`-th smallest of the
`K` scores `|y - mu| / s` (Lei et al. 2018, arXiv:1604.04173): whatever the process gets wrong, a share of at least
`level` of new, exchangeable objects lies inside. So these objects are used for nothing else.

    probe = explore.fit_probe(model, smiles, gaps)
    probe.predict(model, ["CCO"]).mean
"""

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.errors import ConfigError, DataError
from sciLDM.evaluate.gaussian_process import GaussianProcess
from sciLDM.explore.activations import activations
from sciLDM.explore.native import encode
from sciLDM.model import LatentDiffusion

__all__ = ["Prediction", "Probe", "conformal_quantile", "fit_probe", "scaled", "split_labelled"]

_FEWEST, _MOST = 20, 10_000


@final
@dataclass(frozen=True)
class Prediction:
    """Predicted numbers, one an object, in the user's units.

    Attributes:
        mean: Best estimate.
        low: Lower end of the interval.
        high: Upper end.
        level: Share of new, exchangeable objects whose value lies inside, at least.
    """

    mean: Float[np.ndarray, " objects"]
    low: Float[np.ndarray, " objects"]
    high: Float[np.ndarray, " objects"]
    level: float


@final
class Probe:
    """A fitted process with its calibration. Made by `fit_probe`.

    Attributes:
        mae: Mean absolute error on the objects kept apart.
        mae_constant: The same of the mean of the others.
        count: Objects with a value.
        scores: Conformal scores of the objects kept apart, ascending.
    """

    def __init__(
        self,
        process: GaussianProcess,
        scale: tuple[Tensor, Tensor],
        scores: Float[np.ndarray, " held"],
        errors: tuple[float, float],
        count: int,
    ) -> None:
        self.process, self._scale, self.scores = process, scale, np.sort(scores)
        self.mae, self.mae_constant = errors
        self.count = count

    def predict(self, model: LatentDiffusion, objects: Any, *, level: float = 0.9) -> Prediction:
        """The quantity, of native objects (or `Encoded`).

        Raises:
            ConfigError: A level that the objects kept apart cannot support.
            DataError: Objects that the model cannot represent.
        """
        q = conformal_quantile(self.scores, level)
        mean, std = self.process.predict(_standard(activations(model, encode(model, objects)), self._scale))
        mu, half = mean.numpy(), q * std.numpy()
        return Prediction(mu, mu - half, mu + half, level)


def fit_probe(
    model: LatentDiffusion, objects: Any, values: Any, *, held_out: float = 0.2, seed: int = 0
) -> Probe:
    """Learn a quantity from labelled objects.

    Args:
        model: A trained model.
        objects: Native objects, or `Encoded`.
        values: One number an object, NaN where missing.
        held_out: Share of the labelled objects that calibrates the intervals.
        seed: Of the split; beyond 10,000 labels also of those that are used.

    Raises:
        ConfigError: `held_out` out of range.
        DataError: Fewer than 20 labelled objects, or values that are all equal.
    """
    encoded = encode(model, objects)
    labels = np.asarray(values, dtype=float)
    if labels.shape != (len(encoded),):
        raise DataError(
            f"expected a value for each of {len(encoded)} objects, got an array of shape {labels.shape}"
        )
    order, apart = split_labelled(labels, held_out=held_out, seed=seed)
    return _fit(activations(model, encoded.rows(order.tolist())), torch.from_numpy(labels[order]), apart)


def split_labelled(
    labels: Float[np.ndarray, " objects"], *, held_out: float = 0.2, seed: int = 0
) -> tuple[np.ndarray, int]:
    """Rows with a value in random order, and how many of the first ones are kept apart; arguments as in `fit_probe`."""
    if not 0 < held_out < 1:
        raise ConfigError(f"held_out: expected a share between 0 and 1, got {held_out}")
    known = np.flatnonzero(np.isfinite(labels))
    if len(known) < _FEWEST:
        raise DataError(f"a prediction needs at least {_FEWEST} labelled objects, got {len(known)}")
    if np.ptp(labels[known]) == 0:
        raise DataError(f"all {len(known)} values are {labels[known[0]]:g}: there is nothing to predict")
    order = np.random.default_rng(seed).permutation(known)[:_MOST]
    return order, math.ceil(held_out * len(order))


def _fit(features: Tensor, y: Tensor, apart: int) -> Probe:
    scale = _scale(features[apart:])
    x = _standard(features, scale)
    process = GaussianProcess.fit(x[apart:], y[apart:])
    mean, std = process.predict(x[:apart])
    error = (y[:apart] - mean).abs()
    errors = float(error.mean()), float((y[:apart] - y[apart:].mean()).abs().mean())
    return Probe(process, scale, (error / std).numpy(), errors, len(y))


def conformal_quantile(scores: Float[np.ndarray, " held"], level: float) -> float:
    """The `ceil((K + 1) level)`-th smallest of `K` ascending scores.

    Raises:
        ConfigError: A level out of range, or one that needs more scores.
    """
    if not 0 < level < 1:
        raise ConfigError(f"level: expected a number between 0 and 1, got {level}")
    rank = math.ceil((len(scores) + 1) * level - 1e-9)
    if rank > len(scores):
        raise ConfigError(
            f"level {level} needs at least {math.ceil(level / (1 - level) - 1e-9)} held-out objects, got {len(scores)}"
        )
    return float(scores[rank - 1])


def _scale(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and `sqrt(dim) std` with what does not vary left out: distances are then of order one."""
    std = features.std(0)
    std = torch.where(std > 1e-6 * std.max().clamp_min(1e-12), std, torch.inf)
    return features.mean(0), std * int(std.isfinite().sum()) ** 0.5


def scaled(features: Float[Tensor, "objects features"]) -> Float[Tensor, "objects features"]:
    """Features standardised by themselves, so that distances are of order one."""
    return _standard(features, _scale(features))


def _standard(features: Tensor, scale: tuple[Tensor, Tensor]) -> Tensor:
    return (features - scale[0]) / scale[1]
