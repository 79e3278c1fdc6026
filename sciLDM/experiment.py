"""One experiment: everything that `scildm fit` needs, as constructors. A YAML file is the same thing in text."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from sciLDM.domain import Domain
from sciLDM.errors import ConfigError
from sciLDM.nets.recipes import Network
from sciLDM.objectives import DiffusionObjective
from sciLDM.parametrisation import Parametrisation
from sciLDM.registry import class_path
from sciLDM.samplers import Sampler
from sciLDM.schedules import Schedule
from sciLDM.training.settings import StageSettings, TrainerSettings

__all__ = ["Experiment", "experiment_parser", "instantiate", "read_config"]


DEFAULTS: dict[str, Any] = {
    "network": {"class_path": "sciLDM.nets.DiTNetwork"},
    "schedule": {"class_path": "sciLDM.schedules.CosineSchedule"},
    "parametrisation": {"class_path": "sciLDM.parametrisation.V"},
    "sampler": {"class_path": "sciLDM.samplers.DPMSolverPP2MSDE", "init_args": {"steps": 50}},
    "autoencoder_stage": {"max_steps": 2000},
    "denoiser_stage": {"max_steps": 20000, "ema_decay": 0.999},
}
"""What a configuration need not say. A key that it does say replaces these, stage settings one by one."""


@dataclass(frozen=True)
class Experiment:
    """What is trained, and how. Every field is a constructor call in the YAML."""

    domain: Domain
    """The data and their adapter: class_path (or a domain's short name) and init_args."""
    network: Network
    """The denoising network; DiTNetwork unless said otherwise."""
    schedule: Schedule
    """Noise schedule; CosineSchedule unless said otherwise."""
    parametrisation: Parametrisation
    """What the network predicts; V unless said otherwise."""
    objective: DiffusionObjective
    """Training noise levels, loss weight and self-conditioning."""
    sampler: Sampler
    """Default sampler of the trained model; 50 steps of DPMSolverPP2MSDE unless said otherwise."""
    autoencoder_stage: StageSettings
    """Training of the autoencoder."""
    denoiser_stage: StageSettings
    """Training of the denoiser."""
    trainer: TrainerSettings
    """Devices, progress bars and loggers."""
    guidance: float = 1.0
    """Default guidance scale; 1 is the plain conditional model."""
    autoencoder_from: str | None = None
    """Take the autoencoder of another run (or shipped model) instead of training one."""
    ignore_gate: bool = False
    """Train the denoiser even when the autoencoder misses its reconstruction gate."""
    seed: int = 0
    """Seed of initial weights; the stages have their own for batches and noise."""


def experiment_parser() -> jsonargparse.ArgumentParser:
    """The parser whose options are the fields of `Experiment`; shared by the command line and `read_config`."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Experiment, "experiment", help="one experiment")
    return parser


def read_config(source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A YAML file or a mapping, with dotted overrides, as a complete plain configuration.

    Args:
        source: Path of a YAML file, or the same content as a mapping.
        overrides: For instance `{"denoiser_stage.max_steps": 100}`.

    Raises:
        ConfigError: Unreadable YAML, an unknown option (the right ones are named), or a wrong value.
    """
    if isinstance(source, Mapping):
        raw: Any = copy.deepcopy(dict(source))
    else:
        try:
            raw = yaml.safe_load(Path(source).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"cannot read the configuration {source}: {error.strerror or error}") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{source} is not valid YAML: {error}") from error
    if not isinstance(raw, dict) or "domain" not in raw:
        raise ConfigError(f"{source}: expected a mapping with at least `domain:`, got {type(raw).__name__}; see configs/")
    for dotted, value in (overrides or {}).items():
        _set(raw, dotted, value)
    domain = raw["domain"]
    raw["domain"] = {"class_path": domain} if isinstance(domain, str) else domain
    if not isinstance(raw["domain"], dict) or "class_path" not in raw["domain"]:
        raise ConfigError("domain: expected class_path and init_args, for instance {class_path: molecules}")
    raw["domain"]["class_path"] = class_path(raw["domain"]["class_path"])
    for name, default in DEFAULTS.items():
        given = raw.setdefault(name, copy.deepcopy(default))
        if name.endswith("_stage") and isinstance(given, dict):
            raw[name] = {**default, **given}
    parser = experiment_parser()
    try:
        parsed = parser.parse_object({"experiment": raw})
    except (jsonargparse.ArgumentError, TypeError, ValueError, KeyError) as error:
        raise ConfigError(_readable(str(error))) from error
    return yaml.safe_load(parser.dump(parsed, skip_none=False))["experiment"]


def instantiate(config: Mapping[str, Any]) -> Experiment:
    """Build the objects of a complete configuration.

    Raises:
        ConfigError: A value that a constructor refuses.
    """
    parser = experiment_parser()
    try:
        return parser.instantiate_classes(parser.parse_object({"experiment": dict(config)})).experiment
    except ConfigError:
        raise
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(_readable(str(error))) from error


def _set(config: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, last = dotted.split(".")
    here = config
    for parent in parents:
        here = here.setdefault(parent, {})
        if not isinstance(here, dict):
            raise ConfigError(f"override {dotted!r}: {parent!r} is not a group of options")
    here[last] = value


def _readable(message: str) -> str:
    """The parser's message without its wrapping prefix."""
    return message.replace("experiment.", "").replace('Parser key "experiment"', "configuration")
