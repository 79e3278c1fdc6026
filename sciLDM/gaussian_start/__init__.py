"""What a denoiser knows before it has learned anything: the exact denoiser of a Gaussian fitted to the latents.

`GaussianStart` has a dense covariance, for latents of up to a few thousand numbers; `FactorStart` a structured one, for
larger latents.
"""

from sciLDM.gaussian_start.dense import GaussianStart
from sciLDM.gaussian_start.factors import FactorStart
from sciLDM.gaussian_start.start import LatentStart

__all__ = ["FactorStart", "GaussianStart", "LatentStart"]
