"""A trained model made smaller: pruning with recovery, 8-bit weights, export to other programs.

from sciLDM import compress

smaller = compress.prune(model, "runs/half", keep=0.5)
compress.quantise(smaller, "runs/half-int8")
compress.export(smaller, "denoiser.onnx")
"""

from sciLDM.compress.exporting import Exported, export
from sciLDM.compress.recovery import prune, recovery_settings
from sciLDM.compress.storage import quantise
from sciLDM.own_latents import training_latents

__all__ = ["Exported", "export", "prune", "quantise", "recovery_settings", "training_latents"]
