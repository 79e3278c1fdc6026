"""Observation operators in physical units: what an instrument does to a field, with adjoint and noise."""

from sciLDM.operators.base import LinearOperator, Operator, linearise
from sciLDM.operators.noise import GaussianNoise, Noise, TransmissionNoise
from sciLDM.operators.observation import Observation

__all__ = [
    "GaussianNoise",
    "LinearOperator",
    "Noise",
    "Observation",
    "Operator",
    "TransmissionNoise",
    "linearise",
]
