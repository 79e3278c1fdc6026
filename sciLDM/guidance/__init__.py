"""Guidance: wrappers that turn one denoiser into another. Samplers take the result like any other."""

from sciLDM.guidance.autoguidance import Autoguidance
from sciLDM.guidance.classifier_free import ClassifierFree
from sciLDM.guidance.conditioned import Conditioned
from sciLDM.guidance.regression import RegressionGuidance
from sciLDM.guidance.self_conditioning import SelfConditioning, reset_self_conditioning

__all__ = [
    "Autoguidance",
    "ClassifierFree",
    "Conditioned",
    "RegressionGuidance",
    "SelfConditioning",
    "reset_self_conditioning",
]
