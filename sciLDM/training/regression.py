r"""Trains a `LatentRegressor` on latents with noise of every level.

The loss is the Gaussian negative log-likelihood weighted by the predicted standard deviation (beta-NLL with beta = 1/2,
Seitzer et al. 2022, arXiv:2203.09168), which does not give up where it is unsure at first:

    L = stop(s) ((c - mu)^2 / (2 s^2) + log s),    lmbda ~ N(mean, std^2).
"""

from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.nets.regressor import CLEANEST, LatentRegressor
from sciLDM.rng import NoiseSource
from sciLDM.training.stage import Stage
from sciLDM.training.stages import half_precision

__all__ = ["RegressionStage"]


@final
class RegressionStage(Stage):
    """Batches are `(z, mask or None, {"c": standardised quantities, NaN where missing})`.

    Validation reports the mean absolute error of clean latents (`mae`, in standard deviations) and of latents with as
    much noise as signal (`mae_noisy`).

    Args:
        regressor: What is trained.
        mean: Of `lmbda` in training.
        std: Likewise.
    """

    def __init__(self, regressor: LatentRegressor, *, mean: float = 0.3, std: float = 1.2) -> None:
        super().__init__("regression", regressor)
        self.mean, self.std = mean, std

    @property
    def regressor(self) -> LatentRegressor:
        """The network under its own name."""
        assert isinstance(self.network, LatentRegressor)
        return self.network

    def loss_terms(self, fields: Any, generator: torch.Generator) -> dict[str, Float[Tensor, "batch"]]:
        z, mask, cond = fields
        lmbda = self.mean + self.std * torch.randn(len(z), generator=generator, device=z.device)
        eps = torch.randn(z.shape, generator=generator, device=z.device)
        mu, log_std = self._read(z, mask, lmbda.clamp(-CLEANEST, CLEANEST), eps)
        error = (cond["c"] - mu).nan_to_num(0.0)
        known = cond["c"].isfinite()
        nll = 0.5 * (error / log_std.exp()).square() + log_std
        return {"nll": (nll * log_std.detach().exp() * known).sum(1)}

    def scores(self, fields: Any, indices: np.ndarray) -> dict[str, Float[Tensor, "batch"]]:
        z, mask, cond = fields
        noise = NoiseSource(self.settings.seed).fork("regression validation")
        eps = noise.normal([int(i) for i in indices], tuple(z.shape[1:]), device=z.device)
        found = {}
        for name, level in (("mae", CLEANEST), ("mae_noisy", 0.0)):
            mu, _ = self._read(z, mask, torch.full((len(z),), level, device=z.device), eps)
            found[name] = (mu - cond["c"]).abs().nanmean(1).nan_to_num(0.0)
        return found

    def _read(self, z: Tensor, mask: Tensor | None, lmbda: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        # Variance preserving whatever the model's schedule: alpha^2 = sigmoid(2 lmbda).
        alpha, sigma = (torch.sigmoid(sign * 2 * lmbda).sqrt() for sign in (1, -1))
        shape = (-1, *[1] * (z.ndim - 1))
        x = alpha.view(shape) * z + sigma.view(shape) * eps
        if mask is not None:
            x = x * mask[:, None]
        with half_precision(self):
            return self.regressor(x, lmbda, mask)
