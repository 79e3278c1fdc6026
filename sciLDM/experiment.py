"""One experiment: everything that `scildm fit` needs, as constructors. A YAML file is the same thing in text."""

import copy
import difflib
import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

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
from sciLDM.training.settings import SelfTraining, StageSettings, TrainerSettings

__all__ = ["Experiment", "experiment_parser", "instantiate", "read_config"]


DEFAULTS: dict[str, Any] = {
    "network": {"class_path": "sciLDM.nets.DiTNetwork"},
    "schedule": {"class_path": "sciLDM.schedules.CosineSchedule"},
    "parametrisation": {"class_path": "sciLDM.parametrisation.V"},
    "sampler": {"class_path": "sciLDM.samplers.DPMSolverPP2MSDE", "init_args": {"steps": 50}},
    "autoencoder_stage": {"max_steps": 2000},
    "denoiser_stage": {"max_steps": 20000, "ema_decay": 0.999},
    "guide_stage": {"max_steps": 1500, "learning_rate": 2.0e-3, "decay_from": 0.7, "ema_decay": 0.995},
    "self_training_stage": {"max_steps": 1000, "batch_size": 512, "warmup_steps": 50},
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
    guide: Network | None = None
    """A much smaller network that is trained beside the denoiser and guides it when sampling (Autoguidance): fewer
    failed samples at little cost. None for no guide."""
    guide_scale: float = 2.0
    """How far samples are pushed away from the guide's estimates; 1 switches it off."""
    guide_stage: StageSettings = field(default_factory=StageSettings)
    """Training of the guide, where there is one; far shorter than the denoiser's."""
    self_training: SelfTraining | None = None
    """Train the decoder at last on samples of the model, to say at once what constrained decoding makes of them: for
    domains that decode under constraints (valences of molecules). None for not at all; `{}` for the usual settings."""
    self_training_stage: StageSettings = field(default_factory=StageSettings)
    """That training."""
    gaussian_start: bool = False
    """Start the denoiser from the exact one of a Gaussian fitted to the training latents: for fields on one grid
    in a common frame (a region, crops around one organ). With up to 4,096 numbers in a latent any covariance, and known
    states; with more one for each cell, and a few patterns between cells."""
    start_patterns: int | None = None
    """Most patterns between cells of such a start; null for 96. With few or overlapping training volumes take 1: more
    patterns fit those very volumes, and a network trained on top learns to trust them."""
    autoencoder_from: str | None = None
    """Take the autoencoder of another run (or shipped model) instead of training one."""
    denoiser_from: str | None = None
    """Start the denoiser from the weights of another run (or shipped model), to train it further or on more data of the
    kind. Latents must mean the same: the autoencoder must be taken from there, too (autoencoder_from)."""
    ignore_gate: bool = False
    """Train the denoiser even when the autoencoder misses its reconstruction gate."""
    seed: int = 0
    """Seed of initial weights; the stages have their own for batches and noise."""

    def __post_init__(self) -> None:
        if self.denoiser_from is not None and self.denoiser_from != self.autoencoder_from:
            raise ConfigError(
                f"denoiser_from={self.denoiser_from}: expected autoencoder_from to name the same model, got "
                f"{self.autoencoder_from}; a denoiser knows the latents of its own autoencoder alone"
            )


def experiment_parser() -> jsonargparse.ArgumentParser:
    """The parser whose options are the fields of `Experiment`; shared by the command line and `read_config`."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(Experiment, "experiment", help="one experiment")
    return parser


def read_config(
    source: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
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
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{source} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{source}: expected options by name, at least `domain:`, got {raw!r:.60}; see configs/"
        )
    for dotted, value in (overrides or {}).items():
        _set(raw, dotted, value)
    raw = {
        name: value for name, value in raw.items() if value is not None
    }  # an option left empty is one left out
    _check_groups(raw)
    domain = raw.get("domain")
    raw["domain"] = {"class_path": domain} if isinstance(domain, str) else domain
    if not isinstance(raw["domain"], dict) or not isinstance(raw["domain"].get("class_path"), str):
        raise ConfigError(
            f"domain: expected class_path and init_args, for instance {{class_path: molecules}}, got {domain!r:.60}"
        )
    raw["domain"]["class_path"] = class_path(raw["domain"]["class_path"])
    _check_nulls(raw, Experiment, "")
    for name, default in DEFAULTS.items():
        given = raw.setdefault(name, copy.deepcopy(default))
        if name.endswith("_stage") and isinstance(given, dict):
            raw[name] = {**default, **given}
    parser = experiment_parser()
    try:
        parsed = parser.parse_object({"experiment": raw})
    except (jsonargparse.ArgumentError, TypeError, ValueError, KeyError) as error:
        raise ConfigError(_readable(str(error))) from error
    return yaml.safe_load(parser.dump(parsed, skip_unset=False))["experiment"]


def instantiate(config: Mapping[str, Any]) -> Experiment:
    """Build the objects of a complete configuration.

    Raises:
        ConfigError: A value that a constructor refuses.
    """
    parser = experiment_parser()
    try:
        return parser.instantiate(parser.parse_object({"experiment": copy.deepcopy(dict(config))})).experiment
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


def _check_groups(raw: Mapping[str, Any]) -> None:
    """Names of the top level, and that groups are groups: what the parser passes over or says poorly."""
    known = _options(Experiment, [])
    for name, value in raw.items():
        if name not in known:
            raise ConfigError(_unknown("configuration", str(name), known))
        if (name.endswith("_stage") or name in ("trainer", "objective")) and not isinstance(value, Mapping):
            options = ", ".join(_options(Experiment, [name]))
            raise ConfigError(f"{name}: expected options by name ({options}), got {value!r:.60}")


def _check_nulls(given: Mapping[str, Any], owner: Any, where: str) -> None:
    """An option that was left empty, where null means nothing; the constructor's own complaint would name no option."""
    hints = _hints(owner)
    for name, value in given.items():
        path = f"{where}.{name}".strip(".")
        if value is None and name in hints and type(None) not in get_args(hints[name]):
            raise ConfigError(f"{path} is empty: give it a value, or leave the option out")
        if isinstance(value, Mapping) and isinstance(value.get("class_path"), str):
            if value.get("init_args", {}) is None:
                raise ConfigError(f"{path}.init_args is empty: name an option, or leave it out")
            if isinstance(inside := value.get("init_args", {}), Mapping):
                _check_nulls(inside, _imported(value["class_path"]), f"{path}.init_args")
        elif isinstance(value, Mapping):
            _check_nulls(value, _hint(owner, name), path)


def _readable(message: str) -> str:
    """The parser's nested message as one line: which option, what was expected, what was got."""
    text = " ".join(message.replace("experiment.", "").split())
    keys = re.findall(r'Parser key "([^"]+)"', text)
    classes = re.findall(r"class_path '([^']+)'", text)
    owner = (_imported(classes[-1]) or Experiment) if classes else Experiment
    where = ".".join(keys) or "configuration"
    if found := re.search(r"(?:Group '([^']+)' does not accept option|Option) '([^']+)'", text):
        group = [] if found[1] in (None, "experiment") else found[1].split(".")
        *inner, name = [*group, *found[2].split(".")]
        holder = ".".join([*keys, *inner]) or "configuration"
        kind = f" ({owner.__name__})" if owner is not Experiment else ""
        return _unknown(holder + kind, name, _options(owner, inner))
    if found := re.search(r"Expected a dot import path string: (\S+)", text):
        known = _classes(owner, keys[-1] if keys else "")
        return f"{where}: no class {found[1]!r}{_near(found[1], known)}; known: {', '.join(known)}"
    if found := re.search(r"module '([^']+)' has no attribute '([^']+)'", text):
        known = list(getattr(_imported(found[1]), "__all__", ()))
        return f"{where}: {found[1]} has no class {found[2]!r}{_near(found[2], known)}"
    if found := re.search(r"Union subtypes Subtypes: \[(.+?)\] Errors: .*Given value: (.+)", text):
        kinds = [_kind(kind).replace("NoneType", "null") for kind in found[1].split(", ")]
        return f"{where}: expected {' or '.join(kinds)}, got {found[2]!r:.80}"
    if found := re.search(r"Expected an? (.+?)\. Got value: (.+)", text):
        return f"{where}: expected {_kind(found[1])}, got {found[2]!r:.80}"
    return text


def _unknown(where: str, name: str, known: Sequence[str]) -> str:
    return f"{where}: no option {name!r}{_near(name, known)}; known: {', '.join(known)}"


def _near(name: str, known: Sequence[str]) -> str:
    folded = {entry.casefold(): entry for entry in known}
    near = difflib.get_close_matches(name.casefold(), folded, n=2, cutoff=0.5)
    return f" (did you mean {' or '.join(repr(folded[n]) for n in near)}?)" if near else ""


def _kind(annotation: str) -> str:
    """`<class 'int'>` as `int`, a Literal as its values."""
    if found := re.fullmatch(r"typing\.Literal\[(.+)\]", annotation):
        return f"one of {found[1]}"
    return re.sub(r"<class '(?:[\w.]+\.)?(\w+)'>", r"\1", annotation).replace("Sequence", "list")


def _options(owner: Any, path: Sequence[str]) -> list[str]:
    """Names of the arguments of a class, or of a group of options inside it."""
    for part in path:
        owner = _hint(owner, part)
    return [] if owner is None else list(inspect.signature(owner).parameters)


def _classes(owner: Any, name: str) -> list[str]:
    """Names of the classes that an option may be of."""
    found, waiting = [], [_hint(owner, name)]
    while waiting:
        here = waiting.pop()
        if isinstance(here, type):
            waiting += here.__subclasses__()
            if not inspect.isabstract(here):
                found.append(here.__name__)
    return sorted(found)


def _hint(owner: Any, name: str) -> Any:
    hint = _hints(owner).get(name)
    choices = [hint, *get_args(hint)]  # `TimeGrid | None` is a TimeGrid
    return next((h for h in choices if isinstance(h, type) and h not in (type(None), UnionType)), None)


def _hints(owner: Any) -> dict[str, Any]:
    return {**get_type_hints(owner), **get_type_hints(owner.__init__)} if isinstance(owner, type) else {}


def _imported(path: str) -> Any:
    """A class or module by its import path; None when there is no such thing."""
    try:
        return import_module(path)
    except (ImportError, ValueError):
        module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name, None)
    except (ImportError, ValueError):
        return None
