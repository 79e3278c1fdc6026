"""Observation operators in physical units: what an instrument does to a field, with adjoint and noise."""

from sciLDM.operators.averaging import BlockMean, ThickSlice
from sciLDM.operators.base import LinearOperator, Operator, linearise
from sciLDM.operators.blur import Blur
from sciLDM.operators.checks import dot_test, operator_norm, simulate
from sciLDM.operators.combine import (
    Compose,
    NonlinearCompose,
    NonlinearStack,
    Stack,
    StackNoise,
    compose,
    stack,
)
from sciLDM.operators.fourier import Fourier
from sciLDM.operators.functions import FunctionLinear, FunctionOperator, from_callables, from_deepinv
from sciLDM.operators.masking import Identity, Mask, Select
from sciLDM.operators.matrix import AxisMap, LinearMap
from sciLDM.operators.noise import GaussianNoise, Noise, TransmissionNoise
from sciLDM.operators.observation import Observation
from sciLDM.operators.points import PointSampling, grid_coordinates
from sciLDM.operators.projection import ConeBeam, FanBeam, ParallelBeam
from sciLDM.operators.solve import CGResult, conjugate_gradient

__all__ = [
    "AxisMap",
    "BlockMean",
    "Blur",
    "CGResult",
    "Compose",
    "ConeBeam",
    "FanBeam",
    "Fourier",
    "FunctionLinear",
    "FunctionOperator",
    "GaussianNoise",
    "Identity",
    "LinearMap",
    "LinearOperator",
    "Mask",
    "Noise",
    "NonlinearCompose",
    "NonlinearStack",
    "Observation",
    "Operator",
    "ParallelBeam",
    "PointSampling",
    "Select",
    "Stack",
    "StackNoise",
    "ThickSlice",
    "TransmissionNoise",
    "compose",
    "conjugate_gradient",
    "dot_test",
    "from_callables",
    "from_deepinv",
    "grid_coordinates",
    "linearise",
    "operator_norm",
    "simulate",
    "stack",
]
