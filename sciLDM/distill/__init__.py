"""Few-step students of finished models: `distil`, and the ways to do it.

A student draws in a handful of denoiser calls what its teacher draws in fifty, guidance included. It is no posterior
mean any more: reconstruction, likelihoods and guidance by observations need the teacher.
"""

from sciLDM.distill.consistency import ConsistencyStage
from sciLDM.distill.distil import distil, student_of
from sciLDM.distill.latents import drawn_latents
from sciLDM.distill.methods import Consistency, Method, MomentMatching
from sciLDM.distill.moments import MomentStage, StudentMoments
from sciLDM.distill.stage import StudentStage
from sciLDM.distill.teacher import Teacher

__all__ = [
    "Consistency",
    "ConsistencyStage",
    "Method",
    "MomentMatching",
    "MomentStage",
    "StudentMoments",
    "StudentStage",
    "Teacher",
    "distil",
    "drawn_latents",
    "student_of",
]
