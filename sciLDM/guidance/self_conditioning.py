"""Memory for self-conditioning: the network sees its own last estimate (Chen et al. 2023, arXiv:2208.04202).

A sampler never knows of it. The wrappers in this folder remember what they last estimated; between trajectories the
memory must be emptied by their `reset()`, or by `reset_self_conditioning` for a whole stack of wrappers.
"""

from typing import final

from torch import Tensor, nn

from sciLDM.errors import ShapeMismatch

__all__ = ["SelfConditioning", "reset_self_conditioning"]


@final
class SelfConditioning(nn.Module):
    """The last estimate of each branch and sample, or nothing.

    Args:
        enabled: False remembers nothing, for networks trained without.
    """

    def __init__(self, enabled: bool) -> None:
        super().__init__()
        self.enabled = enabled
        self._previous: Tensor | None = None

    def recall(self, batch: int, branches: int) -> Tensor | None:
        """Estimates for `branches` stacked copies of `batch` samples; a branch without a past borrows the first's.

        Raises:
            ShapeMismatch: The memory is of another number of samples.
        """
        previous = self._previous
        if previous is None or previous.shape[0] == batch * branches:
            return previous
        if previous.shape[0] % batch:
            raise ShapeMismatch(
                f"self-conditioning remembers {previous.shape[0]} samples, got {batch}; "
                "call reset() before a new trajectory"
            )
        return previous[:batch].repeat(branches, *[1] * (previous.ndim - 1))

    def remember(self, x0: Tensor) -> None:
        """Keep the estimate for the next call."""
        if self.enabled:
            self._previous = x0.detach()

    def reset(self) -> None:
        """Forget; the next call is the first of a trajectory."""
        self._previous = None


def reset_self_conditioning(denoiser: nn.Module) -> None:
    """Empty the memory of a denoiser and of everything it wraps."""
    for module in denoiser.modules():
        if isinstance(module, SelfConditioning):
            module.reset()
