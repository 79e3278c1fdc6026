r"""A regression on latents of every noise level, with which samples are steered to quantities that are asked for.

`c_k | x_t ~ N(mu_k(x_t), s_k(x_t)^2)` (`LatentRegressor`) is trained on the latents of labelled objects. Its likelihood
is the one that `RegressionGuidance` needs: for conditions of the model, where it insists beside classifier-free
guidance, and for quantities that the model was never trained on.

    predictor = explore.fit_predictor(model, smiles, {"gap": gaps}, folder="runs/gap")
    model.sample(100, steer=predictor.steer(model, {"gap": 6.5}))
"""

import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sciLDM.denoiser import Denoiser
from sciLDM.errors import ArtefactError, ConfigError, DataError
from sciLDM.explore.native import Encoded, encode, told
from sciLDM.guidance import RegressionGuidance
from sciLDM.model import LatentDiffusion, Steering
from sciLDM.nets.regressor import CLEANEST, LatentRegressor
from sciLDM.schedules import Schedule
from sciLDM.training import LatentData, StageSettings, TrainerSettings

__all__ = ["Predictor", "fit_predictor"]

_FEWEST = 64
_WEIGHTS, _CARD, _FORMAT = "predictor.safetensors", "predictor.json", 1


@final
class Predictor:
    """A trained regression with its units. Made by `fit_predictor` or `Predictor.load`.

    Args:
        regressor: In units of the standard deviations below.
        options: Its constructor's arguments.
        moments: `{name: (mean, std)}` of the training data, in the order of the regressor's outputs.
        mae: Mean absolute error on clean latents of the held-out objects, in those standard deviations.

    Attributes:
        mae: As given. A predictor with an error near 0.8 (that of a guess) cannot steer.
    """

    def __init__(
        self,
        regressor: LatentRegressor,
        options: Mapping[str, Any],
        moments: Mapping[str, tuple[float, float]],
        mae: float,
    ) -> None:
        self.regressor = regressor.eval().requires_grad_(False)
        self.options, self.moments, self.mae = dict(options), dict(moments), mae

    def steer(
        self,
        model: LatentDiffusion,
        targets: Mapping[str, float] | None = None,
        *,
        scale: float = 1.0,
        rate: float = 0.5,
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> Steering:
        """For `model.sample(steer=...)`.

        Args:
            model: The model whose latents it was trained on.
            targets: What to steer to, in the data's units; when None, what is asked for by `cond`.
            scale: How much to insist; see `RegressionGuidance`.
            rate: Longest move, likewise.
            interval: Times between which it acts, likewise.

        Raises:
            ConfigError: A target that this predictor does not know, or that is not finite.
        """
        for name, value in (targets or {}).items():
            if name not in self.moments or not math.isfinite(value):
                raise ConfigError(f"cannot steer to {name}={value}; known: {', '.join(self.moments)}")
        self.regressor.to(model.device)

        def wrap(denoiser: Denoiser, cond: Mapping[str, Tensor], mask: Tensor | None) -> Denoiser:
            asked = cond if targets is None else {n: torch.tensor([v]) for n, v in targets.items()}
            asked = {n: v.cpu().float() for n, v in asked.items() if n in self.moments and told(v)}
            if not asked:
                return denoiser
            columns = [
                (asked[n] - centre) / unit if n in asked else torch.tensor([math.nan])
                for n, (centre, unit) in self.moments.items()
            ]
            wanted = torch.stack(torch.broadcast_tensors(*columns), dim=1).to(model.device)
            likelihood = _Likelihood(self.regressor, wanted, mask, denoiser.schedule)
            return RegressionGuidance(denoiser, likelihood, scale=scale, rate=rate, interval=interval)

        return wrap

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write `predictor.safetensors` and `predictor.json`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {k: v.detach().cpu().contiguous() for k, v in self.regressor.state_dict().items()}
        save_file(weights, folder / _WEIGHTS)
        card = {"format": _FORMAT, "options": self.options, "moments": self.moments, "mae": self.mae}
        (folder / _CARD).write_text(json.dumps(card) + "\n", encoding="utf-8")
        return folder

    @staticmethod
    def load(folder: str | os.PathLike[str]) -> "Predictor":
        """Inverse of `save`.

        Raises:
            ArtefactError: Missing, damaged or of another version.
        """
        folder = Path(folder)
        try:
            card = json.loads((folder / _CARD).read_text(encoding="utf-8"))
            if card["format"] != _FORMAT:
                raise ValueError(f"expected format {_FORMAT}, got {card['format']}")
            regressor = LatentRegressor(**card["options"])
            regressor.load_state_dict(load_file(folder / _WEIGHTS))
            moments = {name: (float(m), float(s)) for name, (m, s) in card["moments"].items()}
            return Predictor(regressor, card["options"], moments, float(card["mae"]))
        except (OSError, KeyError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
            raise ArtefactError(
                f"{folder} holds no predictor that can be read ({error}); train one with explore.fit_predictor"
            ) from error


@final
class _Likelihood:
    """`log p(c | x_t)` up to a constant; NaN targets are open."""

    def __init__(
        self, regressor: LatentRegressor, targets: Tensor, mask: Tensor | None, schedule: Schedule
    ) -> None:
        self.regressor, self.targets, self.mask, self.schedule = regressor, targets, mask, schedule

    def __call__(self, x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (c.to(x_t) for c in self.schedule(t))
        x = x_t / torch.hypot(alpha, sigma).view(-1, *[1] * (x_t.ndim - 1))
        if self.mask is not None:
            x = x * self.mask[:, None]
        lmbda = self.schedule.lmbda(t).to(x_t).clamp(-CLEANEST, CLEANEST)
        mu, log_std = self.regressor(x, lmbda, self.mask)
        known = self.targets.isfinite()
        error = torch.where(known, self.targets - mu, 0.0)
        return (-0.5 * (error / log_std.exp()).square() - log_std * known).sum(1)


def fit_predictor(
    model: LatentDiffusion,
    objects: Any,
    labels: Mapping[str, Any] | None = None,
    *,
    held_out: float = 0.1,
    width: int = 96,
    depth: int = 3,
    settings: StageSettings | None = None,
    folder: str | os.PathLike[str] | None = None,
    seed: int = 0,
) -> Predictor:
    """Train a predictor on the latents of objects.

    Args:
        model: A trained model.
        objects: Native objects, or `Encoded`.
        labels: Numbers by name, one an object, NaN where missing; what the codec tells of the objects when None.
        held_out: Share of objects that validate.
        width: Of the regressor.
        depth: Likewise.
        settings: Of the training; 4,000 steps of 512 when None.
        folder: Where checkpoints and the predictor go; nothing is kept when None.
        seed: Of split and initial weights.

    Raises:
        ConfigError: Settings out of range.
        DataError: Too few objects with labels, or labels that do not vary.
    """
    from sciLDM.training import RegressionStage, run_stage  # loads Lightning, which exploring does without

    if not 0 < held_out < 1:
        raise ConfigError(f"held_out: expected a share between 0 and 1, got {held_out}")
    encoded = encode(model, objects)
    known = _labels(encoded, labels)
    order = np.random.default_rng(seed).permutation(len(encoded))
    apart, train = np.split(order, [math.ceil(held_out * len(encoded))])
    table = np.stack(list(known.values()), axis=1)
    for name, column in known.items():
        if np.isfinite(column[train]).sum() < _FEWEST or np.nanstd(column[train]) == 0:
            raise DataError(
                f"{name}: expected at least {_FEWEST} objects with values that differ, got "
                f"{np.isfinite(column[train]).sum()} values"
            )
    moments = {
        n: (float(np.nanmean(c)), float(np.nanstd(c))) for n, c in zip(known, table[train].T, strict=True)
    }
    options = {
        "channels": encoded.z.shape[1], "shape": list(encoded.z.shape[2:]), "quantities": len(moments),
        "width": width, "depth": depth,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stage = RegressionStage(LatentRegressor(**options))
    centre, unit = (torch.tensor([m[i] for m in moments.values()]) for i in (0, 1))
    standard = (torch.as_tensor(table, dtype=torch.float32) - centre) / unit
    data = [_data(encoded, standard, rows) for rows in (train, apart)]
    settings = settings or StageSettings(
        max_steps=4000, batch_size=512, learning_rate=2e-3, decay="linear", decay_from=0.3, ema_decay=0.995
    )
    with tempfile.TemporaryDirectory() as scratch:
        where = Path(scratch if folder is None else folder)
        result = run_stage(stage, *data, settings, TrainerSettings(progress_bar=False), where, resume=True)
    regressor = stage.finished_network()
    assert isinstance(regressor, LatentRegressor)
    predictor = Predictor(regressor, options, moments, result.validation["mae"])
    if folder is not None:
        predictor.save(folder)
    return predictor


def _labels(encoded: Encoded, labels: Mapping[str, Any] | None) -> dict[str, np.ndarray]:
    if labels is None:
        own = {
            n: v for n, v in encoded.request.cond.items() if v.is_floating_point() and v.ndim == 1 and told(v)
        }
        labels = {name: label.cpu().numpy() for name, label in own.items()}
    known = {name: np.asarray(values, dtype=float) for name, values in labels.items()}
    if not known or any(v.shape != (len(encoded),) for v in known.values()):
        raise DataError(
            f"expected labels, one number for each of {len(encoded)} objects, got {', '.join(known) or 'none'}"
        )
    return {name: np.where(np.isfinite(v), v, np.nan) for name, v in known.items()}


def _data(encoded: Encoded, standard: Tensor, rows: np.ndarray) -> LatentData:
    index = torch.from_numpy(rows)
    mask = None if encoded.mask is None else encoded.mask.cpu()[index]
    return LatentData(encoded.z.cpu()[index], mask, {"c": standard[index]})
