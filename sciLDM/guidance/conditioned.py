"""Conditions and mask put into a `NetDenoiser`, which makes it a plain `Denoiser`."""

from typing import final

from jaxtyping import Bool, Float
from torch import Tensor

from sciLDM.denoiser import Denoiser, NetDenoiser
from sciLDM.guidance.self_conditioning import SelfConditioning
from sciLDM.types import Cond

__all__ = ["Conditioned"]


@final
class Conditioned(Denoiser):
    """`E[x | x_t, cond]`, without amplification.

    Args:
        denoiser: The trained denoiser.
        cond: One row for each sample; absent keys are dropped conditions.
        mask: True where the latent exists.
        self_condition: Feed each estimate into the next call; needs a network trained so, and `reset()` in between.
    """

    def __init__(
        self,
        denoiser: NetDenoiser,
        cond: Cond | None = None,
        mask: Bool[Tensor, "batch *shape"] | Float[Tensor, "batch *shape"] | None = None,
        *,
        self_condition: bool = False,
    ) -> None:
        super().__init__(denoiser.schedule)
        self.denoiser = denoiser
        self.cond = cond
        self.mask = mask
        self.memory = SelfConditioning(self_condition)

    def forward(
        self, x_t: Float[Tensor, "batch *shape"], t: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch *shape"]:
        """`x0_hat` given the conditions."""
        x0 = self.denoiser(x_t, t, self.cond, self.mask, self.memory.recall(len(x_t), 1))
        self.memory.remember(x0)
        return x0

    def reset(self) -> None:
        """Forget the last estimate: a new trajectory begins."""
        self.memory.reset()
