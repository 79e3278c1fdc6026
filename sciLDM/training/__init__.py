"""Training: the only folder that imports Lightning, and only when a stage is used (settings alone load fast)."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sciLDM.training.data import LatentData, SplitData, TrainingData
from sciLDM.training.ema import EMA
from sciLDM.training.plan import BatchPlan
from sciLDM.training.settings import SelfTraining, StageSettings, TrainerSettings

if TYPE_CHECKING:
    from sciLDM.training.adversarial import AdversarialSettings
    from sciLDM.training.regression import RegressionStage
    from sciLDM.training.self_training import DecoderStage, SettledLatents
    from sciLDM.training.stage import Stage
    from sciLDM.training.stages import AutoencoderStage, DenoiserStage
    from sciLDM.training.trainer import StageResult, run_stage

__all__ = [
    "EMA",
    "AdversarialSettings",
    "AutoencoderStage",
    "BatchPlan",
    "DecoderStage",
    "DenoiserStage",
    "LatentData",
    "RegressionStage",
    "SelfTraining",
    "SettledLatents",
    "SplitData",
    "Stage",
    "StageResult",
    "StageSettings",
    "TrainerSettings",
    "TrainingData",
    "run_stage",
]

_LAZY = {
    "AdversarialSettings": "adversarial",
    "AutoencoderStage": "stages",
    "DecoderStage": "self_training",
    "DenoiserStage": "stages",
    "RegressionStage": "regression",
    "SettledLatents": "self_training",
    "Stage": "stage",
    "StageResult": "trainer",
    "run_stage": "trainer",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"sciLDM.training.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
