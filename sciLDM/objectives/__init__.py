"""Training objectives: losses of shape `[batch]`."""

from sciLDM.objectives.context import RandomContext
from sciLDM.objectives.diffusion import DiffusionObjective, Draw

__all__ = ["DiffusionObjective", "Draw", "RandomContext"]
