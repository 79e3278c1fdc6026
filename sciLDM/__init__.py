"""sciLDM: latent diffusion on scientific data.

    import sciLDM
    model = sciLDM.load("qm9-small")
    samples = model.sample(100, cond={"logP": 1.5}, guidance=2.0, seed=0)

Names are loaded when first used, so `import sciLDM` costs little more than `import torch`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sciLDM.experiment import Experiment
    from sciLDM.fitting import fit
    from sciLDM.model import LatentDiffusion, load
    from sciLDM.rng import NoiseSource

__all__ = ["Experiment", "LatentDiffusion", "NoiseSource", "__version__", "fit", "load"]

__version__ = "0.1.0"

_LAZY = {
    "Experiment": "sciLDM.experiment",
    "LatentDiffusion": "sciLDM.model",
    "NoiseSource": "sciLDM.rng",
    "fit": "sciLDM.fitting",
    "load": "sciLDM.model",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'sciLDM' has no attribute {name!r}")
