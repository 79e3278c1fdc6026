r"""Sampling of consistency models: estimate, add noise, estimate again (Song et al. 2023, arXiv:2303.01469, Alg. 1).

    x = f(y_t),    y_s = a_s x + s_s eps.

Each estimate must be a sample of the data, as that of a consistency model (or of a student of distribution matching)
is. With an ordinary denoiser, whose estimate is a mean, samples come out far too narrow whatever the number of steps.
"""

from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from sciLDM.samplers.base import Run, Sampler
from sciLDM.samplers.grids import TimeGrid, UniformGrid

__all__ = ["Renoising"]

_GRID = UniformGrid()


@final
class Renoising(Sampler):
    """For few-step students (`sciLDM.distill`); every state but the first is a clean estimate with new noise.

    Args:
        steps: Number of calls.
        grid: Placement of the calls; even in `t` when None.
        temperature: Standard deviation of every noise drawn.
    """

    documented_steps: ClassVar[int] = 1  # of a consistency model; a denoiser has no such number

    def __init__(self, *, steps: int = 4, grid: TimeGrid | None = None, temperature: float = 1.0) -> None:
        super().__init__(steps=steps, grid=grid or _GRID, temperature=temperature)

    def integrate(self, run: Run, y: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        for i, now, then in run.steps:
            _, x0 = run.begin(i, y, now)
            y = then.a * x0 + then.s * run.noise(f"step {i}")
            run.report(i + 1, x0)
        return run.finish(y)
