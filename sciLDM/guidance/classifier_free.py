r"""Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598), jointly or condition by condition.

With `D(S)` the estimate given the conditions in `S`, `A` all of them and `k` one of them:

    one scale w:        D = D(A) + (w - 1) (D(A) - D(always))
    a scale per k:      D = D(A) + sum_k (w_k - 1) (D(A) - D(A without k))

Since estimates and scores are affine in each other, this guides the score by the same factors. `w = 1` is the plain
conditional model. All branches run as one larger batch. Guided samples are sharper than the data by design: on a
Gaussian the variance shrinks as `w` grows.
"""

from collections.abc import Mapping
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sciLDM.denoiser import Denoiser, NetDenoiser
from sciLDM.errors import ConfigError
from sciLDM.guidance.self_conditioning import SelfConditioning
from sciLDM.parametrisation import expand
from sciLDM.types import Cond

__all__ = ["ClassifierFree"]


@final
class ClassifierFree(Denoiser):
    """Amplify the effect of conditions.

    Args:
        denoiser: The trained denoiser; its network must have seen dropped conditions.
        cond: One row for each sample; absent keys are dropped conditions.
        mask: True where the latent exists.
        scale: One `w` for all conditions together, or `w_k` by name (names left out have 1).
        always: Conditions that are never dropped (sizes, geometry); they cannot be guided.
        interval: Times between which guidance acts (Kynkaanniemi et al. 2024, 2404.07724); outside it `w = 1`.
        self_condition: Feed each estimate into the next call; needs a network trained so, and `reset()` in between.

    Raises:
        ConfigError: A scale for a condition that is absent or in `always`.
    """

    def __init__(
        self,
        denoiser: NetDenoiser,
        cond: Cond,
        mask: Bool[Tensor, "batch *shape"] | Float[Tensor, "batch *shape"] | None = None,
        *,
        scale: float | Mapping[str, float] = 1.0,
        always: frozenset[str] = frozenset(),
        interval: tuple[float, float] = (0.0, 1.0),
        self_condition: bool = False,
    ) -> None:
        super().__init__(denoiser.schedule)
        self.denoiser = denoiser
        self.cond = cond
        self.mask = mask
        self.interval = interval
        self.memory = SelfConditioning(self_condition)
        self._branches = _branches(scale, frozenset(cond) - always)

    def forward(
        self, x_t: Float[Tensor, "batch *shape"], t: Float[Tensor, "batch"]
    ) -> Float[Tensor, "batch *shape"]:
        """Guided `x0_hat`."""
        inside = (t >= self.interval[0]) & (t <= self.interval[1])
        branches = self._branches if bool(inside.any()) else ()
        full, *reduced = self._estimates(x_t, t, [dropped for dropped, _ in branches])
        guided = full
        for (_, extra), estimate in zip(branches, reduced, strict=True):
            guided = guided + expand(extra * inside, x_t) * (full - estimate)
        return guided

    def reset(self) -> None:
        """Forget the last estimates: a new trajectory begins."""
        self.memory.reset()

    def _estimates(self, x_t: Tensor, t: Tensor, dropped: list[frozenset[str]]) -> tuple[Tensor, ...]:
        """The fully conditioned estimate, then one per set of dropped conditions."""
        count = 1 + len(dropped)
        cond = {
            name: torch.cat([label] + [_missing(label) if name in names else label for names in dropped])
            for name, label in self.cond.items()
        }
        mask = None if self.mask is None else torch.cat([self.mask] * count)
        previous = self.memory.recall(len(x_t), count)
        x0 = self.denoiser(torch.cat([x_t] * count), t.repeat(count), cond, mask, previous)
        self.memory.remember(x0)
        return x0.chunk(count)


def _branches(
    scale: float | Mapping[str, float], guided: frozenset[str]
) -> tuple[tuple[frozenset[str], float], ...]:
    """`(dropped conditions, w - 1)` for every estimate needed beside the fully conditioned one."""
    if not isinstance(scale, Mapping):
        return ((guided, scale - 1.0),) if guided and scale != 1.0 else ()
    if wrong := sorted(set(scale) - guided):
        raise ConfigError(
            f"cannot guide {wrong}: each needs a value in cond and must not be always on; "
            f"guidable here: {sorted(guided) or 'none'}"
        )
    return tuple((frozenset({name}), w - 1.0) for name, w in sorted(scale.items()) if w != 1.0)


def _missing(label: Tensor) -> Tensor:
    # The convention of `Cond`: NaN for numbers, -1 for categories.
    return torch.full_like(label, float("nan") if label.is_floating_point() else -1)
