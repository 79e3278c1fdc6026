r"""Guidance by a regression on noisy latents (Dhariwal & Nichol 2021, arXiv:2105.05233, for continuous labels).

With Tweedie's formula, conditioning on `c` moves the posterior mean of the clean latent by

    E[x | x_t, c] = E[x | x_t] + (sigma^2 / alpha) grad_{x_t} log p(c | x_t),

exact for any schedule (but at `alpha = 0`, where nothing is moved). `p(c | x_t)` is a regression trained on latents of
every noise level (`sciLDM.explore.predictor`). Around a denoiser that is conditioned on `c` already (`ClassifierFree`),
the move insists further: where the network says what `c` should look like in general, the regression says what this
latent still lacks.

The gradient of a network is not to be trusted far away, so the move is cut to `rate r_t` for each number of the
latent, `r_t^2 = sigma^2 / (alpha^2 + sigma^2)` being the variance of a standard normal latent given its noisy version.
"""

from collections.abc import Callable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from sciLDM.denoiser import Denoiser
from sciLDM.errors import ConfigError
from sciLDM.parametrisation import expand, safe_scales

__all__ = ["LogLikelihood", "RegressionGuidance"]

LogLikelihood = Callable[[Tensor, Tensor], Tensor]
"""`log p(c | x_t)` of each sample, `[batch]`, from `(x_t, t)`; differentiable in `x_t`, each sample by itself."""


@final
class RegressionGuidance(Denoiser):
    """`x0_hat` moved up the gradient of `log p(c | x_t)`.

    Args:
        denoiser: Of the latents, conditioned or not.
        log_likelihood: Of what is asked for.
        scale: 1 is Bayes' rule around an unconditional denoiser; around a conditional one, how much more to insist.
        rate: Longest move, in units of `r_t` for each number of the latent.
        interval: Times between which it acts; outside it nothing is computed.

    Raises:
        ConfigError: `scale` or `rate` out of range.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        log_likelihood: LogLikelihood,
        *,
        scale: float = 1.0,
        rate: float = 0.5,
        interval: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        if scale < 0 or rate <= 0:
            raise ConfigError(f"expected a scale of at least 0 and a rate above 0, got {scale} and {rate}")
        super().__init__(denoiser.schedule)
        self.denoiser, self.log_likelihood = denoiser, log_likelihood
        self.scale, self.rate, self.interval = scale, rate, interval

    def forward(
        self, x_t: Float[Tensor, "batch *shape"], t: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch *shape"]:
        """Guided `x0_hat`."""
        x0 = self.denoiser(x_t, t)
        inside = (t >= self.interval[0]) & (t <= self.interval[1])
        if self.scale == 0 or not bool(inside.any()):
            return x0
        with torch.enable_grad():
            free = x_t.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.log_likelihood(free, t).sum(), free)
        alpha, sigma = (c.to(x0) for c in safe_scales(self.schedule, t))
        move = expand(self.scale * inside * sigma**2 / alpha, x0) * gradient
        limit = self.rate * sigma / torch.hypot(alpha, sigma) * move[0].numel() ** 0.5
        length = move.flatten(1).norm(dim=1).clamp_min(1e-12)
        return x0 + expand((limit / length).clamp_max(1.0), move) * move
