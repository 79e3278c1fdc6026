"""Configurations: what need not be said, and that a slip is told in one readable line."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from sciLDM.errors import ConfigError, SciLDMError
from sciLDM.experiment import instantiate, read_config
from sciLDM.samplers import DPMSolverPP2MSDE
from sciLDM.schedules import CosineSchedule

BASE: dict[str, Any] = {"domain": {"class_path": "molecules", "init_args": {"data": "mine.csv"}}}


def changed(path: str, value: Any) -> dict[str, Any]:
    """The plain configuration with one option set."""
    config = copy.deepcopy(BASE)
    *groups, last = path.split("/")
    here = config
    for group in groups:
        here = here.setdefault(group, {})
    here[last] = value
    return config


def test_defaults() -> None:
    experiment = instantiate(read_config(BASE))
    assert type(experiment.domain).__name__ == "Molecules"
    assert isinstance(experiment.schedule, CosineSchedule)
    assert isinstance(experiment.sampler, DPMSolverPP2MSDE)
    assert (experiment.autoencoder_stage.max_steps, experiment.denoiser_stage.ema_decay) == (2000, 0.999)


@pytest.mark.parametrize(
    "domain", ["molecules", {"class_path": "molecules"}, {"class_path": "sciLDM.domains.molecules.Molecules"}]
)
def test_a_domain_by_short_name_or_path(domain: Any) -> None:
    assert type(instantiate(read_config({"domain": domain})).domain).__name__ == "Molecules"


def test_stage_settings_replace_defaults_one_by_one() -> None:
    stage = read_config(changed("denoiser_stage", {"max_steps": 7, "ema_decay": None}))["denoiser_stage"]
    assert (stage["max_steps"], stage["ema_decay"], stage["batch_size"]) == (7, None, 256)


def test_complete_configurations_are_fixed_points(tmp_path: Path) -> None:
    """Also through a file: what is stored in a run builds what it was stored from."""
    full = read_config(BASE, {"denoiser_stage.betas": [0.9, 0.95], "guidance": 2})
    assert read_config(full) == full
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(full))
    assert read_config(tmp_path / "config.yaml") == full
    assert instantiate(full).denoiser_stage.betas == (0.9, 0.95)


def test_overrides_do_not_change_what_was_passed() -> None:
    before = copy.deepcopy(BASE)
    assert read_config(BASE, {"domain.init_args.data": "other.csv", "seed": 3})["seed"] == 3
    assert before == BASE
    with pytest.raises(ConfigError, match=r"override 'domain.class_path.x': 'class_path' is not a group"):
        read_config(BASE, {"domain.class_path.x": 1})


def test_an_option_left_empty_is_one_left_out() -> None:
    assert read_config({**BASE, "guidance": None, "sampler": None}) == read_config(BASE)


SLIPS = [
    ("denoiser_stage/max_step", 3, r"denoiser_stage: no option 'max_step' \(did you mean 'max_steps'"),
    ("denoiser_stage/max_steps", "many", "denoiser_stage.max_steps: expected int, got 'many'"),
    ("denoiser_stage/max_steps", 0, "max_steps must be at least 1, got 0"),
    ("denoiser_stage/max_steps", None, "denoiser_stage.max_steps is empty"),
    ("denoiser_stage/max_minutes", "x", "denoiser_stage.max_minutes: expected float or null, got 'x'"),
    (
        "denoiser_stage/precision",
        "bf17",
        "denoiser_stage.precision: expected one of 'bf16', 'fp32', got 'bf17'",
    ),
    ("denoiser_stage", 7, "denoiser_stage: expected options by name"),
    ("netwrk", {}, r"configuration: no option 'netwrk' \(did you mean 'network'\?\); known: domain, network"),
    ("network/class_path", "DiT", "network: no class 'DiT'.*known: DiTNetwork, UNetNetwork"),
    (
        "network",
        {"class_path": "DiTNetwork", "init_args": {"widht": 3}},
        r"network \(DiTNetwork\): no option 'widht'.*'width'",
    ),
    (
        "network",
        {"class_path": "DiTNetwork", "init_args": {"width": "a"}},
        "network.width: expected int, got 'a'",
    ),
    ("sampler", {"class_path": "DDPMX"}, "sampler: no class 'DDPMX'.*'DDPM'"),
    (
        "sampler",
        {"class_path": "DDPM", "init_args": {"grid": {"class_path": "LogSNR"}}},
        "sampler.grid: no class 'LogSNR'.*'LogSNRGrid'",
    ),
    ("sampler", {"class_path": "sciLDM.samplers.DDIM", "init_args": {"steps": 0}}, "at least 1 step, got 0"),
    ("objective", {"self_conditon": 0.1}, "objective: no option 'self_conditon'.*'self_condition'"),
    ("trainer", {"acelerator": "cpu"}, "trainer: no option 'acelerator'.*'accelerator'"),
    ("seed", 1.5, "seed: expected int, got '1.5'"),
    ("guidance", "high", "guidance: expected float, got 'high'"),
    ("domain", 3, "domain: expected class_path and init_args"),
    (
        "domain/class_path",
        "molecule",
        r"no domain 'molecule'; installed: .*molecules.*; did you mean 'molecules'\?",
    ),
    (
        "domain/class_path",
        "sciLDM.domains.molecules.Moleculs",
        "sciLDM.domains.molecules has no class 'Moleculs'.*'Molecules'",
    ),
    ("domain/class_path", "nothing.here.X", "no module 'nothing.here'; known short names"),
    ("domain/init_args/dta", "x", r"domain \(Molecules\): no option 'dta' \(did you mean 'data'"),
    ("domain/init_args/exact_graph", "high", "domain.exact_graph: expected float, got 'high'"),
    ("domain/init_args/exact_graph", 99, r"exact_graph must be in \[0, 1\], got 99"),
    (
        "domain/init_args/autoencoder",
        {"wdth": 3},
        r"domain.autoencoder \(Molecules\): no option 'wdth'.*'width'",
    ),
    (
        "domain/init_args/autoencoder",
        {"width": 33, "heads": 4},
        "width must be a multiple of heads, got 33 and 4",
    ),
    ("domain/init_args/settings", {"max_molecules": 1}, "max_molecules must be at least 3, got 1"),
    (
        "domain/init_args/settings",
        {"fractions": [0.9, 0.1, 0.0]},
        "fractions: expected shares .* all above 0",
    ),
    ("domain/init_args/settings", None, "domain.init_args.settings is empty"),
    ("domain/init_args/conditions", "gap", "domain.conditions: expected list, got 'gap'"),
    ("domain/init_args/conditions", ["gap", "gap"], "conditions must differ"),
    ("domain/init_args/conditions", ["atoms"], "every model takes 'atoms'"),
]


@pytest.mark.parametrize(("path", "value", "message"), SLIPS, ids=[f"{p}={v}"[:60] for p, v, _ in SLIPS])
def test_a_slip_is_told_in_one_line(path: str, value: Any, message: str) -> None:
    with pytest.raises(SciLDMError, match=message) as caught:
        instantiate(read_config(changed(path, value)))
    assert isinstance(caught.value, ConfigError)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert "jsonargparse" not in str(caught.value)
    assert "experiment." not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("domain: [", "is not valid YAML"),
        ("- a\n- b\n", r"expected options by name, at least `domain:`, got \['a', 'b'\]"),
        ("", "expected options by name"),
        ("seed: 1\n", r"domain: expected class_path and init_args.*got None"),
        (b"\xff\xfe\x00\xd8".decode("latin1"), "is not valid YAML|expected options by name"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="latin1")
    with pytest.raises(ConfigError, match=message):
        read_config(path)
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*No such file"):
        read_config(tmp_path / "none.yaml")
