"""A trained model made smaller: pruning with recovery, 8-bit weights, export to other programs.

from sciLDM import compress

smaller = compress.prune(model, "runs/half", keep=0.5)
compress.quantise(smaller, "runs/half-int8")
compress.export(smaller, "denoiser.onnx")
"""

from sciLDM.compress.exporting import Exported, export
from sciLDM.compress.latents import training_latents
from sciLDM.compress.recovery import prune, recovery_settings
from sciLDM.compress.storage import quantise

__all__ = ["Exported", "export", "prune", "quantise", "recovery_settings", "training_latents"]
