r"""The sampler that reconstruction uses unless told otherwise, and why.

Given an observation, the latent has directions of every width: from that of the prior, 1, down to the noise divided by
a singular value of the operator. Three things follow.

* The estimate is held over a step by an exponential integrator (DPM-Solver++, arXiv:2211.01095), which carries the
  mean of a Gaussian without any error, however narrow it is. Heun's method in the angle does not.
* The last call must be far below the narrowest width `s`: what is returned is the estimate at the last level, which
  shrinks that width by `1 / sqrt(1 + (sigma / (alpha s))^2)`. At `lmbda = 7` that is 2 % for `s = 0.005`.
* Above `sigma / alpha = e^3` next to nothing is decided, so no steps are spent there.

With 20 calls and an exact posterior denoiser the standard deviation of every direction from 0.005 to 2 is within 2 %
of the exact one (`tests/posterior/test_oracle_gaussian.py`). Schedules with noise left at `t = 0` end there: EDM's
`sigma_min` of 0.002 loses 2 % of a width of 0.01 and 8 % of one of 0.005.
"""

from sciLDM.samplers import DPMSolverPP2M, LogSNRGrid, Sampler

__all__ = ["default_sampler"]

_GRID = LogSNRGrid(-3.0, 7.0)


def default_sampler(steps: int = 20) -> Sampler:
    """DPM-Solver++(2M) on `lmbda` from -3 to 7: one call of the denoiser a step."""
    return DPMSolverPP2M(steps=steps, grid=_GRID)
