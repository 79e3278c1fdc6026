"""What a trained model knows, explored from objects the user has: edits, interpolation, directions, saliency.

    from sciLDM import explore

    explore.edit(model, ["c1ccccc1O"], 0.4, cond={"logP": 2.5}, samples=8)
    explore.interpolate(model, "c1ccccc1O", "CCOC(=O)CC", 7)
    direction = explore.attribute_direction(model, "logP", smiles)
    explore.saliency(model, "c1ccccc1O", explore.Conditional("logP")).per_cell

All take a loaded `LatentDiffusion` and native objects (SMILES, say), which the model's codec reads by its hook
`from_native`; `encode_fields` serves models without it.
"""

from sciLDM.explore.activations import activations
from sciLDM.explore.attribution import Attribution, Gradient, GradientTimesInput, IntegratedGradients
from sciLDM.explore.counterfactual import counterfactual
from sciLDM.explore.directions import Direction, attribute_direction, move
from sciLDM.explore.editing import edit, edit_latents, noise_time
from sciLDM.explore.flow import ProbabilityFlow
from sciLDM.explore.interpolation import LatentPath, NoisePath, Path, interpolate, interpolate_latents
from sciLDM.explore.likeness import variants
from sciLDM.explore.native import Encoded, FromNative, decode, encode, encode_fields
from sciLDM.explore.optimise import Optimisation, optimise
from sciLDM.explore.predictor import Predictor, fit_predictor
from sciLDM.explore.probe import Prediction, Probe, fit_probe
from sciLDM.explore.quantities import Conditional, Decoded, Quantity
from sciLDM.explore.saliency import Saliency, saliency

__all__ = [
    "Attribution",
    "Conditional",
    "Decoded",
    "Direction",
    "Encoded",
    "FromNative",
    "Gradient",
    "GradientTimesInput",
    "IntegratedGradients",
    "LatentPath",
    "NoisePath",
    "Optimisation",
    "Path",
    "Prediction",
    "Predictor",
    "ProbabilityFlow",
    "Probe",
    "Quantity",
    "Saliency",
    "activations",
    "attribute_direction",
    "counterfactual",
    "decode",
    "edit",
    "edit_latents",
    "encode",
    "encode_fields",
    "fit_predictor",
    "fit_probe",
    "interpolate",
    "interpolate_latents",
    "move",
    "noise_time",
    "optimise",
    "saliency",
    "variants",
]
